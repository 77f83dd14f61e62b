"""What an upstream that speaks Messages itself is told beside the body: our key, a version, betas."""

import json
from pathlib import Path
from typing import Any

import pytest

from confide.protocol.canonical import digest_of
from confide.protocol.receipt import FORWARDED, RECEIVED
from confide.upstream.probe import probe
from relay_app import MODEL, answered, completion, local, model, parsed, serving_upstreams, streamed, upstream
from scripted import ScriptedUpstream, SeenRequest

MESSAGES = "/v1/messages"
WHOLE = b'{"type":"message","id":"msg_theirs","model":"vendor/model","content":[],"usage":{"input_tokens":7}}'
HELLO = json.dumps({"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}).encode()
KEY = "sk-of-the-service"
FRAMING = {b"host", b"accept", b"content-type", b"content-length"}


@pytest.fixture
def key(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text(f"{KEY}\n")
    return tmp_path / "key"


def speaking(engine: ScriptedUpstream, **keys: Any) -> str:
    return local(engine.port, **{"surfaces": ["chat", "messages"], **keys}) + model('"engine"')


def beside(seen: SeenRequest) -> dict[bytes, bytes]:
    """The headers of a request that do not frame it, each there once."""
    found = [(name, value) for name, value in seen.headers if name not in FRAMING]
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.mark.parametrize(
    ("sent", "passed"),
    [
        ({}, {b"anthropic-version": b"2023-06-01"}),
        ({"anthropic-version": "2023-01-01"}, {b"anthropic-version": b"2023-01-01"}),
        ({"anthropic-version": "latest"}, {b"anthropic-version": b"2023-06-01"}),
        (
            {"Anthropic-Version": "2023-06-01", "Anthropic-Beta": "context-1m-2025-08-07, skills-2025-10-02"},
            {b"anthropic-version": b"2023-06-01", b"anthropic-beta": b"context-1m-2025-08-07,skills-2025-10-02"},
        ),
        ({"x-app": "cli", "user-agent": "sdk", "cookie": "a=b"}, {b"anthropic-version": b"2023-06-01"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_version_and_the_betas_go_on_and_nothing_else(
    tmp_path: Path, sent: dict[str, str], passed: dict[bytes, bytes], stream: bool
) -> None:
    events = (b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_theirs"}}\n\n',)
    script = streamed(*events, b'event: message_stop\ndata: {"type":"message_stop"}\n\n') if stream else answered(WHOLE)
    async with ScriptedUpstream(script) as engine, serving_upstreams(tmp_path, speaking(engine)) as gateway:
        content = HELLO.replace(b"{", b'{"stream":%b,' % json.dumps(stream).encode(), 1)
        answer = await gateway.client.post(MESSAGES, content=content, headers=sent)
        assert answer.status_code == 200
        assert beside(engine.requests[0]) == passed


async def test_headers_are_in_no_receipt(tmp_path: Path) -> None:
    """It covers bodies: the same body is the same hash, whatever came beside it."""
    async with ScriptedUpstream(answered(WHOLE)) as engine, serving_upstreams(tmp_path, speaking(engine)) as gateway:
        for headers in ({}, {"anthropic-beta": "context-1m-2025-08-07"}):
            answer = await gateway.client.post(MESSAGES, content=HELLO, headers=headers)
            receipt = await gateway.receipt(answer)
            assert receipt.body_hash(RECEIVED) == receipt.body_hash(FORWARDED) == digest_of(HELLO)
        first, second = map(beside, engine.requests)
        assert first != second


async def test_by_way_of_chat_and_on_other_surfaces_neither_is_sent(tmp_path: Path) -> None:
    sent = {"anthropic-version": "2023-06-01", "anthropic-beta": "skills-2025-10-02"}
    async with ScriptedUpstream(answered(completion())) as engine:
        text = speaking(engine, surfaces=["chat", "responses"])
        async with serving_upstreams(tmp_path, text) as gateway:
            for path in (MESSAGES, "/v1/chat/completions"):
                assert (await gateway.client.post(path, content=HELLO, headers=sent)).status_code == 200
                assert beside(engine.requests[-1]) == {}


@pytest.mark.parametrize(
    ("keys", "carried"),
    [
        ({}, {b"authorization": b"Bearer " + KEY.encode()}),
        ({"key_header": "authorization"}, {b"authorization": b"Bearer " + KEY.encode()}),
        ({"key_header": "x-api-key"}, {b"x-api-key": KEY.encode()}),
    ],
    ids=str,
)
async def test_our_key_goes_where_the_upstream_looks_for_it(
    tmp_path: Path, key: Path, keys: dict[str, str], carried: dict[bytes, bytes]
) -> None:
    """On every surface and in probes, which ask for the same version."""
    version = {b"anthropic-version": b"2023-06-01"}
    async with ScriptedUpstream(answered(WHOLE), answered(completion())) as engine:
        async with serving_upstreams(tmp_path, speaking(engine, key_file=str(key), **keys)) as gateway:
            assert (await gateway.client.post(MESSAGES, content=HELLO)).status_code == 200
            assert (await gateway.post()).status_code == 200
            relay = gateway.upstreams.opened["engine"]._relay()
            assert relay is not None
            await probe(relay, "/v1/models")
        assert [seen.target for seen in engine.requests] == [b"/v1/messages", b"/v1/chat/completions", b"/v1/models"]
        assert [beside(seen) for seen in engine.requests] == [carried | version, carried, carried | version]


async def test_a_probe_of_one_that_does_not_speak_it_names_no_version(tmp_path: Path) -> None:
    async with ScriptedUpstream(answered(b"{}")) as engine:
        async with serving_upstreams(tmp_path, speaking(engine, surfaces=["chat"])) as gateway:
            relay = gateway.upstreams.opened["engine"]._relay()
            assert relay is not None
            await probe(relay, "/v1/models")
        assert beside(engine.requests[0]) == {}


async def test_an_ordinary_provider_is_given_the_same(tmp_path: Path, key: Path) -> None:
    async with ScriptedUpstream(answered(WHOLE)) as engine:
        text = upstream(
            "engine",
            "openai",
            f"http://127.0.0.1:{engine.port}/v1",
            allow_unverified=True,
            probe="none",
            surfaces=["messages"],
            key_file=str(key),
            key_header="x-api-key",
        )
        async with serving_upstreams(tmp_path, text + model('"engine"')) as gateway:
            assert (await gateway.client.post(MESSAGES, content=HELLO)).status_code == 200
        assert beside(engine.requests[0]) == {b"x-api-key": KEY.encode(), b"anthropic-version": b"2023-06-01"}


async def test_a_reload_moves_the_key(tmp_path: Path, key: Path) -> None:
    async with ScriptedUpstream(answered(WHOLE)) as engine:
        before = speaking(engine, key_file=str(key))
        async with serving_upstreams(tmp_path, before) as gateway:
            await gateway.client.post(MESSAGES, content=HELLO)
            after = speaking(engine, key_file=str(key), key_header="x-api-key")
            result = await gateway.reload(parsed(tmp_path, after))()
            assert result.changes == ("upstream engine: changed",)
            await gateway.client.post(MESSAGES, content=HELLO)
        first, second = map(beside, engine.requests)
        assert b"authorization" in first
        assert b"authorization" not in second
        assert second[b"x-api-key"] == KEY.encode()
