"""The whole chain: `confide serve` with attested TLS and the real model, and the official SDK through `confide.Client`.

Every answer is proven, and is the one that the plain SDK gets: the client changes nothing about it.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

import confide
from confide.evidence.result import Verdict
from running import Running, home_with_weights, running

pytestmark = pytest.mark.engine

MODEL = "confide/smollm2-135m"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CITY: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "city",
        "schema": {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 20}, "large": {"type": "boolean"}},
            "required": ["name", "large"],
            "additionalProperties": False,
        },
    },
}
NAMED: Any = {"type": "function", "function": {"name": "weather"}}

# One at a time, with a seed: then the same question has the same answer.
ASKED: dict[str, dict[str, Any]] = {
    "text": {"max_tokens": 24},
    "tools": {"tools": [WEATHER], "tool_choice": NAMED},
    "schema": {"response_format": CITY},
}


@pytest.fixture(scope="module")
def service(engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = home_with_weights(tmp_path_factory.mktemp("proven"), engine_home)
    with running(home, config='[server]\ntls = "attested"\n') as started:
        yield started


@pytest.fixture(scope="module")
def policy(service: Running) -> confide.Policy:
    return confide.Policy(trust_roots=("intel", "amd", service.home / "simulator" / "root.pem"))


def question(kind: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Tell me about Paris, Zürich or 東京."}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "seed": 7, **ASKED[kind]}


def said(answer: ChatCompletion) -> dict[str, Any]:
    """All that the model decided."""
    (choice,) = answer.choices
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]  # type: ignore[union-attr]  # function tools alone
    return {"text": choice.message.content, "calls": calls, "finish": choice.finish_reason, "usage": answer.usage}


def said_in(chunks: list[ChatCompletionChunk]) -> dict[str, Any]:
    deltas = [chunk.choices[0].delta for chunk in chunks]
    calls = [call.function for delta in deltas for call in delta.tool_calls or () if call.function is not None]
    return {
        "text": "".join(delta.content or "" for delta in deltas),
        "names": [call.name for call in calls if call.name],
        "arguments": "".join(call.arguments or "" for call in calls),
        "finish": chunks[-1].choices[0].finish_reason,
    }


def assert_proven(answer: object) -> None:
    proof = confide.proof(answer)
    assert proof.verdict is Verdict.VERIFIED
    assert proof.simulated
    assert {"receipt-1", "receipt-2", "receipt-3", "receipt-4", "id-1", "id-2", "id-3", "id-6"} <= {
        check.name for check in proof if check.status == "pass"
    }


@pytest.fixture
def plain(service: Running) -> Iterator[OpenAI]:
    """The SDK as anybody has it, which here has to be told to trust the certificate."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", http_client=httpx2.Client(verify=trusting)) as client:
        yield client


@pytest.fixture
def proven(service: Running, policy: confide.Policy) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", http_client=confide.Client(policy)) as client:
        yield client


@pytest.mark.parametrize("kind", ASKED)
def test_a_buffered_answer_is_proven_and_the_same(plain: OpenAI, proven: OpenAI, kind: str) -> None:
    answer = proven.chat.completions.create(**question(kind))
    assert_proven(answer)
    assert said(answer) == said(plain.chat.completions.create(**question(kind)))


@pytest.mark.parametrize("kind", ASKED)
def test_a_stream_is_proven_and_the_same(plain: OpenAI, proven: OpenAI, kind: str) -> None:
    chunks = list(proven.chat.completions.create(**question(kind), stream=True))
    assert_proven(chunks[0])
    assert said_in(chunks) == said_in(list(plain.chat.completions.create(**question(kind), stream=True)))


@pytest.fixture
async def concurrent(service: Running, policy: confide.Policy) -> AsyncIterator[AsyncOpenAI]:
    http_client = confide.AsyncClient(policy)
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", http_client=http_client) as client:
        yield client


@pytest.mark.parametrize("kind", ASKED)
async def test_asyncio_gets_the_same_proven(plain: OpenAI, concurrent: AsyncOpenAI, kind: str) -> None:
    answer = await concurrent.chat.completions.create(**question(kind))
    assert_proven(answer)
    assert said(answer) == said(await asyncio.to_thread(lambda: plain.chat.completions.create(**question(kind))))
    chunks = [chunk async for chunk in await concurrent.chat.completions.create(**question(kind), stream=True)]
    assert_proven(chunks[-1])
    assert said_in(chunks)["finish"] == said(answer)["finish"]


class City(BaseModel):
    name: str
    large: bool


def test_a_parsed_answer_is_proven(proven: OpenAI) -> None:
    answer = proven.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": "A city."}], response_format=City, max_tokens=200, seed=7
    )
    assert_proven(answer)
    parsed = answer.choices[0].message.parsed
    assert answer.choices[0].finish_reason == "length" or isinstance(parsed, City)


def test_a_proof_is_kept_moved_and_checked_elsewhere(service: Running, policy: confide.Policy, tmp_path: Path) -> None:
    http_client = confide.Client(policy, keep_bodies=True)
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", http_client=http_client) as client:
        answer = client.chat.completions.create(**question("text"))
    written = confide.proof(answer).bundle(tmp_path / "answer.json")
    checked = confide.verify_bundle(written, policy)
    assert (checked.verdict, checked.ok, checked.simulated) == (Verdict.VERIFIED, True, True)
    altered = json.loads(written.read_text())
    altered["answers"][0]["request_sha256"] = "0" * 64
    del altered["answers"][0]["request_b64"]
    (tmp_path / "altered.json").write_text(json.dumps(altered))
    refused = confide.verify_bundle(tmp_path / "altered.json", policy)
    assert [check.name for check in refused.checks if check.status == "fail"] == ["receipt-3"]


def test_the_service_itself_is_verified(service: Running, policy: confide.Policy) -> None:
    verified = confide.verify_service(service.url, policy)
    assert (verified.verdict, verified.ok, verified.simulated) == (Verdict.VERIFIED, True, True)
    refused = confide.verify_service(service.url, confide.Policy())
    assert (refused.verdict, refused.ok) == (Verdict.NOT_VERIFIED, False)
