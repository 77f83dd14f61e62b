"""The client leaves. Wherever its request is by then, the engine sees it within 100 ms, the slot is free again, the log
has one line, and what the client had read is proven byte for byte.
"""

import asyncio
import contextlib
import json
import socket
import sqlite3
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from confide.config import Config, Model, Server
from confide.gateway.lifecycle import InFlight
from confide.gateway.outgoing import Outgoing
from confide.gateway.pipeline import PromptRoute
from confide.gateway.wire import Connection, Receive, Scope, Send, connection_of
from confide.store.base import Proof
from gateway_app import (
    MODEL,
    ScriptedGateway,
    answering,
    assert_receipted,
    chat,
    finish,
    raw_post,
    serving_scripted,
    token,
)
from scripted import ABORT_WITHIN_S, CLOSE, HANG, LAST_CHUNK, REPEAT, Script, sse_head

SLOTS = 4

matrix = pytest.mark.parametrize(
    ("stream", "n"),
    [(False, 1), (False, 2), (True, 1), (True, 2)],
    ids=["buffered", "buffered-n2", "streamed", "streamed-n2"],
)
each_n = pytest.mark.parametrize("n", [1, 2])


class RawClient:
    """A client that decides when it reads and when it leaves. `received`: the body so far, without chunk framing."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._is_head_read = False
        self.received = b""

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def read_until(self, is_enough: Callable[[bytes], bool]) -> None:
        """Read parts of a stream until the body so far satisfies `is_enough`."""
        async with asyncio.timeout(5):
            if not self._is_head_read:
                await self._reader.readuntil(b"\r\n\r\n")
                self._is_head_read = True
            while not is_enough(self.received):
                size = int(await self._reader.readline(), 16)
                self.received += (await self._reader.readexactly(size + 2))[:-2]

    def leave(self) -> float:
        """Close the connection; the loop time at which that was."""
        self._writer.transport.abort()
        return asyncio.get_running_loop().time()

    def send_no_more(self) -> float:
        """Close one direction of the connection; the loop time at which that was."""
        self._writer.write_eof()
        return asyncio.get_running_loop().time()


@contextlib.asynccontextmanager
async def client_of(gateway: ScriptedGateway) -> AsyncIterator[RawClient]:
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()


def body_of(stream: bool, n: int, text: str = "Hello") -> bytes:
    return json.dumps(chat(text, stream=stream, n=n)).encode()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def assert_settled(gateway: ScriptedGateway, requests: int) -> None:
    """Every request is over, with one line each; nothing is held."""
    await gateway.outcome(requests)
    await until(lambda: gateway.lifecycle.in_flight == 0)
    assert len(gateway.outcomes()) == requests
    assert (gateway.slots.free, gateway.slots.waiting, gateway.channel.live) == (SLOTS, 0, 0)


async def assert_aborted(gateway: ScriptedGateway, left_at: float, n: int) -> None:
    await gateway.engine.left(n)
    assert len(gateway.engine.departures) == n
    assert max(departure.at for departure in gateway.engine.departures) - left_at < ABORT_WITHIN_S


def line_says(gateway: ScriptedGateway, *, has_receipt: bool | None = None, **fields: object) -> bool:
    line = gateway.last_line()
    is_receipt_right = has_receipt is None or (line["receipt"] is not None) is has_receipt
    return is_receipt_right and {name: line[name] for name in fields} == fields


def is_written(*texts: str, n: int) -> Callable[[bytes], bool]:
    return lambda received: all(received.count(f'"content":"{text}"'.encode()) == n for text in texts)


@matrix
async def test_while_the_body_uploads(tmp_path: Path, stream: bool, n: int) -> None:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        async with client_of(gateway) as client:
            client.send(raw_post(body_of(stream, n))[:-10])
            await until(lambda: gateway.lifecycle.in_flight == 1)
        await assert_settled(gateway, 1)
        assert line_says(gateway, outcome="client_closed", reason="nothing_sent", has_receipt=False, status=None)
        assert not gateway.engine.requests


@matrix
async def test_a_queued_request_never_reaches_the_engine(tmp_path: Path, stream: bool, n: int) -> None:
    gate = asyncio.Event()
    async with serving_scripted(tmp_path, [gate, *answering("Hi")]) as gateway:
        held = [asyncio.create_task(gateway.client.post("/v1/chat/completions", json=chat("held"))) for _ in range(4)]
        await gateway.engine.asked(SLOTS)
        async with client_of(gateway) as client:
            client.send(raw_post(body_of(stream, n)))
            await until(lambda: gateway.slots.waiting == n)
            client.leave()
            assert await gateway.outcome(1) == "client_closed"
        assert line_says(gateway, reason="nothing_sent", has_receipt=False, status=None)
        assert gateway.slots.waiting == 0
        gate.set()
        assert [(await each).status_code for each in held] == [200] * SLOTS
        await assert_settled(gateway, 1 + SLOTS)
        assert len(gateway.engine.requests) == SLOTS


@matrix
@pytest.mark.parametrize("script", [[HANG], [sse_head(), HANG]], ids=["before-the-headers", "before-the-first-token"])
async def test_before_the_first_token(tmp_path: Path, script: Script, stream: bool, n: int) -> None:
    async with serving_scripted(tmp_path, script) as gateway, client_of(gateway) as client:
        client.send(raw_post(body_of(stream, n)))
        await gateway.engine.asked(n)
        await assert_aborted(gateway, client.leave(), n)
        await assert_settled(gateway, 1)
        assert line_says(gateway, outcome="client_closed", reason=None, status=None)
        receipt = await assert_receipted(gateway, b"", "client_closed")  # inference was given the prompt
        assert receipt.members.chat_id is None


@each_n
async def test_a_buffered_answer_half_made(tmp_path: Path, n: int) -> None:
    script: Script = [sse_head(), token("one"), token("two"), HANG]
    async with serving_scripted(tmp_path, script) as gateway, client_of(gateway) as client:
        client.send(raw_post(body_of(False, n)))
        await gateway.engine.asked(n)
        for _ in range(20):  # turns of the loop, in which both tokens come in
            await asyncio.sleep(0)
        await assert_aborted(gateway, client.leave(), n)
        await assert_settled(gateway, 1)
        assert line_says(gateway, outcome="client_closed", reason=None, status=None)
        receipt = await assert_receipted(gateway, b"", "client_closed")  # inference was given the prompt
        assert receipt.members.chat_id is None


@each_n
async def test_what_was_read_of_a_stream_is_proven(tmp_path: Path, n: int) -> None:
    script: Script = [sse_head(), token("one"), token("two"), HANG]
    async with serving_scripted(tmp_path, script) as gateway, client_of(gateway) as client:
        body = body_of(True, n)
        client.send(raw_post(body))
        await client.read_until(is_written("one", "two", n=n))
        await assert_aborted(gateway, client.leave(), n)
        await assert_settled(gateway, 1)
        assert line_says(gateway, outcome="client_closed", reason=None, has_receipt=True, status=200)
        await assert_receipted(gateway, client.received, "client_closed", sent=body)


@each_n
async def test_a_client_that_does_not_read_and_leaves(tmp_path: Path, n: int) -> None:
    script: Script = [sse_head(), REPEAT, token("x" * 4000)]
    async with serving_scripted(tmp_path, script) as gateway, client_of(gateway) as client:
        client.send(raw_post(body_of(True, n)))
        await until(lambda: any(not connection.writable.is_set() for connection in gateway.engine.open))
        await assert_aborted(gateway, client.leave(), n)
        await assert_settled(gateway, 1)
        assert line_says(gateway, outcome="client_closed", reason=None, has_receipt=True)


@contextlib.contextmanager
def commits_held(home: Path) -> Iterator[None]:
    """As while another process writes to the database: a commit waits until the end of the block."""
    with contextlib.closing(sqlite3.connect(home / "confide.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def the_one_in_flight(gateway: ScriptedGateway) -> InFlight:
    (entry,) = gateway.lifecycle._in_flight  # nothing else shows that a commit has begun, or that a departure was seen
    return entry


@each_n
async def test_during_the_commit_of_a_buffered_answer(tmp_path: Path, n: int) -> None:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway, client_of(gateway) as client:
        with commits_held(tmp_path):
            client.send(raw_post(body_of(False, n)))
            await gateway.engine.asked(n)
            entry = the_one_in_flight(gateway)
            await until(lambda: entry.is_sealed)
            client.leave()
            await until(lambda: entry.is_client_gone)
        await assert_settled(gateway, 1)
        assert line_says(gateway, outcome="client_closed", reason="left_before_the_answer")
        await assert_receipted(gateway, b"", "client_closed")


@each_n
async def test_during_the_commit_of_a_stream_the_proof_is_over_what_was_read(tmp_path: Path, n: int) -> None:
    async with serving_scripted(tmp_path, answering("one", "two")) as gateway, client_of(gateway) as client:
        with commits_held(tmp_path):
            client.send(raw_post(body_of(True, n)))
            await client.read_until(lambda received: received.count(b'"finish_reason":"stop"') == n)
            entry = the_one_in_flight(gateway)
            await until(lambda: entry.is_sealed)
            client.leave()
            await until(lambda: entry.is_client_gone)
        await assert_settled(gateway, 1)
        assert line_says(gateway, outcome="client_closed", reason=None, has_receipt=True)
        await assert_receipted(gateway, client.received, "client_closed")


# The connection ends in the very moment before something is handed to the socket: nothing had a turn to notice.


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """The connection of each request for an answer, in order, as the service sees it."""
    seen: list[Connection] = []
    answer = PromptRoute.__call__

    async def noting(self: PromptRoute, scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(connection_of(scope))
        await answer(self, scope, receive, send)

    monkeypatch.setattr(PromptRoute, "__call__", noting)
    return seen


def lose_after_the_commit(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch, connections: list[Connection]
) -> None:
    commit = gateway.store.commit

    async def committing(proof: Proof) -> None:
        await commit(proof)
        connections[-1].abort()

    monkeypatch.setattr(gateway.store, "commit", committing)


@each_n
async def test_lost_between_the_commit_and_the_buffered_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connections: list[Connection], n: int
) -> None:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway, client_of(gateway) as client:
        lose_after_the_commit(gateway, monkeypatch, connections)
        body = body_of(False, n)
        client.send(raw_post(body))
        await assert_settled(gateway, 1)
        assert line_says(gateway, outcome="client_closed", reason="left_before_the_answer")
        await assert_receipted(gateway, b"", "client_closed", sent=body)


@each_n
async def test_lost_between_the_commit_and_the_end_of_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connections: list[Connection], n: int
) -> None:
    async with serving_scripted(tmp_path, answering("one", "two")) as gateway, client_of(gateway) as client:
        lose_after_the_commit(gateway, monkeypatch, connections)
        body = body_of(True, n)
        client.send(raw_post(body))
        await client.read_until(lambda received: received.count(b'"finish_reason":"stop"') == n)
        await assert_settled(gateway, 1)
        assert line_says(gateway, outcome="client_closed", reason=None)
        await assert_receipted(gateway, client.received, "client_closed", sent=body)


async def test_lost_between_the_commit_and_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connections: list[Connection]
) -> None:
    async with serving_scripted(tmp_path, [CLOSE]) as gateway, client_of(gateway) as client:
        lose_after_the_commit(gateway, monkeypatch, connections)
        client.send(raw_post(body_of(False, 1)))
        await assert_settled(gateway, 1)
        assert line_says(gateway, outcome="client_closed", reason="upstream_error")
        await assert_receipted(gateway, b"", "client_closed")


@each_n
async def test_lost_before_a_frame_of_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connections: list[Connection], n: int
) -> None:
    write = Outgoing.write
    script: Script = [sse_head(), token("one"), token("two"), token("three"), finish(), LAST_CHUNK]

    async def losing(self: Outgoing, data: bytes) -> None:
        if b'"two"' in data:
            connections[-1].abort()
        await write(self, data)

    monkeypatch.setattr(Outgoing, "write", losing)
    async with serving_scripted(tmp_path, script) as gateway, client_of(gateway) as client:
        client.send(raw_post(body_of(True, n)))
        with contextlib.suppress(asyncio.IncompleteReadError, ValueError, ConnectionError):
            await client.read_until(lambda received: b'"two"' in received)
        await assert_settled(gateway, 1)
        assert b'"two"' not in client.received
        assert line_says(gateway, outcome="client_closed", reason=None)
        await assert_receipted(gateway, client.received, "client_closed")


async def test_an_id_that_was_given_out_has_a_receipt_although_nothing_followed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connections: list[Connection]
) -> None:
    """Between the headers, sent for a comment while the request waits for a slot, and that comment."""
    begin = Outgoing.begin

    async def losing(self: Outgoing) -> None:
        await begin(self)
        connections[-1].abort()

    monkeypatch.setattr(Outgoing, "begin", losing)
    config = Config(model=(Model(id=MODEL, upstream_model="scripted"),), server=Server(keepalive_comment_s=0.05))
    async with serving_scripted(tmp_path, [HANG], config=config) as gateway, client_of(gateway) as client:
        held = [asyncio.create_task(gateway.client.post("/v1/chat/completions", json=chat("held"))) for _ in range(4)]
        await gateway.engine.asked(SLOTS)
        client.send(raw_post(body := body_of(True, 1)))
        assert await gateway.outcome(1) == "client_closed"
        await assert_receipted(gateway, b"", "client_closed", sent=body, is_forwarded=False)
        for each in held:
            each.cancel()
        await gateway.engine.left(SLOTS)


async def test_a_frame_that_the_socket_refuses_is_not_counted_as_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client resets the connection, and before anything tells the service so it writes the next frame."""
    write, loop = Outgoing.write, asyncio.get_running_loop()
    script: Script = [sse_head(), token("one"), gate := asyncio.Event(), token("two"), HANG]
    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.setblocking(False)

    async def resetting(self: Outgoing, data: bytes) -> None:
        if b'"two"' in data:
            client.close()
        await write(self, data)

    monkeypatch.setattr(Outgoing, "write", resetting)
    async with serving_scripted(tmp_path, script) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        await loop.sock_connect(client, (host, int(port)))
        await loop.sock_sendall(client, raw_post(body := body_of(True, 1)))
        received = b""
        while not received.endswith(b"\n\n\r\n"):
            received += await loop.sock_recv(client, 64 * 1024)
        gate.set()
        await assert_settled(gateway, 1)
        assert line_says(gateway, outcome="client_closed", reason=None)
        _, _, chunks = received.partition(b"\r\n\r\n")
        await assert_receipted(gateway, b"".join(chunks.split(b"\r\n")[1::2]), "client_closed", sent=body)


@each_n
async def test_a_client_that_closes_its_sending_side_has_left(tmp_path: Path, n: int) -> None:
    script: Script = [sse_head(), token("one"), HANG]
    async with serving_scripted(tmp_path, script) as gateway, client_of(gateway) as client:
        client.send(raw_post(body_of(True, n)))
        await client.read_until(is_written("one", n=n))
        await assert_aborted(gateway, client.send_no_more(), n)
        await assert_settled(gateway, 1)
        assert line_says(gateway, outcome="client_closed", reason=None)
        await assert_receipted(gateway, client.received, "client_closed")
