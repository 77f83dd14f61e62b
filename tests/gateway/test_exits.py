"""Every way in which an answer ends other than by a client that leaves: what the client gets, what the log says, what
is proven; and that nothing stays behind.
"""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import httpx2
import pytest

from confide.config import Config, Limits, Model, Server
from confide.protocol.receipt import Outcome
from confide.protocol.sse import DONE, KEEP_ALIVE
from confide.upstream.channel import Exchange, Timeouts
from confide.upstream.kinds.chunks import ChunkEncoder
from gateway_app import MODEL, ScriptedGateway, answering, assert_receipted, chat, finish, serving_scripted, token
from scripted import CLOSE, HANG, LAST_CHUNK, RESET, Script, response, sse_head

SLOTS = 4
MODELS = (Model(id=MODEL, upstream_model="scripted"),)
SHORT = Timeouts(first_byte_s=0.05, idle_s=0.05)

matrix = pytest.mark.parametrize(
    ("stream", "n"),
    [(False, 1), (False, 2), (True, 1), (True, 2)],
    ids=["buffered", "buffered-n2", "streamed", "streamed-n2"],
)
each_n = pytest.mark.parametrize("n", [1, 2])


async def ask(gateway: ScriptedGateway, **members: object) -> httpx2.Response:
    return await gateway.client.post("/v1/chat/completions", json=chat("Hello", **members))


async def assert_ended(
    gateway: ScriptedGateway, requests: int = 1, *, has_receipt: bool | None = None, **fields: object
) -> None:
    """So many requests are over, with one line each, the last with these fields; nothing is held."""
    await gateway.outcome(requests)
    line = gateway.last_line()
    assert {name: line[name] for name in fields} == fields
    if has_receipt is not None:
        assert (line["receipt"] is not None) is has_receipt
    assert len(gateway.outcomes()) == requests
    assert (gateway.slots.free, gateway.slots.waiting, gateway.channel.live) == (SLOTS, 0, 0)
    assert gateway.lifecycle.in_flight == 0


async def assert_error_receipted(
    gateway: ScriptedGateway, answer: httpx2.Response, outcome: Outcome = "failed", *, is_forwarded: bool = True
) -> None:
    """The error was answered with the id of a receipt over its body; it named no chat id."""
    receipt = await assert_receipted(gateway, answer.content, outcome, is_forwarded=is_forwarded)
    assert answer.headers["x-receipt-id"] == receipt.members.receipt_id
    assert receipt.members.chat_id is None


def error_of(answer: httpx2.Response) -> dict[str, object]:
    error: dict[str, object] = answer.json()["error"]
    return error


def events(body: bytes) -> list[bytes]:
    return [part.removeprefix(b"data: ") for part in body.split(b"\n\n") if part.startswith(b"data: ")]


def assert_ends_with_error(body: bytes, type_: str, code: int) -> None:
    """The tail of wire contract 2.7, byte for byte but for the text of its message."""
    *_, error, done = events(body)
    assert done == b"[DONE]"
    document = json.loads(error)
    assert document["error"] == {"message": document["error"]["message"], "type": type_, "code": code, "param": None}
    assert body.endswith(b"\n\n\n\ndata: " + error + b"\n\n" + DONE)


@matrix
async def test_a_whole_answer(tmp_path: Path, stream: bool, n: int) -> None:
    async with serving_scripted(tmp_path, answering("one", "two")) as gateway:
        answer = await ask(gateway, stream=stream, n=n)
        assert answer.status_code == 200
        await assert_ended(gateway, outcome="complete", reason=None, status=200, stream=stream)
        assert answer.headers["x-receipt-id"] == gateway.last_line()["receipt"]
        await assert_receipted(gateway, answer.content, "complete")


Failure = tuple[Script, int, str]

FAILURES_BEFORE_A_TOKEN: dict[str, Failure] = {
    "cut before the first byte": ([CLOSE], 502, "upstream_error"),
    "reset before the first byte": ([RESET], 502, "upstream_error"),
    "cut in the head": ([sse_head()[:20], CLOSE], 502, "upstream_error"),
    "cut after the head": ([sse_head(), CLOSE], 502, "upstream_error"),
    "ended without an answer": ([sse_head(), LAST_CHUNK], 502, "upstream_error"),
    "not HTTP": ([b"SSH-2.0\r\n\r\n", CLOSE], 502, "upstream_error"),
    "its own error": ([response(b'{"error":{"code":500}}', status=b"500 Oops")], 502, "upstream_error"),
    "silent": ([HANG], 504, "timeout_error"),
    "silent after the head": ([sse_head(), HANG], 504, "timeout_error"),
}
FAILURES_AFTER_A_TOKEN: dict[str, Failure] = {
    "cut": ([sse_head(), token("one"), CLOSE], 502, "upstream_error"),
    "reset": ([sse_head(), token("one"), RESET], 502, "upstream_error"),
    "cut inside an event": ([sse_head(), token("one"), token("two")[:-20], CLOSE], 502, "upstream_error"),
    "ended without a finish": ([sse_head(), token("one"), LAST_CHUNK], 502, "upstream_error"),
    "silent": ([sse_head(), token("one"), HANG], 504, "timeout_error"),
}


