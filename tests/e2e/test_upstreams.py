"""Confide in front of engines and services, all real: the same answers as without it, and proof of each.

A second Confide over attested TLS on both sides; the embedded engine's own HTTP server as an engine of the workload.
"""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, OpenAI

import confide
from confide.engine import catalogue, gguf
from confide.engine.supervisor import Supervisor, new_api_key, socket_directory
from confide.engine.worker import Settings
from confide.gateway.engines import template_for
from confide.telemetry.logs import Log
from running import CONFIDE, Running, home_with_weights, running
from sdk.builders import HELLO, NAMED, WEATHER, WEATHER_TOOL, Fruit, function_call

pytestmark = pytest.mark.engine

MODEL = "vendor/tiny"
ATTESTED = '[server]\ntls = "attested"\n'
INNER = f'{ATTESTED}[[model]]\nid = "{MODEL}"\nupstream_model = "smollm2-135m"\n'
SAME: dict[str, Any] = {"model": MODEL, "temperature": 0, "seed": 7, "max_tokens": 24}


def root_of(service: Running) -> Path:
    return service.home / "simulator" / "root.pem"


def aggregator(inner: Running) -> str:
    return (
        f'{ATTESTED}[[upstream]]\nname = "second"\nkind = "aci"\nbase_url = "{inner.url}/v1"\n'
        f'trust_roots = ["{root_of(inner)}"]\n[[model]]\nid = "{MODEL}"\nupstream = "second"\n'
    )


@dataclass
class Chain:
    """A service that serves by itself, and one that serves by it."""

    inner: Running
    outer: Running


