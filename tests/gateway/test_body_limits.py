"""How much a client may send, and what happens to the connection when it sends more (wire contract 2, 4)."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from confide.config import Config, Server
from gateway_app import (
    MODEL,
    RawConnection,
    ScriptedGateway,
    answering,
    chat,
    raw_connection,
    raw_post,
    serving_scripted,
)

LIMIT = 10_000


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    model = msgspec.structs.replace(Config().model[0], id=MODEL)
    config = Config(server=Server(max_body_bytes=LIMIT), model=(model,))
    async with serving_scripted(tmp_path, answering("Hi"), config=config) as gateway:
        yield gateway


def body_of(size: int) -> bytes:
    """A valid request of exactly `size` bytes."""
    body = json.dumps(chat("")).encode()
    return json.dumps(chat("x" * (size - len(body)))).encode()


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])


CHUNKED_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: confide\r\nTransfer-Encoding: chunked\r\n\r\n"


async def assert_too_large(connection: RawConnection) -> None:
    answer = await connection.answer()
    assert answer.status == 413
    error = json.loads(answer.body)["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", None, None)
    assert str(LIMIT) in error["message"]


async def assert_still_usable(connection: RawConnection) -> None:
    await connection.send(raw_post(body_of(500)))
    assert (await connection.answer()).status == 200


async def test_a_body_at_the_limit_is_taken_and_one_byte_more_is_not(gateway: ScriptedGateway) -> None:
    for size, status in ((LIMIT - 1, 200), (LIMIT, 200), (LIMIT + 1, 413)):
        assert (await gateway.client.post("/v1/chat/completions", content=body_of(size))).status_code == status


@pytest.mark.parametrize("size", [LIMIT + 1, 100 * LIMIT])
async def test_after_a_body_too_large_the_connection_is_usable(gateway: ScriptedGateway, size: int) -> None:
    async with raw_connection(gateway.url) as connection:
        await connection.send(raw_post(body_of(size)))
        await assert_too_large(connection)
        await assert_still_usable(connection)
    assert len(gateway.engine.requests) == 1


@pytest.mark.parametrize("size", [1000, LIMIT + 1, 100 * LIMIT])
async def test_the_limit_holds_for_a_body_in_chunks(gateway: ScriptedGateway, size: int) -> None:
    async with raw_connection(gateway.url) as connection:
        await connection.send(CHUNKED_HEAD + chunked(body_of(size), 700))
        if size <= LIMIT:
            assert (await connection.answer()).status == 200
        else:
            await assert_too_large(connection)
        await assert_still_usable(connection)


async def test_an_upload_is_refused_before_all_of_it_was_sent(gateway: ScriptedGateway) -> None:
    body = body_of(100 * LIMIT)
    async with raw_connection(gateway.url) as connection:
        request = raw_post(body)
        head = len(request) - len(body)
        await connection.send(request[: head + 2 * LIMIT])
        await assert_too_large(connection)
        await connection.send(request[head + 2 * LIMIT :])
        await assert_still_usable(connection)


async def test_a_body_too_large_is_not_parsed(gateway: ScriptedGateway) -> None:
    answer = await gateway.client.post("/v1/chat/completions", content=b"{" * (LIMIT + 1))
    assert answer.status_code == 413


async def test_routes_without_a_body_ignore_one_that_is_sent(gateway: ScriptedGateway) -> None:
    async with raw_connection(gateway.url) as connection:
        request = raw_post(b"x" * (20 * LIMIT), target=b"/v1/models").replace(b"POST", b"GET", 1)
        await connection.send(request)
        assert (await connection.answer()).status == 200
        await assert_still_usable(connection)


async def test_a_wrong_method_with_a_large_body_leaves_the_connection_usable(gateway: ScriptedGateway) -> None:
    async with raw_connection(gateway.url) as connection:
        await connection.send(raw_post(b"x" * (20 * LIMIT)).replace(b"POST", b"PUT", 1))
        assert (await connection.answer()).status == 405
        await assert_still_usable(connection)


async def test_a_body_that_comes_a_byte_at_a_time_is_one_body(gateway: ScriptedGateway) -> None:
    async with raw_connection(gateway.url) as connection:
        for byte in raw_post(body_of(300)):
            await connection.send(bytes([byte]))
        assert (await connection.answer()).status == 200
    assert gateway.asked()["messages"] == json.loads(body_of(300))["messages"]


async def test_two_requests_in_one_write_get_two_answers(gateway: ScriptedGateway) -> None:
    async with raw_connection(gateway.url) as connection:
        await connection.send(raw_post(body_of(400)) + raw_post(body_of(LIMIT + 1)) + raw_post(body_of(400)))
        assert [(await connection.answer()).status for _ in range(3)] == [200, 413, 200]


@pytest.mark.parametrize(
    "header",
    [b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: -1", b"Content-Length: 5, 5", b"Content-Length: x"],
)
async def test_a_length_that_lies_is_refused_and_the_connection_closed(gateway: ScriptedGateway, header: bytes) -> None:
    async with raw_connection(gateway.url) as connection:
        await connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\nhello")
        assert (await connection.answer()).status == 400
        assert await connection.is_closed()
    assert gateway.engine.requests == []


async def test_a_length_beside_chunks_is_refused(gateway: ScriptedGateway) -> None:
    async with raw_connection(gateway.url) as connection:
        head = CHUNKED_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n")
        await connection.send(head + chunked(body_of(300), 100))
        assert (await connection.answer()).status == 400
        assert await connection.is_closed()
    assert gateway.engine.requests == []