def cases(failures: dict[str, Failure]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("script", "status", "type_"), list(failures.values()), ids=list(failures))


@matrix
@cases(FAILURES_BEFORE_A_TOKEN)
async def test_the_engine_fails_before_its_first_token(
    tmp_path: Path, script: Script, status: int, type_: str, stream: bool, n: int
) -> None:
    async with serving_scripted(tmp_path, script, timeouts=SHORT) as gateway:
        answer = await ask(gateway, stream=stream, n=n)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/json"
        assert error_of(answer)["type"] == type_
        await assert_ended(gateway, outcome="failed", reason=type_, status=status)
        await assert_error_receipted(gateway, answer)


@each_n
@cases(FAILURES_AFTER_A_TOKEN)
async def test_the_engine_fails_within_a_stream(
    tmp_path: Path, script: Script, status: int, type_: str, n: int
) -> None:
    async with serving_scripted(tmp_path, script, timeouts=SHORT) as gateway:
        answer = await ask(gateway, stream=True, n=n)
        assert answer.status_code == 200
        assert b'"content":"one"' in answer.content
        assert_ends_with_error(answer.content, type_, status)
        await assert_ended(gateway, outcome="truncated", reason=type_, has_receipt=True, status=200)
        await assert_receipted(gateway, answer.content, "truncated")


@each_n
@cases(FAILURES_AFTER_A_TOKEN)
async def test_half_a_buffered_answer_is_never_given_for_a_whole_one(
    tmp_path: Path, script: Script, status: int, type_: str, n: int
) -> None:
    async with serving_scripted(tmp_path, script, timeouts=SHORT) as gateway:
        answer = await ask(gateway, n=n)
        assert answer.status_code == status
        assert error_of(answer)["type"] == type_
        assert b"one" not in answer.content
        await assert_ended(gateway, outcome="failed", reason=type_, status=status)
        await assert_error_receipted(gateway, answer)


async def test_one_choice_fails_and_the_other_is_stopped(tmp_path: Path) -> None:
    scripts: Sequence[Script] = ([sse_head(), token("one"), HANG], [sse_head(), token("two"), CLOSE])
    async with serving_scripted(tmp_path, *scripts) as gateway:
        answer = await ask(gateway, stream=True, n=2)
        assert_ends_with_error(answer.content, "upstream_error", 502)
        await gateway.engine.left(1)
        await assert_ended(gateway, outcome="truncated", has_receipt=True)


@matrix
async def test_the_engine_cannot_be_reached(tmp_path: Path, stream: bool, n: int) -> None:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        (tmp_path / "engine.sock").unlink()
        answer = await ask(gateway, stream=stream, n=n)
        assert answer.status_code == 502
        assert error_of(answer)["type"] == "upstream_error"
        await assert_ended(gateway, outcome="failed", reason="upstream_error")
        await assert_error_receipted(gateway, answer)


@matrix
async def test_the_engine_is_not_ready(tmp_path: Path, stream: bool, n: int) -> None:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        gateway.switch.is_ready = False
        answer = await ask(gateway, stream=stream, n=n)
        assert answer.status_code == 503
        assert error_of(answer)["type"] == "service_unavailable"
        assert int(answer.headers["retry-after"]) > 0
        await assert_ended(gateway, outcome="refused", reason="service_unavailable")
        await assert_error_receipted(gateway, answer, "refused", is_forwarded=False)
        assert not gateway.engine.requests
        gateway.switch.is_ready = True
        assert (await ask(gateway, stream=stream, n=n)).status_code == 200


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (b"{", {}, 400, "invalid_request_error"),
        (json.dumps(chat(stream=True) | {"model": "other"}).encode(), {}, 404, "model_not_found"),
        (json.dumps(chat(n=99, stream=True)).encode(), {}, 400, "invalid_request_error"),
        (json.dumps(chat()).encode(), {"X-Upstream-Verification": "x"}, 400, "invalid_request_error"),
        (json.dumps(chat("x" * 5000)).encode(), {}, 413, "invalid_request_error"),
    ],
    ids=["no JSON", "unknown model", "n", "retired header", "too large"],
)
async def test_a_refusal(tmp_path: Path, body: bytes, headers: dict[str, str], status: int, reason: str) -> None:
    config = Config(model=MODELS, server=Server(max_body_bytes=4096))
    async with serving_scripted(tmp_path, answering("Hi"), config=config) as gateway:
        answer = await gateway.client.post("/v1/chat/completions", content=body, headers=headers)
        assert answer.status_code == status
        await assert_ended(gateway, outcome="refused", reason=reason, has_receipt=False, status=status)
        assert "x-receipt-id" not in answer.headers
        assert not gateway.engine.requests


