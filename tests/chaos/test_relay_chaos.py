"""The whole gateway before an upstream that fails at every place where it can, and clients that do.

Kinds of upstream: `local` over TCP, and `aci` over TLS, verified before it is sent anything. Asserted of each case: what
the client has never looks whole unless it is all that the upstream sent; there is a receipt, its signature verifies and
its hashes are those of the bytes that the client sent and got; the outcome is the right one; there is one log line; and
nothing stays behind: no request in flight, no task, no socket beyond those of the pool, which afterwards serves as
before. Every table says how many cases it has.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import random
import socket
import stat
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import pytest
import uvloop

from attested_service import AttestedService, tls_context
from confide.protocol.canonical import digest_of
from confide.protocol.keyset import TlsKey
from confide.protocol.receipt import FORWARDED, RECEIVED, RETURNED, Receipt, parse_receipt, signature_fault
from confide.upstream.channel import Channel, TlsAddress
from gateway_app import RawAnswer, RawConnection, raw_connection, raw_post
from http_reference import Broken, read_response
from relay_app import DONE, MODEL, RelayGateway, delta, local, model, serving_upstreams, upstream
from scripted import (
    CLOSE,
    CUT,
    HANG,
    LAST_CHUNK,
    REPEAT,
    RESET,
    TURN,
    Script,
    ScriptedUpstream,
    SeenRequest,
    Step,
    chunk,
    response,
    sse_head,
)
from tls_files import TlsFiles, self_signed

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")

KINDS = ("local", "aci")
SHORT_S = 1.0  # of an upstream that says nothing more
POOL = 4
HOUR_S = 3600


@pytest.fixture(params=["uvloop", pytest.param("asyncio", marks=pytest.mark.long)], autouse=True)
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """The loop that the program runs on; the other one in the long run."""
    return asyncio.DefaultEventLoopPolicy() if request.param == "asyncio" else uvloop.EventLoopPolicy()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Answers, in parts that have names.

Parts = list[tuple[str, bytes]]
STATUS: Parts = [("status line", b"HTTP/1.1 200 OK\r\n")]
JSON_HEAD: Parts = [*STATUS, ("header", b"Content-Type: application/json\r\n")]
SSE_HEAD: Parts = [*STATUS, ("header", b"Content-Type: text/event-stream\r\n")]
WHOLE = b'{"id":"c","choices":[{"message":{"content":"Hi"}}]}'
FIRST = b'data: {"id":"c","choices":[{"delta":{"content":"Hi"}}]}\n\n'
LAST = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
EVENTS = (FIRST, LAST, DONE)


def in_chunks(*pieces: bytes) -> Parts:
    parts: Parts = [("framing header", b"Transfer-Encoding: chunked\r\n"), ("blank line", b"\r\n")]
    for piece in pieces:
        parts += [("chunk size", b"%x\r\n" % len(piece)), ("data", piece), ("between chunks", b"\r\n")]
    return [*parts, ("last chunk", b"0\r\n"), ("end", b"\r\n")]


BUFFERED = {
    "length": [*JSON_HEAD, ("framing header", b"Content-Length: 51\r\n"), ("blank line", b"\r\n"), ("data", WHOLE)],
    "chunks": [*JSON_HEAD, *in_chunks(WHOLE[:20], WHOLE[20:])],
    "to the end": [*JSON_HEAD, ("blank line", b"\r\n"), ("data", WHOLE)],
}
STREAMED = {
    "stream": [*SSE_HEAD, *in_chunks(*EVENTS)],
    "stream, split": [*SSE_HEAD, *in_chunks(FIRST[:30], FIRST[30:] + LAST[:9], LAST[9:] + DONE)],
    "stream after 103": [("interim", b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"), *SSE_HEAD, *in_chunks(*EVENTS)],
    "stream to the end": [*SSE_HEAD, ("blank line", b"\r\n"), ("data", b"".join(EVENTS))],
}
SHAPES = BUFFERED | STREAMED
SHORT = ("length", "stream")  # whose every byte is tried, in the short run too


def joined(parts: Parts) -> bytes:
    return b"".join(data for _, data in parts)


def delivered(parts: Parts, length: int) -> bytes:
    """The body bytes among the first bytes of a response."""
    body = b""
    for name, data in parts:
        body += data[:length] if name == "data" else b""
        length = max(0, length - len(data))
    return body


def places(parts: Parts) -> list[int]:
    """One offset of each class: before every part, after its first byte and within it, and after all."""
    found: set[int] = set()
    begin = 0
    for _, data in parts:
        found |= {begin, begin + 1, begin + len(data) // 2}
        begin += len(data)
    return sorted(found | {begin})


def whole_events(body: bytes) -> list[bytes]:
    """The events in `body` whose blank line has come, up to `[DONE]`. Line ends are LF or CRLF, blank lines alike."""
    events, text = [], body.replace(b"\r\n\r\n", b"\r\n\n")
    while b"\n\n" in text:
        end = text.index(b"\n\n") + 2
        events.append(text[:end])
        if text[:end].strip() == b"data: [DONE]":
            break
        text = text[end:]
    return events


# What the client is to have.


@dataclass(frozen=True)
class Want:
    """`body`: what comes of the upstream's own bytes. `error`: the type of the error that follows it, or stands alone."""

    outcome: str
    body: bytes = b""
    error: str | None = None
    status: int = 200