@pytest.fixture(scope="module")
def chain(engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    base = tmp_path_factory.mktemp("chain")
    outer_home = base / "outer"
    outer_home.mkdir(mode=0o700)
    with (
        running(home_with_weights(base, engine_home), config=INNER) as inner,
        running(outer_home, config=aggregator(inner)) as outer,
    ):
        yield Chain(inner, outer)


@contextmanager
def sdk(service: Running) -> Iterator[OpenAI]:
    """The official SDK through the client that verifies."""
    verifying = confide.Client(confide.Policy(trust_roots=(root_of(service),)))
    with OpenAI(base_url=f"{service.url}/v1", api_key="any", http_client=verifying, max_retries=0) as client:
        yield client


def buffered(client: OpenAI) -> Any:
    answer = client.chat.completions.create(messages=HELLO, **SAME)
    assert answer.usage is not None
    return answer.model, answer.choices[0].message.content, answer.usage.completion_tokens


def streamed(client: OpenAI) -> Any:
    with client.chat.completions.create(messages=HELLO, stream=True, **SAME) as chunks:
        return [(chunk.model, chunk.choices[0].delta.content, chunk.choices[0].finish_reason) for chunk in chunks]


def called(client: OpenAI) -> Any:
    answer = client.chat.completions.create(
        messages=WEATHER, tools=[WEATHER_TOOL], tool_choice=NAMED, **{**SAME, "max_tokens": 64}
    )
    call = function_call(answer)
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    return call.function.name, call.function.arguments


def structured(client: OpenAI) -> Any:
    answer = client.chat.completions.parse(messages=HELLO, response_format=Fruit, **{**SAME, "max_tokens": 64})
    fruit = answer.choices[0].message.parsed
    assert isinstance(fruit, Fruit)
    return fruit


@pytest.mark.parametrize("ask", [buffered, streamed, called, structured])
def test_answers_through_two_services_are_those_of_the_one(chain: Chain, ask: Any) -> None:
    with sdk(chain.inner) as direct, sdk(chain.outer) as through:
        assert ask(through) == ask(direct)


def test_each_answer_is_proven_with_the_session_that_it_was_served_in(chain: Chain, tmp_path: Path) -> None:
    with sdk(chain.outer) as client:
        answer = client.chat.completions.create(messages=HELLO, **SAME)
        proof = confide.proof(answer)
        assert proof is not None
        checks = {check.name: check.status.value for check in proof.checks}
        assert (checks["upstream-1"], checks["upstream-2"], checks["id-6"]) == ("pass", "pass", "pass")
        proof.bundle(tmp_path / "proof.json")
    audit = subprocess.run(
        [CONFIDE, "audit", tmp_path / "proof.json", "--trust-root", root_of(chain.outer)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert "upstream-2" in audit.stdout


@asynccontextmanager
async def engine(engine_home: Path, tmp_path: Path) -> AsyncIterator[Settings]:
    """The embedded engine's child process, with the HTTP server that it brings."""
    installed = catalogue.find(engine_home, "smollm2-135m")
    settings = Settings(
        model_path=str(installed.path),
        socket_path=str(socket_directory(tmp_path) / "engine-alone.sock"),
        api_key=new_api_key(),
        slots=2,
        context_length=2048,
        batch=64,
        threads=1,
        template=template_for(installed, gguf.read_metadata(installed.path)),
        projector_path=None,
        alias="tiny-engine",
    )
    supervisor = Supervisor([settings], before_start=lambda: None, log=Log())
    await supervisor.start()
    try:
        yield settings
    finally:
        await supervisor.stop()


async def test_an_engine_of_the_workload_answers_as_it_does_alone(engine_home: Path, tmp_path: Path) -> None:
    home = tmp_path / "gateway"
    home.mkdir(mode=0o700)
    async with engine(engine_home, tmp_path) as settings:
        (tmp_path / "key").write_text(settings.api_key)
        config = (
            f'{ATTESTED}[[upstream]]\nname = "engine"\nkind = "local"\nbase_url = "unix:{settings.socket_path}"\n'
            f'key_file = "{tmp_path / "key"}"\n[[model]]\nid = "{MODEL}"\nupstream = "engine"\n'
            'upstream_model = "tiny-engine"\n'
        )
        transport = httpx2.AsyncHTTPTransport(uds=settings.socket_path)
        async with httpx2.AsyncClient(transport=transport, base_url="http://engine", timeout=60) as plain:
            alone = AsyncOpenAI(base_url="http://engine/v1", api_key=settings.api_key, http_client=plain)
            expected = await alone.chat.completions.create(messages=HELLO, **SAME)
        starting = running(home, config=config)
        service = await asyncio.to_thread(starting.__enter__)
        try:
            verifying = confide.AsyncClient(confide.Policy(trust_roots=(root_of(service),)))
            async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="any", http_client=verifying) as client:
                answer = await client.chat.completions.create(messages=HELLO, **SAME)
                assert answer.choices[0].message.content == expected.choices[0].message.content
                assert answer.model == MODEL
                stream = await client.chat.completions.create(messages=HELLO, stream=True, **SAME)
                texts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
                assert "".join(texts) == expected.choices[0].message.content
        finally:
            await asyncio.to_thread(starting.__exit__, None, None, None)


def reload(home: Path) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, "CONFIDE_HOME": str(home)}
    return subprocess.run([CONFIDE, "reload"], capture_output=True, text=True, check=False, env=environ)


def test_a_running_service_reads_its_configuration_again(chain: Chain, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    before = aggregator(chain.inner)
    assert reload(home).returncode == 2
    with running(home, config=before) as service:
        assert "nothing has changed" in reload(home).stdout
        (home / "confide.toml").write_text(before + 'aliases = ["short"]\n')
        done = reload(home)
        assert (done.returncode, done.stdout.strip()) == (0, f"model {MODEL}: changed"), done.stderr
        with sdk(service) as client:
            answer = client.chat.completions.create(messages=HELLO, **{**SAME, "model": "short"})
            assert answer.model == "short"
        (home / "confide.toml").write_text(before + "nonsense = 1\n")
        refused = reload(home)
        assert refused.returncode == 2
        assert "nonsense" in refused.stderr
        with sdk(service) as client:
            assert client.chat.completions.create(messages=HELLO, **{**SAME, "model": "short"}).choices
        assert service.terminate() == 0