async def test_a_request_without_its_key_is_refused(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        gateway.store.create_key("somebody")
        await gateway.authenticator.refresh()
        assert (await ask(gateway)).status_code == 401
        await assert_ended(gateway, outcome="refused", reason="authentication_error", has_receipt=False, key_id=None)


class Bug(Exception):
    """Something that nobody foresaw."""


def broken(*_: object, **__: object) -> bytes:
    raise Bug("the text of the prompt")


def assert_logged_by_type_only(gateway: ScriptedGateway) -> None:
    assert '"event":"fault","error":"Bug"' in gateway.log_text()
    assert "the text of the prompt" not in gateway.log_text()


@matrix
async def test_a_fault_of_ours_is_a_500(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool, n: int) -> None:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        monkeypatch.setattr(Exchange, "read", broken)
        answer = await ask(gateway, stream=stream, n=n)
        assert answer.status_code == 500
        assert error_of(answer) == error_of(answer) | {"type": "internal_error", "code": None, "param": None}
        await assert_ended(gateway, outcome="failed", reason="internal_error")
        await assert_error_receipted(gateway, answer)
        assert_logged_by_type_only(gateway)


async def test_a_fault_of_ours_within_a_stream_is_its_tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving_scripted(tmp_path, [sse_head(), token("one"), token("two"), HANG]) as gateway:
        encode = ChunkEncoder.encode

        def encode_one(self: ChunkEncoder, choice: object, deltas: list[object]) -> bytes:
            data = encode(self, choice, deltas)  # type: ignore[arg-type]  # passed through
            return broken() if b"two" in data else data

        monkeypatch.setattr(ChunkEncoder, "encode", encode_one)
        answer = await ask(gateway, stream=True)
        assert_ends_with_error(answer.content, "internal_error", 500)
        await gateway.engine.left(1)
        await assert_ended(gateway, outcome="truncated", reason="internal_error", has_receipt=True)
        await assert_receipted(gateway, answer.content, "truncated")
        assert_logged_by_type_only(gateway)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_of_the_store_leaves_no_whole_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        monkeypatch.setattr(gateway.store, "commit", broken)
        answer = await ask(gateway, stream=stream)
        if stream:
            assert_ends_with_error(answer.content, "internal_error", 500)
        else:
            assert (answer.status_code, error_of(answer)["type"]) == (500, "internal_error")
        outcome = "truncated" if stream else "failed"
        await assert_ended(gateway, outcome=outcome, reason="internal_error", has_receipt=False)
        assert_logged_by_type_only(gateway)


async def test_the_server_is_torn_down(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, [sse_head(), HANG]) as gateway:
        asking = asyncio.create_task(ask(gateway))
        await gateway.engine.asked(1)
        (entry,) = gateway.lifecycle._in_flight
        entry._task.cancel()  # as the server does with what outlives its own shutdown
        assert (await asking).status_code == 500
        await gateway.engine.left(1)
        await assert_ended(gateway, outcome="failed", reason="torn_down", has_receipt=False)


async def test_the_server_is_torn_down_while_the_receipt_of_a_failure_is_stuck_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving_scripted(tmp_path, [CLOSE]) as gateway:
        committing = asyncio.Event()

        async def stuck(_: object) -> None:
            committing.set()
            await asyncio.get_running_loop().create_future()

        monkeypatch.setattr(gateway.store, "commit", stuck)
        asking = asyncio.create_task(ask(gateway))
        await committing.wait()
        (entry,) = gateway.lifecycle._in_flight
        entry._task.cancel()
        assert (await asking).status_code == 500
        await assert_ended(gateway, outcome="failed", reason="torn_down", has_receipt=False)


async def test_what_a_fault_said_does_not_leave_with_the_cancellation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server writes a cancellation with all that led to it."""
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        committing = asyncio.Event()

        async def stuck(_: object) -> None:
            committing.set()
            await asyncio.get_running_loop().create_future()

        monkeypatch.setattr(Exchange, "read", broken)
        monkeypatch.setattr(gateway.store, "commit", stuck)
        asking = asyncio.create_task(ask(gateway))
        await committing.wait()
        (entry,) = gateway.lifecycle._in_flight
        entry._task.cancel()
        assert (await asking).status_code == 500
        await assert_ended(gateway, outcome="failed", reason="torn_down", has_receipt=False)
        assert_logged_by_type_only(gateway)
    out, err = capfd.readouterr()
    written = caplog.text + out + err
    assert "CancelledError" in written  # the server did write of it
    assert "the text of the prompt" not in written


def commenting(every_s: float, **limits: float) -> Config:
    return Config(model=MODELS, server=Server(keepalive_comment_s=every_s), limits=Limits(**limits))  # type: ignore[arg-type]  # seconds


@each_n
async def test_comments_while_the_model_thinks_are_part_of_what_is_proven(tmp_path: Path, n: int) -> None:
    gate = asyncio.Event()
    script: Script = [sse_head(), gate, token("one"), finish(), LAST_CHUNK]
    async with (
        serving_scripted(tmp_path, script, config=commenting(0.01)) as gateway,
        gateway.client.stream("POST", "/v1/chat/completions", json=chat("Hello", stream=True, n=n)) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream"
        body = b""
        async for part in answer.aiter_raw():
            body += part
            if body.count(KEEP_ALIVE) == 3:
                gate.set()
        assert body.startswith(KEEP_ALIVE * 3)
        assert body.endswith(DONE)
        await assert_ended(gateway, outcome="complete", has_receipt=True)
        await assert_receipted(gateway, body, "complete")


async def test_comments_between_frames(tmp_path: Path) -> None:
    gate = asyncio.Event()
    script: Script = [sse_head(), token("one"), gate, token("two"), finish(), LAST_CHUNK]
    async with serving_scripted(tmp_path, script, config=commenting(0.01)) as gateway:
        body = b""
        async with gateway.client.stream("POST", "/v1/chat/completions", json=chat("Hello", stream=True)) as answer:
            async for part in answer.aiter_raw():
                body += part
                if b"one" in body and KEEP_ALIVE in body.partition(b"one")[2]:
                    gate.set()
        assert events(body.replace(KEEP_ALIVE, b""))[-1] == b"[DONE]"
        await assert_ended(gateway, outcome="complete")
        await assert_receipted(gateway, body, "complete")


async def test_comments_while_it_waits_for_a_slot_and_an_error_tail_when_none_comes(tmp_path: Path) -> None:
    config = commenting(0.01, queue_timeout_s=0.1)
    async with serving_scripted(tmp_path, [HANG], config=config) as gateway:
        held = [asyncio.create_task(ask(gateway)) for _ in range(SLOTS)]
        await gateway.engine.asked(SLOTS)
        answer = await ask(gateway, stream=True)
        assert answer.status_code == 200
        assert answer.content.startswith(KEEP_ALIVE)
        assert_ends_with_error(answer.content, "service_unavailable", 503)
        assert gateway.last_line()["outcome"] == "truncated"
        await assert_receipted(gateway, answer.content, "truncated", is_forwarded=False)
        for each in held:
            each.cancel()
        await gateway.engine.left(SLOTS)


async def test_a_failure_after_a_comment_is_an_error_tail(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with serving_scripted(tmp_path, [gate, CLOSE], config=commenting(0.01)) as gateway:
        body = b""
        async with gateway.client.stream("POST", "/v1/chat/completions", json=chat("Hello", stream=True)) as answer:
            async for part in answer.aiter_raw():
                body += part
                gate.set()
        assert answer.status_code == 200
        assert body.startswith(KEEP_ALIVE)
        assert_ends_with_error(body, "upstream_error", 502)
        await assert_ended(gateway, outcome="truncated", reason="upstream_error", has_receipt=True)
        await assert_receipted(gateway, body, "truncated")


async def test_a_refusal_and_a_buffered_answer_know_no_comments(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, answering("Hi"), config=commenting(0.001)) as gateway:
        assert (await ask(gateway, stream=True, n=99)).status_code == 400
        assert (await ask(gateway)).json()["choices"][0]["message"]["content"] == "Hi"


async def test_a_stream_that_is_not_idle_has_no_comments(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, answering("one", "two"), config=commenting(30)) as gateway:
        answer = await ask(gateway, stream=True)
        assert KEEP_ALIVE not in answer.content
        await assert_ended(gateway, outcome="complete")


async def test_the_client_leaves_among_comments(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, [HANG], config=commenting(0.01)) as gateway:
        async with gateway.client.stream("POST", "/v1/chat/completions", json=chat("Hello", stream=True)) as answer:
            await anext(answer.aiter_raw())
        await gateway.engine.left(1)
        await assert_ended(gateway, outcome="client_closed", has_receipt=True)
