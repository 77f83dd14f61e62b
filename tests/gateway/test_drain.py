"""The service is told to end: what runs may finish within the window, what is new is turned away, and what takes too
long ends as an error that is proven, never as if it were whole.
"""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from confide.protocol.receipt import FORWARDED, parse_receipt
from gateway_app import (
    ScriptedGateway,
    answering,
    assert_receipted,
    chat,
    finish,
    raw_connection,
    raw_post,
    serving_scripted,
    token,
)
from scripted import HANG, LAST_CHUNK, REPEAT, Script, sse_head

PATH = "/v1/chat/completions"
WINDOW_S = 5.0  # more than any test needs
OVER = 0.01

matrix = pytest.mark.parametrize(
    ("stream", "n"),
    [(False, 1), (False, 2), (True, 1), (True, 2)],
    ids=["buffered", "buffered-n2", "streamed", "streamed-n2"],
)


def ask(gateway: ScriptedGateway, **members: object) -> "asyncio.Task[httpx2.Response]":
    return asyncio.create_task(gateway.client.post(PATH, json=chat("Hello", **members)))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def draining(gateway: ScriptedGateway, window_s: float) -> "asyncio.Task[None]":
    """Begin the drain."""
    task = asyncio.create_task(gateway.lifecycle.drain(window_s))
    await until(lambda: gateway.lifecycle.is_draining)
    return task


def assert_ended(gateway: ScriptedGateway, *, has_receipt: bool | None = None, **fields: object) -> None:
    """The drain is over, so the last request is: with one line, and nothing held."""
    line = gateway.last_line()
    assert {name: line[name] for name in fields} == fields
    if has_receipt is not None:
        assert (line["receipt"] is not None) is has_receipt
    assert_held_nothing(gateway)


def assert_held_nothing(gateway: ScriptedGateway) -> None:
    assert (gateway.slots.free, gateway.slots.waiting, gateway.channel.live) == (4, 0, 0)
    assert gateway.lifecycle.in_flight == 0


def assert_turned_away(answer: httpx2.Response) -> None:
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "service_unavailable"
    assert int(answer.headers["retry-after"]) > 0


def error_in_tail(body: bytes) -> dict[str, object]:
    """The error event before `[DONE]`."""
    *_, error, done, _ = body.split(b"\n\n")
    assert done == b"data: [DONE]"
    document: dict[str, dict[str, object]] = json.loads(error.removeprefix(b"data: "))
    return document["error"]