FAILED = Want("failed", error="upstream_error", status=502)
SLOW = Want("failed", error="timeout_error", status=504)
COMPLETE = Want("complete", WHOLE)
STREAM_COMPLETE = Want("complete", b"".join(EVENTS))


def broken(events: bytes, failed: Want = FAILED) -> Want:
    """After these events the stream breaks; without any, there is an error response."""
    return Want("truncated", events, failed.error) if events else failed


def wanted(shape: str, length: int, end: Step, kind: str) -> Want:
    """What the client has of an answer that ends `end` after `length` bytes."""
    parts = SHAPES[shape]
    body = delivered(parts, length)
    is_last = length == len(joined(parts))
    is_said = shape.endswith("to the end") and (end is CLOSE or (kind == "local" and end is CUT))
    failed = SLOW if end is HANG else FAILED
    if shape in BUFFERED:
        is_whole = body == WHOLE and (is_said or is_last and not shape.endswith("to the end"))
        return COMPLETE if is_whole else failed
    events = whole_events(body)
    return STREAM_COMPLETE if DONE in events else broken(b"".join(events), failed)


@dataclass(frozen=True)
class Case:
    """What the upstream does, what the client asks for, and what it is to have. `tries`: of the upstream."""

    script: Script
    want: Want
    stream: bool
    tries: int = 1
    lane: int = 0


# The gateway, the upstream and their client.


def open_sockets() -> int:
    """Of this process; a loop's own other files come and stay when it likes."""
    count = 0
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            count += stat.S_ISSOCK(os.fstat(int(name)).st_mode)
    return count


async def soon(condition: Callable[[], bool]) -> None:
    """Wait for what the loop and the kernel do by themselves."""
    async with asyncio.timeout(20):
        for _ in range(20):
            if condition():
                return
            await asyncio.sleep(0)
        while not condition():
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """As many tasks and sockets afterwards as before."""
    await asyncio.sleep(0)
    tasks, count = asyncio.all_tasks(), open_sockets()
    yield
    await soon(lambda: asyncio.all_tasks() == tasks and open_sockets() == count)


@dataclass(frozen=True)
class Exchanged:
    """One request and its answer, as the client has them."""

    sent: bytes
    answer: RawAnswer


