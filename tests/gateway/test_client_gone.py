"""The client leaves. Wherever its request is by then, the engine sees it within 100 ms, the slot is free again, the log
has one line, and what the client had read is proven byte for byte.
"""

import asyncio
import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from confide.gateway.lifecycle import InFlight
from confide.store.base import Proof
from gateway_app import ScriptedGateway, answering, chat, raw_post, serving_scripted, token
from scripted import HANG, REPEAT, Script, sse_head

ABORT_WITHIN_S = 0.1
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


def last_line(gateway: ScriptedGateway) -> dict[str, object]:
    line: dict[str, object] = json.loads(gateway.log_text().splitlines()[-1])
    return line


def line_says(gateway: ScriptedGateway, **fields: object) -> bool:
    line = last_line(gateway)
    return {name: line[name] for name in fields} == fields


async def proof_in_line(gateway: ScriptedGateway) -> Proof | None:
    return await gateway.store.proof(str(last_line(gateway)["id"]), now=int(time.time()))


def is_written(*texts: str, n: int) -> Callable[[bytes], bool]:
    return lambda received: all(received.count(f'"content":"{text}"'.encode()) == n for text in texts)


@matrix
async def test_while_the_body_uploads(tmp_path: Path, stream: bool, n: int) -> None:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        async with client_of(gateway) as client:
            client.send(raw_post(body_of(stream, n))[:-10])
            await until(lambda: gateway.lifecycle.in_flight == 1)
        await assert_settled(gateway, 1)
        assert line_says(gateway, outcome="client_closed", reason="nothing_sent", proof=False, status=None)
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
        assert line_says(gateway, reason="nothing_sent", proof=False, status=None)
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
        assert line_says(gateway, outcome="client_closed", reason="nothing_sent", proof=False, status=None)


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
        assert line_says(gateway, outcome="client_closed", reason="nothing_sent", proof=False, status=None)


@each_n
async def test_what_was_read_of_a_stream_is_proven(tmp_path: Path, n: int) -> None:
    script: Script = [sse_head(), token("one"), token("two"), HANG]
    async with serving_scripted(tmp_path, script) as gateway, client_of(gateway) as client:
        body = body_of(True, n)
        client.send(raw_post(body))
        await client.read_until(is_written("one", "two", n=n))
        await assert_aborted(gateway, client.leave(), n)
        await assert_settled(gateway, 1)
        assert line_says(gateway, outcome="client_closed", reason=None, proof=True, status=200)
        proof = await proof_in_line(gateway)
        assert proof is not None
        assert proof.outcome == "client_closed"
        assert proof.request_sha256 == hashlib.sha256(body).digest()
        assert proof.response_sha256 == hashlib.sha256(client.received).digest()


@each_n
async def test_a_client_that_does_not_read_and_leaves(tmp_path: Path, n: int) -> None:
    script: Script = [sse_head(), REPEAT, token("x" * 4000)]
    async with serving_scripted(tmp_path, script) as gateway, client_of(gateway) as client:
        client.send(raw_post(body_of(True, n)))
        await until(lambda: any(not connection.writable.is_set() for connection in gateway.engine.open))
        await assert_aborted(gateway, client.leave(), n)
        await assert_settled(gateway, 1)
        assert line_says(gateway, outcome="client_closed", reason=None, proof=True)


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
        assert line_says(gateway, outcome="client_closed", reason=None, proof=True)
        proof = await proof_in_line(gateway)
        assert proof is not None
        assert proof.outcome == "client_closed"
        assert proof.response_sha256 == hashlib.sha256(client.received).digest()
