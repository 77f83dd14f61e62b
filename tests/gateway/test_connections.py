"""What clients do with a connection: pipelining, nonsense, and reading slowly or not at all."""

import asyncio
import json
import socket
from pathlib import Path

import pytest

from gateway_app import answering, chat, raw_connection, raw_post, serving_scripted, token
from scripted import ABORT_WITHIN_S, HANG, REPEAT, sse_head

BUFFERED = raw_post(json.dumps(chat()).encode())
STREAMED = raw_post(json.dumps(chat(stream=True)).encode())


@pytest.mark.parametrize("request_bytes", [BUFFERED, STREAMED], ids=["buffered", "streamed"])
async def test_a_client_that_pipelines_and_leaves_is_noticed(tmp_path: Path, request_bytes: bytes) -> None:
    async with serving_scripted(tmp_path, [sse_head(), token("a"), HANG]) as gateway:
        async with raw_connection(gateway.url) as client:
            await client.send(request_bytes + BUFFERED)
            await gateway.engine.asked(1)
            left_at = asyncio.get_running_loop().time()
        await gateway.engine.left(1)
        assert gateway.engine.departures[0].at - left_at < ABORT_WITHIN_S
        await gateway.outcome(1)
        assert gateway.slots.free == 4
        assert len(gateway.engine.requests) == 1  # the one that waited behind it never ran


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with (
        serving_scripted(tmp_path, answering("one"), answering("two")) as gateway,
        raw_connection(gateway.url) as client,
    ):
        await client.send(BUFFERED + BUFFERED)
        texts = [json.loads((await client.answer()).body)["choices"][0]["message"]["content"] for _ in range(2)]
        assert texts == ["one", "two"]


async def test_more_pipelined_requests_than_are_kept_end_the_connection(tmp_path: Path) -> None:
    async with (
        serving_scripted(tmp_path, [sse_head(), HANG]) as gateway,
        raw_connection(gateway.url) as client,
    ):
        await client.send(BUFFERED * 20)
        with pytest.raises((ConnectionResetError, EOFError)):
            await client.answer()
        await gateway.outcome(1)
        assert gateway.slots.free == 4


async def test_what_is_not_http_gets_an_error_in_our_shape(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, answering("x")) as gateway, raw_connection(gateway.url) as client:
        await client.send(b"this is not http\r\n\r\n")
        answer = await client.answer()
        assert answer.status == 400
        assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"
        assert answer.header("access-control-allow-origin") == "*"
        assert await client.is_closed()


async def test_a_client_that_does_not_read_loses_its_slot(tmp_path: Path) -> None:
    """The attacker opens as many streams as there are slots, and reads nothing."""
    async with serving_scripted(tmp_path, [sse_head(), REPEAT, token("x" * 8000)]) as gateway:
        watching = asyncio.create_task(gateway.lifecycle.stop_stalled(0.2))
        reader, writer = await asyncio.open_connection(
            *gateway.url.removeprefix("http://").split(":"), limit=1024, family=socket.AF_INET
        )
        writer.write(STREAMED)
        await gateway.engine.left(1)
        assert await gateway.outcome(1) == "client_closed"
        assert gateway.slots.free == 4
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1 << 30)
        writer.close()
        watching.cancel()


async def test_a_client_that_reads_slowly_keeps_its_stream(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, answering(*["x" * 8000] * 200)) as gateway:
        watching = asyncio.create_task(gateway.lifecycle.stop_stalled(0.5))
        received = 0
        async with gateway.client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
            async for data in answer.aiter_raw(16 * 1024):
                received += len(data)
                await asyncio.sleep(0.004)
        assert received > 200 * 8000
        assert await gateway.outcome(1) == "complete"
        watching.cancel()
