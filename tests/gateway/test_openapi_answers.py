"""What the service answers is what its OpenAPI document says: every example, every stream, every lookup, every error.

The answers are described by structs that nothing is built with; here each is held against the real thing, and may have
no member that is not described.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from aci_documents import session
from confide.gateway.openapi.inference import EMBEDDING_MODEL, INFERENCE_OPERATIONS, MODEL
from confide.gateway.openapi.lookups import LOOKUPS
from confide.gateway.openapi.page import event_data
from gateway_app import ScriptedGateway, event, finish, serving_scripted, token
from obliging_engine import CONFIG, obliging
from openapi_document import Document, faults, operation
from scripted import CLOSE, LAST_CHUNK, Script, sse_head

pytestmark = pytest.mark.asyncio(loop_scope="module")

LOGPROB = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}
EXAMPLES = [pytest.param(each, name, id=f"{each.id}-{name}") for each in INFERENCE_OPERATIONS for name in each.examples]


def written(asked: Document) -> list[bytes]:
    """What a model writes: what its grammar wants, or a thought and a word."""
    if "grammar" in asked:
        return [token('{"city":"Oslo"}')]
    logprobs = {"content": [{**LOGPROB, "id": 1, "top_logprobs": [{**LOGPROB, "id": 1}]}]}
    said: Document = {"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}
    if asked.get("logprobs"):
        said["logprobs"] = logprobs
    if "prompt" in asked:
        said = {**said, "text": "Hi"}
        return [event({"choices": [said]})]
    thought = {"index": 0, "delta": {"reasoning_content": "Hm."}, "finish_reason": None}
    return [event({"choices": [thought]}), event({"choices": [said]})]


def generate(asked: Document) -> Script:
    return [sse_head(), *written(asked), finish(), LAST_CHUNK]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path_factory.mktemp("home"), [], config=CONFIG) as gateway:
        gateway.engine.choose = obliging(generate)
        yield gateway


def described(method: str, path: str, answer: httpx2.Response) -> Document:
    """How the document describes this very answer: its status and its kind of content are in it."""
    responses = operation(method, path)["responses"]
    assert str(answer.status_code) in responses, answer.text
    found = responses[str(answer.status_code)]
    assert answer.headers["content-type"] in found["content"], answer.headers["content-type"]
    for name, header in found["headers"].items():
        is_required = header.get("required") or name.startswith("X-ACI")
        assert not is_required or name in answer.headers, name
    media: Document = found["content"][answer.headers["content-type"]]
    return media


def assert_described(method: str, path: str, answer: httpx2.Response) -> None:
    media = described(method, path, answer)
    if answer.headers["content-type"] == "text/event-stream":
        events, is_named = data_of(answer.text), "event" in media["schema"]["properties"]
        assert events
        for each in events:
            assert faults(event_data(media["schema"]), each) == []
        assert answer.text.startswith("event: ") is is_named
        assert answer.text.endswith("data: [DONE]\n\n") is not is_named
    elif answer.headers["content-type"] == "application/json":
        assert faults(media["schema"], answer.json()) == []
    else:
        assert answer.text


def data_of(stream: str) -> list[Any]:
    """What its events hold, `[DONE]` aside."""
    lines = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize(("shown", "name"), EXAMPLES)
async def test_every_example_is_valid_and_answered_as_described(
    gateway: ScriptedGateway, shown: Any, name: str
) -> None:
    body = shown.examples[name]
    content = operation("post", shown.path)["requestBody"]["content"]["application/json"]
    assert content["examples"][name]["value"] == body
    assert faults(content["schema"], body) == []
    answer = await gateway.client.post(shown.path, json=body)
    assert answer.status_code == 200, answer.text
    assert_described("post", shown.path, answer)


@pytest.mark.parametrize("is_stream", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [], "logprobs": True, "top_logprobs": 1, "n": 2}),
        ("/v1/completions", {"prompt": ["a", "b"], "logprobs": 1}),
        ("/v1/responses", {"input": "a", "metadata": {"a": "b"}, "instructions": "b", "text": {"verbosity": "low"}}),
        (
            "/v1/responses",
            {
                "input": "a",
                "tools": [{"type": "function", "name": "city", "parameters": {"type": "object"}}],
                "tool_choice": {"type": "function", "name": "city"},
            },
        ),
        (
            "/v1/messages",
            {
                "max_tokens": 9,
                "messages": [],
                "tools": [{"name": "city", "input_schema": {"type": "object"}}],
                "tool_choice": {"type": "tool", "name": "city"},
            },
        ),
    ],
)
async def test_members_that_change_an_answer_are_described(
    gateway: ScriptedGateway, path: str, body: Document, is_stream: bool
) -> None:
    turn = {"messages": [{"role": "user", "content": "a"}]} if "messages" in body else {}
    answer = await gateway.client.post(path, json={"model": MODEL, **body, **turn, "stream": is_stream})
    assert answer.status_code == 200, answer.text
    assert_described("post", path, answer)


@pytest.mark.parametrize("shown", INFERENCE_OPERATIONS[:4], ids=lambda shown: shown.id)
async def test_a_stream_that_breaks_ends_as_described(gateway: ScriptedGateway, shown: Any) -> None:
    gateway.engine.choose = lambda request: [sse_head(), *written(json.loads(request.body)), CLOSE]
    try:
        answer = await gateway.client.post(shown.path, json=shown.examples["stream"])
    finally:
        gateway.engine.choose = obliging(generate)
    assert answer.status_code == 200
    assert "error" in answer.text
    assert_described("post", shown.path, answer)


async def lookups(gateway: ScriptedGateway) -> dict[str, tuple[str, ...]]:
    """For each path of a lookup, what is asked of it; ids are those of a request that was just answered."""
    answer = await gateway.client.post("/v1/chat/completions", json=INFERENCE_OPERATIONS[0].examples["hello"])
    receipt_id, digest = answer.headers["x-receipt-id"], answer.headers["x-aci-keyset-digest"]
    await gateway.app.archive.keep_current()
    nonce = "ab" * 32
    return {
        "/v1/models": ("/v1/models", "/v1/models?provider=nobody"),
        "/v1/models/{name}": (f"/v1/models/{MODEL}", "/v1/models/confide", "/v1/models/a/b"),
        "/v1/models/providers/{provider}": ("/v1/models/providers/confide", "/v1/models/providers/a/b"),
        "/v1/embeddings/models": ("/v1/embeddings/models",),
        "/v1/signature/{id}": (
            f"/v1/signature/{receipt_id}",
            f"/v1/signature/{receipt_id}?signing_algo=ed25519",
            f"/v1/signature/{receipt_id}?signing_algo=rsa",
            "/v1/signature/none",
        ),
        "/v1/attestation/report": (
            "/v1/attestation/report",
            f"/v1/attestation/report?nonce={nonce}&model={MODEL}",
            "/v1/attestation/report?model=none",
            "/v1/attestation/report?version=2",
            "/v1/attestation/report?signing_address=0x00",
        ),
        "/v1/aci/attestation": tuple(f"/v1/aci/attestation{query}" for query in ("", f"?nonce={nonce}", "?nonce=1")),
        "/v1/aci/keysets/{digest}": (f"/v1/aci/keysets/{digest}", "/v1/aci/keysets/none"),
        "/v1/aci/receipts/{id}": (f"/v1/aci/receipts/{receipt_id}", "/v1/aci/receipts/none"),
        "/v1/aci/sessions": ("/v1/aci/sessions", "/v1/aci/sessions?model=a&model=b"),
        "/v1/aci/sessions/{session_id}": (f"/v1/aci/sessions/{'0' * 64}",),
        "/": ("/",),
        "/health": ("/health",),
        "/health/ready": ("/health/ready",),
        "/llms.txt": ("/llms.txt",),
        "/openapi.json": ("/openapi.json",),
        "/docs": ("/docs",),
        "/docs/{name}": ("/docs/verify.md", "/docs/adr/", "/docs/none.md", "/docs/../pyproject.toml"),
    }


async def test_every_lookup_answers_as_described(gateway: ScriptedGateway) -> None:
    asked = await lookups(gateway)
    assert set(asked) == {each.path for each in LOOKUPS}
    for path, urls in asked.items():
        for index, url in enumerate(urls):
            answer = await gateway.client.get(url)
            assert index or answer.status_code in (200, 404), url
            assert_described("get", path, answer)


async def test_a_session_is_as_described() -> None:
    """None stands in a service without a second hop; this is one that `aci_documents` has for verifiers."""
    answer = operation("get", "/v1/aci/sessions/{session_id}")["responses"]["200"]
    assert faults(answer["content"]["application/json"]["schema"], session()) == []


async def test_vectors_in_base64_are_as_described(gateway: ScriptedGateway) -> None:
    body = {"model": EMBEDDING_MODEL, "input": "a", "encoding_format": "base64"}
    answer = await gateway.client.post("/v1/embeddings", json=body)
    assert isinstance(answer.json()["data"][0]["embedding"], str)
    assert_described("post", "/v1/embeddings", answer)


async def test_errors_are_as_described(gateway: ScriptedGateway) -> None:
    """On every surface: no body, one that is too large, no such model, an engine that fails, one that is loading."""
    for shown in INFERENCE_OPERATIONS:
        body = next(iter(shown.examples.values()))
        answers = [
            await gateway.client.post(shown.path, content=b"{"),
            await gateway.client.post(shown.path, json=body | {"model": "none"}),
            await gateway.client.post(shown.path, json=body | {"provider": {"aci_session_ids": ["0" * 64]}}),
        ]
        gateway.switch.is_ready = False
        answers.append(await gateway.client.post(shown.path, json=body))
        gateway.switch.is_ready = True
        gateway.engine.choose = lambda _: [CLOSE]
        answers.append(await gateway.client.post(shown.path, json=body))
        gateway.engine.choose = obliging(generate)
        assert [answer.status_code for answer in answers] == [400, 404, 412, 503, 502]
        for answer in answers:
            assert_described("post", shown.path, answer)