@dataclass
class Chain:
    """A client, the gateway, and an upstream of one kind that does what `script` says to a prompt."""

    kind: str
    upstream: ScriptedUpstream
    gateway: RelayGateway
    lanes: int
    script: Callable[[SeenRequest], Script] = lambda _: [HANG]
    number: int = 0
    tasks: set["asyncio.Task[Any]"] = field(default_factory=set)
    sockets: int = 0

    @property
    def prompts(self) -> list[SeenRequest]:
        """What the upstream was sent, but for questions after its attestation."""
        return [seen for seen in self.upstream.requests if seen.method == b"POST"]

    @property
    def channels(self) -> list[Channel]:
        return [relay.channel for opened in self.gateway.upstreams.opened.values() for relay in opened._relays()]

    @property
    def live(self) -> int:
        return sum(channel.live for channel in self.channels)

    @property
    def idle(self) -> int:
        return sum(channel.idle for channel in self.channels)

    def trust_its_health(self) -> None:
        """An upstream that fails so often is left alone; these tests go on."""
        for opened in self.gateway.upstreams.opened.values():
            opened.health.succeeded()

    def body(self, *, stream: bool, lane: int = 0, pad: int = 0) -> bytes:
        """A chat that is told from every other by its text."""
        self.number += 1
        text = f"{self.number} " + "x" * pad
        members = {"model": f"{MODEL}-{lane}", "stream": stream, "messages": [{"role": "user", "content": text}]}
        return json.dumps(members).encode()

    def line(self) -> dict[str, Any]:
        """The one log line since the last look."""
        [line] = self.gateway.lines("request")
        self.forget_lines()
        return line

    def forget_lines(self) -> None:
        self.gateway.written.seek(0)
        self.gateway.written.truncate()

    async def settle(self) -> None:
        """Nothing is under way, and there is nothing but what was there at the beginning, and the pool."""
        await soon(lambda: self.gateway.lifecycle.in_flight == 0 and self.live == 0)
        await soon(lambda: asyncio.all_tasks() <= self.tasks and len(self.upstream.open) == self.idle)
        await soon(lambda: open_sockets() == self.sockets + 2 * self.idle)
        assert self.idle <= 32 * self.lanes

    async def receipt(self, connection: RawConnection, receipt_id: str) -> Receipt:
        """As the client fetches it, its signature checked."""
        await connection.send(b"GET /v1/aci/receipts/%b HTTP/1.1\r\nHost: c\r\n\r\n" % receipt_id.encode())
        document = await connection.answer()
        assert document.status == 200, document
        receipt = parse_receipt(document.body)
        assert signature_fault(receipt, self.gateway.app.keyset().epoch.keyset) is None
        assert receipt.members.receipt_id == receipt_id
        return receipt

    async def check_receipt(
        self, connection: RawConnection, receipt_id: str, sent: bytes, got: bytes, outcome: str
    ) -> Receipt:
        """Its outcome, and the hashes: of what this client sent and got, and of what the upstream was sent."""
        receipt = await self.receipt(connection, receipt_id)
        assert receipt.outcome == outcome, (receipt, got)
        assert receipt.body_hash(RECEIVED) == digest_of(sent)
        assert receipt.body_hash(RETURNED) == digest_of(got)
        forwarded = receipt.body_hash(FORWARDED)
        if any(seen.body == sent for seen in self.upstream.requests[-100:]):
            assert forwarded == digest_of(sent)
        if self.kind == "aci" and forwarded is not None:
            assert receipt.upstream[-1].result == "verified"
            assert await self.gateway.store.session(receipt.upstream[-1].session_id or "", now=int(time.time()))
        return receipt

    async def ask(self, connection: RawConnection, case: Case) -> Exchanged:
        sent = self.body(stream=case.stream, lane=case.lane)
        await connection.send(raw_post(sent))
        return Exchanged(sent, await connection.answer())

    async def sound(self) -> None:
        """As many answers at once as the pool is to hold, and again: no further connection is opened."""
        gate = asyncio.Event()
        self.script = lambda _: [gate, joined(BUFFERED["length"])]
        self.trust_its_health()
        for _ in range(2):
            gate.clear()
            asked = len(self.prompts)
            async with contextlib.AsyncExitStack() as closing:
                connections = [
                    await closing.enter_async_context(raw_connection(self.gateway.url)) for _ in range(POOL)
                ]
                for connection in connections:
                    await connection.send(raw_post(self.body(stream=False)))
                await soon(lambda asked=asked: len(self.prompts) == asked + POOL)  # type: ignore[misc]
                gate.set()
                answers = [await connection.answer() for connection in connections]
            assert [(answer.status, answer.body) for answer in answers] == [(200, WHOLE)] * POOL
            await soon(lambda: self.live == 0)
            accepted, asked = self.upstream.accepted, len(self.prompts)
        assert self.idle >= POOL
        assert self.upstream.accepted == accepted
        self.forget_lines()


def scripted_report(service: AttestedService, seen: SeenRequest) -> Script:
    """The service's proof of itself, for the nonce in the request."""
    nonce = parse_qs(urlsplit(seen.target.decode()).query)["nonce"][0]
    document = json.dumps(service.report_now(nonce)).encode()
    return [response(document, b"Content-Type: application/json", b"Connection: close"), CLOSE]


Report = Callable[[SeenRequest], Script]


@contextlib.asynccontextmanager
async def chain(
    home: Path,
    kind: str,
    *,
    lanes: int = 1,
    service: AttestedService | None = None,
    report: Report | None = None,
    now: Callable[[], float] = time.time,
    **keys: Any,
) -> AsyncIterator[Chain]:
    """A whole chain, and nothing of it left. `lanes`: so many upstreams with a model each, all of them the same server.

    `report`: what an attested upstream shows instead of the honest report.
    """
    for name in ("service", "gateway"):
        (home / name).mkdir(exist_ok=True)
    service = service or AttestedService(home / "service", tls=True)
    reports = report or (lambda seen: scripted_report(service, seen))
    async with nothing_left(), ScriptedUpstream([], tls=tls_context(service) if kind == "aci" else None) as server:
        async with serving_upstreams(home / "gateway", toml(kind, server.port, service, lanes, keys), now=now) as gateway:
            running = Chain(kind, server, gateway, lanes)
            server.choose = lambda seen: reports(seen) if seen.method == b"GET" else running.script(seen)
            for number in range(lanes if kind == "aci" else 0):
                await gateway.attested(f"u{number}").verify()
            await soon(lambda: len(server.open) == 0)
            running.forget_lines()
            running.tasks, running.sockets = asyncio.all_tasks(), open_sockets()
            yield running