async def test_an_idle_service_drains_at_once(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        assert (await gateway.client.get("/health/ready")).json() == {"status": "ready"}
        began = asyncio.get_running_loop().time()
        await gateway.lifecycle.drain(60)
        assert asyncio.get_running_loop().time() - began < 10


@matrix
async def test_what_runs_finishes_whole_and_what_is_new_is_turned_away(tmp_path: Path, stream: bool, n: int) -> None:
    gate = asyncio.Event()
    script: Script = [sse_head(), token("one"), gate, token("two"), finish(), LAST_CHUNK]
    async with serving_scripted(tmp_path, script) as gateway:
        running = ask(gateway, stream=stream, n=n)
        await gateway.engine.asked(n)
        drain = await draining(gateway, WINDOW_S)
        ready = await gateway.client.get("/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "draining"})
        assert (await gateway.client.get("/health")).status_code == 200
        assert_turned_away(await ask(gateway, stream=stream))
        gate.set()
        answer = await running
        await drain
        assert answer.status_code == 200
        assert answer.content.count(b"two") == n
        assert_ended(gateway, outcome="complete", reason=None, has_receipt=True)
        assert gateway.outcomes() == ["refused", "complete"]
        assert len(gateway.engine.requests) == n
        await assert_receipted(gateway, answer.content, "complete")


@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_that_takes_too_long_ends_with_an_error_that_is_proven(tmp_path: Path, n: int) -> None:
    async with serving_scripted(tmp_path, [sse_head(), token("one"), HANG]) as gateway:
        body = b""
        async with gateway.client.stream("POST", PATH, json=chat("Hello", stream=True, n=n)) as answer:
            parts = answer.aiter_raw()
            while body.count(b'"content":"one"') < n:
                body += await anext(parts)
            drain = await draining(gateway, OVER)
            async for part in parts:
                body += part
        await drain
        assert error_in_tail(body)["type"] == "service_unavailable"
        assert error_in_tail(body)["code"] == 503
        await gateway.engine.left(n)
        assert_ended(gateway, outcome="truncated", reason="drain", has_receipt=True, status=200)
        await assert_receipted(gateway, body, "truncated")


@matrix
async def test_what_has_sent_nothing_when_the_window_ends_is_a_503(tmp_path: Path, stream: bool, n: int) -> None:
    async with serving_scripted(tmp_path, [sse_head(), HANG]) as gateway:
        running = ask(gateway, stream=stream, n=n)
        await gateway.engine.asked(n)
        await (await draining(gateway, OVER))
        answer = await running
        assert_turned_away(answer)
        await gateway.engine.left(n)
        assert_ended(gateway, outcome="failed", reason="drain", status=503)
        await assert_receipted(gateway, answer.content, "failed")


async def test_who_waits_in_the_queue_when_the_window_ends_never_starts(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, [HANG]) as gateway:
        running = [ask(gateway) for _ in range(4)]
        await gateway.engine.asked(4)
        waiting = ask(gateway, stream=True)
        await until(lambda: gateway.slots.waiting == 1)
        await (await draining(gateway, OVER))
        for each in (*running, waiting):
            assert_turned_away(await each)
        assert sorted(gateway.outcomes()) == ["failed"] * 4 + ["refused"]
        assert_held_nothing(gateway)
        receipt = await gateway.client.get(f"/v1/aci/receipts/{(await waiting).headers['x-receipt-id']}")
        assert parse_receipt(receipt.content).outcome == "refused"
        assert parse_receipt(receipt.content).body_hash(FORWARDED) is None
        assert len(gateway.engine.requests) == 4


async def test_an_upload_that_takes_too_long_is_a_503(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway, raw_connection(gateway.url) as client:
        await client.send(raw_post(json.dumps(chat()).encode())[:-5])
        await until(lambda: gateway.lifecycle.in_flight == 1)
        await (await draining(gateway, OVER))
        assert (await client.answer()).status == 503
        assert_ended(gateway, outcome="refused", reason="drain", has_receipt=False, status=503)


async def test_an_upload_that_ends_within_the_window_is_answered(tmp_path: Path) -> None:
    request = raw_post(json.dumps(chat()).encode())
    async with serving_scripted(tmp_path, answering("Hi")) as gateway, raw_connection(gateway.url) as client:
        await client.send(request[:-5])
        await until(lambda: gateway.lifecycle.in_flight == 1)
        drain = await draining(gateway, WINDOW_S)
        await client.send(request[-5:])
        assert (await client.answer()).status == 200
        await drain
        assert_ended(gateway, outcome="complete", has_receipt=True)


async def test_a_slow_reader_is_cut_off_after_exactly_the_bytes_that_are_proven(tmp_path: Path) -> None:
    """The stop finds its stream inside a write that waits: that frame was not handed over and is not in the receipt."""
    script: Script = [sse_head(), REPEAT, token("x" * 4000)]
    body = json.dumps(chat(stream=True)).encode()
    async with serving_scripted(tmp_path, script) as gateway, raw_connection(gateway.url) as client:
        await client.send(raw_post(body))
        await until(lambda: any(not connection.writable.is_set() for connection in gateway.engine.open))
        drain = await draining(gateway, OVER)
        await gateway.engine.left(1)
        answer = await client.answer()
        await drain
        assert error_in_tail(answer.body)["code"] == 503
        assert_ended(gateway, outcome="truncated", reason="drain", has_receipt=True)
        await assert_receipted(gateway, answer.body, "truncated")


async def test_the_client_leaves_while_the_service_drains(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, [sse_head(), token("one"), HANG]) as gateway:
        async with gateway.client.stream("POST", PATH, json=chat("Hello", stream=True)) as answer:
            await anext(answer.aiter_raw())
            drain = await draining(gateway, WINDOW_S)
        await drain
        assert_ended(gateway, outcome="client_closed", reason=None, has_receipt=True)
