"""Confide in front of an OpenAI-shaped server that others wrote: LiteLLM's proxy, with our engine behind it.

The proxy is installed into an environment of its own, in the release that `bench/peers.py` pins; it is no part of ours.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from bench.peers import KEY, PEERS, Peer, free_port
from openai import OpenAI

import confide
from confide.errors import CannotTell
from confide.evidence.result import Verdict
from running import Running, home_with_weights, running
from sdk.builders import HELLO, NAMED, WEATHER, WEATHER_TOOL, Fruit, function_call

pytestmark = [pytest.mark.engine, pytest.mark.long]

MODEL = "confide/smollm2-135m"
SAME: dict[str, Any] = {"model": MODEL, "temperature": 0, "seed": 7, "max_tokens": 48}
STARTED_WITHIN_S = 120


@pytest.fixture(scope="module")
def litellm() -> Peer:
    [found] = [peer for peer in PEERS if peer.name.startswith("LiteLLM")]
    try:
        found.install()
    except CannotTell as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"LiteLLM cannot be installed: {error}")
    return found


@contextmanager
def proxying(litellm: Peer, url: str, directory: Path) -> Iterator[str]:
    """LiteLLM's proxy in front of the API at `url`; its address."""
    port = free_port()
    served = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"}
    configuration = {
        "model_list": [{"model_name": MODEL, "litellm_params": served}],
        "general_settings": {"master_key": KEY},
    }
    written = directory / "litellm.yaml"
    written.write_text(json.dumps(configuration))  # JSON is YAML
    program = litellm.directory / "bin" / "litellm"
    with (directory / "litellm.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "--config", written, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"],
            stdout=log,
            stderr=log,
            env={**os.environ, **litellm.variables},
        )
    try:
        address = f"http://127.0.0.1:{port}"
        until = time.monotonic() + STARTED_WITHIN_S
        while not is_alive(address):
            assert process.poll() is None, (directory / "litellm.log").read_text()[-2000:]
            assert time.monotonic() < until, "LiteLLM's proxy does not listen"
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def is_alive(address: str) -> bool:
    try:
        return httpx2.get(f"{address}/health/liveliness", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="module")
def services(
    litellm: Peer, engine_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, Running]]:
    """The service with the engine, and Confide in front of the proxy that is in front of it."""
    base = tmp_path_factory.mktemp("foreign")
    outer_home = base / "outer"
    outer_home.mkdir(mode=0o700)
    with (
        running(home_with_weights(base, engine_home)) as inner,
        proxying(litellm, inner.url, base) as address,
        running(
            outer_home,
            config=f'[[upstream]]\nname = "litellm"\nkind = "local"\nbase_url = "{address}/v1"\nkey_env = "PROXY_KEY"\n'
            f'[[model]]\nid = "{MODEL}"\nupstream = "litellm"\n',
            environ={"PROXY_KEY": KEY},
        ) as outer,
    ):
        yield inner, outer


@contextmanager
def sdk(service: Running) -> Iterator[OpenAI]:
    """The official SDK through the client that verifies, over plain HTTP."""
    policy = confide.Policy(trust_roots=(service.home / "simulator" / "root.pem",), require_channel=False)
    with OpenAI(
        base_url=f"{service.url}/v1", api_key="any", http_client=confide.Client(policy), max_retries=0
    ) as client:
        yield client


def buffered(client: OpenAI) -> object:
    answer = client.chat.completions.create(messages=HELLO, **SAME)
    assert confide.proof(answer).verdict is Verdict.PARTIAL  # but for the channel
    return answer.choices[0].message.content, answer.choices[0].finish_reason


def streamed(client: OpenAI) -> object:
    chunks = list(client.chat.completions.create(messages=HELLO, stream=True, **SAME))
    parts = [choice for chunk in chunks for choice in chunk.choices]
    return "".join(part.delta.content or "" for part in parts), [part.finish_reason for part in parts][-1]


def called(client: OpenAI) -> object:
    answer = client.chat.completions.create(messages=WEATHER, tools=[WEATHER_TOOL], tool_choice=NAMED, **SAME)
    call = function_call(answer)
    return call.function.name, call.function.arguments


def structured(client: OpenAI) -> object:
    answer = client.chat.completions.parse(messages=HELLO, response_format=Fruit, **SAME)
    assert isinstance(answer.choices[0].message.parsed, Fruit)
    return answer.choices[0].message.parsed


@pytest.mark.parametrize("ask", [buffered, streamed, called, structured])
def test_answers_through_a_server_of_others_are_those_of_the_engine(
    services: tuple[Running, Running], ask: Callable[[OpenAI], object]
) -> None:
    inner, outer = services
    with sdk(inner) as direct, sdk(outer) as through:
        assert ask(through) == ask(direct)