def toml(kind: str, port: int, service: AttestedService, lanes: int, keys: dict[str, Any]) -> str:
    text = "[limits]\n"
    for number in range(lanes):
        name = f"u{number}"
        if kind == "local":
            text += local(port, name, **keys)
        else:
            trusted = {"trust_roots": [str(service.root)], "probe": "none", **keys}
            text += upstream(name, "aci", f"https://127.0.0.1:{port}", **trusted)
        text += model(f'"{name}"', id=f"{MODEL}-{number}")
    return text


# One case.


def looks_whole(answer: RawAnswer, *, stream: bool) -> bool:
    """To a client that knows only the API."""
    if answer.status != 200:
        return False
    return not stream or (b"[DONE]" in answer.body and b'data: {"error"' not in answer.body)


def check_answer(answer: RawAnswer, want: Want, *, stream: bool, case: object = None) -> None:
    assert answer.status == want.status, (case, answer)
    assert looks_whole(answer, stream=stream) == (want.outcome == "complete"), (case, answer)
    if want.error is None:
        assert answer.body == want.body, (case, answer)
    else:
        assert answer.body.startswith(want.body), (case, answer)
        check_error(answer, want, answer.body[len(want.body) :])


def check_error(answer: RawAnswer, want: Want, end: bytes) -> None:
    """The error response, or the tail of a stream, and nothing besides."""
    if answer.status == 200:
        assert end.startswith(b"\n\ndata: "), answer
        assert end.endswith(b"\n\n" + DONE), answer
        end = end[len(b"\n\ndata: ") : -len(b"\n\n" + DONE)]
    error = json.loads(end)["error"]
    assert error["type"] == want.error, answer
    assert error.keys() == {"message", "type", "code", "param"}


async def play(running: Chain, cases: Sequence[Case]) -> int:
    """One case after another on one client connection, each checked, and nothing left after any. How many."""
    async with raw_connection(running.gateway.url) as connection:
        await soon(lambda: len(asyncio.all_tasks()) >= len(running.tasks))
        base = running.sockets
        running.sockets += 2
        for case in cases:
            running.trust_its_health()
            running.script = lambda _, case=case: case.script  # type: ignore[misc]
            asked = len(running.upstream.requests)
            got = await running.ask(connection, case)
            check_answer(got.answer, case.want, stream=case.stream, case=case)
            assert len(running.upstream.requests) - asked == case.tries, case
            await check_proof(running, connection, got, case.want.outcome)
            await running.settle()
        running.sockets = base
    await running.sound()
    return len(cases)


async def check_proof(running: Chain, connection: RawConnection, got: Exchanged, outcome: str) -> Receipt:
    """The receipt that the answer names, and the log line of the request."""
    receipt_id = got.answer.header("x-receipt-id")
    assert receipt_id is not None, got
    line = running.line()
    assert (line["outcome"], line["receipt"]) == (outcome, receipt_id), (line, got)
    return await running.check_receipt(connection, receipt_id, got.sent, got.answer.body, outcome)


# The answer ends.


def ending(shape: str, length: int, end: Step, kind: str) -> Case:
    """A connection that ends before a byte came may have been stale, and the upstream is asked once more."""
    stream = joined(SHAPES[shape])
    sent: Script = [stream[:length], TURN, end] if length else [end]
    tries = 2 if length == 0 and end is not HANG else 1
    return Case(sent, wanted(shape, length, end, kind), shape in STREAMED, tries)


def ends_of(shape: str, kind: str, lengths: Iterable[int], ends: Iterable[Step]) -> list[Case]:
    return [ending(shape, length, end, kind) for end in ends for length in lengths]


EVERY_BYTE = {"length": 2 * 122, "stream": 2 * 230}
EVERY_CLASS = {
    "length": 15,
    "chunks": 32,
    "to the end": 12,
    "stream": 39,
    "stream, split": 40,
    "stream after 103": 42,
    "stream to the end": 12,
}


@pytest.mark.parametrize("shape", SHORT)
async def test_an_answer_cut_or_reset_before_any_of_its_bytes_never_looks_whole(
    tmp_path: Path, kind: str, shape: str
) -> None:
    async with chain(tmp_path, kind) as running:
        cases = ends_of(shape, kind, range(len(joined(SHAPES[shape]))), (CUT, RESET))
        assert await play(running, cases) == EVERY_BYTE[shape]


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_answer_that_is_closed_at_any_place_never_looks_whole(tmp_path: Path, kind: str, shape: str) -> None:
    async with chain(tmp_path, kind) as running:
        cases = ends_of(shape, kind, places(SHAPES[shape]), (CLOSE,))
        assert await play(running, cases) == EVERY_CLASS[shape]
