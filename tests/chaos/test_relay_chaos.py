"""The whole gateway before an upstream that fails at every place where it can, and clients that do.

Kinds of upstream: `local` over TCP, and `aci` over TLS, verified before it is sent anything. Asserted of each case:
what the client has never looks whole unless it is all that the upstream sent; there is a receipt, its signature
verifies and its hashes are those of the bytes that the client sent and got; the outcome is the right one; there is one
log line; and nothing stays behind: no request in flight, no task, no socket beyond those of the pool, which afterwards
serves as before. Every table says how many cases it has.
"""

import asyncio
import contextlib
import hashlib
import json
import random
import socket
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import pytest

from attested_service import AttestedService, tls_context
from confide.protocol.canonical import digest_of
from confide.protocol.keyset import TlsKey
from confide.protocol.receipt import FORWARDED, RECEIVED, RETURNED, Receipt, parse_receipt, signature_fault
from confide.upstream.channel import Channel, TcpAddress, TlsAddress
from gateway_app import RawAnswer, RawConnection, raw_connection, raw_post
from http_reference import CHUNK_LINE, Broken, read_head, read_response
from left_behind import nothing_left, open_sockets, soon
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

pytestmark = pytest.mark.both_loops(long="asyncio")  # the program runs on the other one

KINDS = ("local", "aci")
SHORT_S = 1.0  # of an upstream that says nothing more
POOL = 4


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
ALL = [
    pytest.param(kind, shape, marks=() if kind == "local" or shape in SHORT else pytest.mark.long)
    for kind in KINDS
    for shape in SHAPES
]


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
    """`body`: what comes of the upstream's own bytes. `error`: its type, where one follows them or stands alone."""

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
        is_whole = body == WHOLE and (is_said or (is_last and not shape.endswith("to the end")))
        return COMPLETE if is_whole else failed
    events = whole_events(body)
    rest = body[len(b"".join(events)) :]
    is_done = DONE in events or (is_said and rest.strip() == DONE.strip())  # its blank line alone is missing
    return STREAM_COMPLETE if is_done else broken(b"".join(events), failed)


@dataclass(frozen=True)
class Case:
    """What the upstream does, what the client asks for, and what it is to have. `tries`: of the upstream."""

    script: Script
    want: Want
    stream: bool
    tries: int = 1
    lane: int = 0


# The gateway, the upstream and their client.


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
    bodies: set[bytes] = field(default_factory=set)  # of the prompts that reached the upstream
    tasks: set["asyncio.Task[Any]"] = field(default_factory=set)
    sockets: int = 0

    @property
    def prompts(self) -> list[SeenRequest]:
        """What the upstream was sent, but for questions after its attestation."""
        return [seen for seen in self.upstream.requests if seen.method == b"POST"]

    def answer(self, seen: SeenRequest) -> Script:
        self.bodies.add(seen.body)
        return self.script(seen)

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
        assert forwarded in (None, digest_of(sent))
        assert forwarded is not None or sent not in self.bodies
        if self.kind == "aci" and outcome not in ("refused", "failed"):
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
                connections = [await closing.enter_async_context(raw_connection(self.gateway.url)) for _ in range(POOL)]
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
    async with contextlib.AsyncExitStack() as closing:
        await closing.enter_async_context(nothing_left())
        tls = tls_context(service) if kind == "aci" else None
        server = await closing.enter_async_context(ScriptedUpstream([], tls=tls))
        text = toml(kind, server.port, service, lanes, keys)
        gateway = await closing.enter_async_context(serving_upstreams(home / "gateway", text, now=now))
        running = Chain(kind, server, gateway, lanes)
        server.choose = lambda seen: reports(seen) if seen.method == b"GET" else running.answer(seen)
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
    if end is HANG and length == len(stream) and not shape.endswith("to the end"):
        sent = [stream]  # there is nothing that it could hang before
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


@pytest.mark.parametrize(("kind", "shape"), ALL)
async def test_an_answer_that_is_closed_at_any_place_never_looks_whole(tmp_path: Path, kind: str, shape: str) -> None:
    async with chain(tmp_path, kind) as running:
        cases = ends_of(shape, kind, places(SHAPES[shape]), (CLOSE,))
        assert await play(running, cases) == EVERY_CLASS[shape]


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES)
async def test_an_answer_that_ends_in_any_way_before_any_of_its_bytes_never_looks_whole(
    tmp_path: Path, kind: str, shape: str
) -> None:
    async with chain(tmp_path, kind) as running:
        size = len(joined(SHAPES[shape]))
        cases = ends_of(shape, kind, range(size), (CLOSE, CUT, RESET))
        assert await play(running, cases) == 3 * size


# It is slow, or stops.

SPLIT = {name: count - 1 for name, count in EVERY_CLASS.items()}  # not before all, not after all; and byte by byte


@pytest.mark.parametrize(("kind", "shape"), ALL)
async def test_an_answer_that_comes_in_pieces_is_whole(tmp_path: Path, kind: str, shape: str) -> None:
    parts, stream = SHAPES[shape], joined(SHAPES[shape])
    end = [CLOSE] if shape.endswith("to the end") else []
    scripts: list[Script] = [[stream[:place], TURN, stream[place:], *end] for place in places(parts)[1:-1]]
    scripts.append([*(step for byte in stream for step in (bytes([byte]), TURN)), *end])
    want = COMPLETE if shape in BUFFERED else STREAM_COMPLETE
    async with chain(tmp_path, kind) as running:
        cases = [Case(script, want, shape in STREAMED) for script in scripts]
        assert await play(running, cases) == SPLIT[shape]
        assert running.upstream.accepted < 2 * POOL + len(end) * len(cases)  # their connections were used again


async def play_at_once(running: Chain, cases: Sequence[Case]) -> int:
    """All cases together, each on a client connection and an upstream of its own."""

    def script(seen: SeenRequest) -> Script:
        lane = int(json.loads(seen.body)["model"].removeprefix(f"{MODEL}-"))
        return cases[lane].script

    async def one(case: Case) -> str:
        async with raw_connection(running.gateway.url) as connection:
            got = await running.ask(connection, case)
            check_answer(got.answer, case.want, stream=case.stream, case=case)
            receipt_id = got.answer.header("x-receipt-id")
            assert receipt_id is not None
            await running.check_receipt(connection, receipt_id, got.sent, got.answer.body, case.want.outcome)
            return receipt_id

    running.script = script
    receipts = await asyncio.gather(*(one(case) for case in cases))
    lines = running.gateway.lines("request")
    assert sorted(line["receipt"] for line in lines) == sorted(receipts)
    assert Counter(line["outcome"] for line in lines) == Counter(case.want.outcome for case in cases)
    await running.settle()
    await running.sound()
    return len(cases)


@pytest.mark.parametrize(("kind", "shape"), ALL)
async def test_an_answer_that_stops_at_any_place_is_a_timeout(tmp_path: Path, kind: str, shape: str) -> None:
    limits: dict[str, Any] = {"first_byte_timeout_s": SHORT_S, "idle_timeout_s": SHORT_S}
    found = places(SHAPES[shape])
    async with chain(tmp_path, kind, lanes=len(found), **limits) as running:
        cases = [replace(ending(shape, place, HANG, kind), lane=lane) for lane, place in enumerate(found)]
        assert await play_at_once(running, cases) == EVERY_CLASS[shape]


async def test_an_answer_that_takes_longer_than_all_of_it_may_is_a_timeout(tmp_path: Path, kind: str) -> None:
    events = [delta(f"{number}") for number in range(50)]
    drip = [step for event in events for step in (chunk(event), TURN)]
    whole = joined(BUFFERED["length"])
    cases = [
        Case([sse_head(), *drip, HANG], broken(b"".join(events), SLOW), stream=True),
        Case([whole[:-1], HANG], SLOW, stream=False, lane=1),
    ]
    async with chain(tmp_path, kind, lanes=2, total_timeout_s=SHORT_S) as running:
        assert await play_at_once(running, cases) == 2


# It lies.

GARBAGE = [
    b"\0" * 40,
    b"\xff" * 40,
    b"\r\n\r\n" * 10,
    b"\n" * 40,
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"data: [DONE]\n\n" * 3,
    b'data: {"error":{"message":"no"}}\n\n',
    b"ffffffffffffffffffff\r\n",
    b"0\r\n\r\n",
    random.Random(5).randbytes(64),
]
LIES = {name: count * len(GARBAGE) for name, count in EVERY_CLASS.items()}


@dataclass(frozen=True)
class Lie:
    """An answer that goes on as garbage. `body`: what its framing says that the body is. `is_whole`: all of it came."""

    sent: bytes
    body: bytes
    is_whole: bool


def lying(parts: Parts, place: int, garbage: bytes) -> Lie:
    sent = joined(parts)[:place] + garbage
    try:
        return Lie(sent, read_response(sent).body, is_whole=True)
    except Broken:
        return Lie(sent, body_so_far(sent), is_whole=False)


def body_so_far(sent: bytes) -> bytes:
    """The body bytes of a response before it breaks."""
    try:
        status = 100
        while status < 200:
            _, status, fields, sent = read_head(sent)
    except Broken:
        return b""
    if (b"transfer-encoding", b"chunked") not in fields:
        return sent
    body = b""
    while (line := CHUNK_LINE.match(sent)) is not None:
        size, sent = int(line[1], 16), sent[line.end() :]
        body, sent = body + sent[:size], sent[size:]
        if not sent.startswith(b"\r\n"):
            break
        sent = sent[2:]
    return body


def check_lie(answer: RawAnswer, lie: Lie, *, stream: bool) -> str:
    """The outcome that the receipt must have. Nothing is whole that its framing does not say is whole, nothing is
    passed on that is not of the body, and of a stream, only whole events.
    """
    if answer.status != 200:
        check_error(answer, replace(FAILED, status=answer.status), answer.body)
        assert answer.status == 502
        return "failed"
    if not stream:
        assert lie.is_whole
        assert answer.body == lie.body
        return "complete"
    if looks_whole(answer, stream=True):
        is_ended = lie.is_whole and b'"finish_reason":"stop"' in lie.body and answer.body == lie.body + DONE
        assert is_ended or (lie.body.startswith(answer.body) and answer.body.rstrip().endswith(DONE.rstrip()))
        return "complete"
    events = answer.body[: answer.body.rindex(b'\n\ndata: {"error"')]
    check_error(answer, FAILED, answer.body[len(events) :])
    assert events
    assert lie.body.startswith(events)
    assert events.replace(b"\r\n", b"\n").replace(b"\r", b"\n").endswith(b"\n\n")
    return "truncated"


async def play_lies(running: Chain, shape: str, offsets: Sequence[int]) -> Counter[str]:
    """Garbage of every sort at each offset; how they ended."""
    outcomes: Counter[str] = Counter()
    stream = shape in STREAMED
    async with raw_connection(running.gateway.url) as connection:
        running.sockets += 2
        for lie in (lying(SHAPES[shape], place, garbage) for place in offsets for garbage in GARBAGE):
            running.trust_its_health()
            running.script = lambda _, lie=lie: [lie.sent, TURN, CLOSE]  # type: ignore[misc]
            got = await running.ask(connection, Case([], FAILED, stream))
            outcome = check_lie(got.answer, lie, stream=stream)
            await check_proof(running, connection, got, outcome)
            await running.settle()
            outcomes[outcome] += 1
        running.sockets -= 2
    await running.sound()
    return outcomes


@pytest.mark.parametrize(("kind", "shape"), ALL)
async def test_an_answer_that_goes_on_as_garbage_never_looks_whole(tmp_path: Path, kind: str, shape: str) -> None:
    async with chain(tmp_path, kind) as running:
        outcomes = await play_lies(running, shape, places(SHAPES[shape]))
        assert outcomes.total() == LIES[shape]
        assert outcomes["failed"] > outcomes["complete"] > 0  # after the last byte it does not matter
        assert (outcomes["truncated"] > 0) == (shape in STREAMED)


@pytest.mark.long
@pytest.mark.parametrize("shape", SHORT)
async def test_garbage_at_any_byte_never_looks_whole(tmp_path: Path, kind: str, shape: str) -> None:
    async with chain(tmp_path, kind) as running:
        size = len(joined(SHAPES[shape]))
        assert (await play_lies(running, shape, range(size))).total() == size * len(GARBAGE)


# It is not there, or somebody else is.


class Rude(asyncio.Protocol):
    """Answers a connection, or the first bytes on it, in the way `how`: bytes and then an end, or an end alone."""

    def __init__(self, how: "Takeover", received: list[bytes]) -> None:
        self.how = how
        self.received = received
        self.is_first = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self.how.when == "connects":
            self.act()

    def data_received(self, data: bytes) -> None:
        self.received.append(data)
        if self.is_first and self.how.when == "speaks":
            self.act()
        self.is_first = False

    def act(self) -> None:
        self.transport.write(self.how.says)
        if self.how.end is CLOSE:
            self.transport.close()
        elif self.how.end is RESET:
            file = self.transport.get_extra_info("socket")
            file.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.transport.abort()


@dataclass(frozen=True)
class Takeover:
    """Who listens where the upstream did, None for nobody: what it does when a client `connects` or `speaks`."""

    when: str
    end: Step = HANG
    says: bytes = b""


TAKEOVERS: dict[str, Takeover | None] = {
    "nobody": None,
    "closes when it is connected": Takeover("connects", CLOSE),
    "resets when it is connected": Takeover("connects", RESET),
    "closes while it is asked": Takeover("speaks", CLOSE),
    "resets while it is asked": Takeover("speaks", RESET),
    "babbles when it is connected": Takeover("connects", CLOSE, b"\0\xff\r\n\r\n" * 9),
    "babbles while it is asked": Takeover("speaks", CLOSE, b"\0\xff\r\n\r\n" * 9),
    "greets in another protocol": Takeover("connects", HANG, b"220 mail.example.com ESMTP\r\n"),
    "says nothing": Takeover("never"),
}
BIG = 300_000  # bytes of a prompt that does not leave at once


@contextlib.asynccontextmanager
async def taken_over(port: int, how: Takeover | None) -> AsyncIterator[list[bytes]]:
    """What came there."""
    received: list[bytes] = []
    if how is None:
        yield received
        return
    loop = asyncio.get_running_loop()
    protocols: list[Rude] = []

    def accept() -> Rude:
        protocols.append(Rude(how, received))
        return protocols[-1]

    server = await loop.create_server(accept, "127.0.0.1", port)
    try:
        yield received
    finally:
        server.close()
        for each in protocols:
            each.transport.abort()
        await server.wait_closed()


@pytest.mark.parametrize("name", TAKEOVERS)
@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
async def test_where_the_upstream_was_there_is_nobody_or_another(
    tmp_path: Path, kind: str, name: str, stream: bool
) -> None:
    how = TAKEOVERS[name]
    limits: dict[str, Any] = {"connect_timeout_s": SHORT_S, "first_byte_timeout_s": SHORT_S}
    is_slow = how is not None and how.end is HANG and (kind == "aci" or not how.says) and how.when != "connects"
    want = SLOW if is_slow else FAILED
    async with chain(tmp_path, kind, **limits) as running:
        await running.sound()
        await running.upstream.vanish()
        asked = len(running.prompts)
        async with (
            taken_over(running.upstream.port, how) as received,
            raw_connection(running.gateway.url) as connection,
        ):
            sent = running.body(stream=stream, pad=BIG)
            await connection.send(raw_post(sent))
            got = Exchanged(sent, await connection.answer())
            check_answer(got.answer, want, stream=stream)
            receipt = await check_proof(running, connection, got, "failed")
            is_forwarded = receipt.body_hash(FORWARDED) is not None
            if kind == "aci":
                assert not is_forwarded  # no key was proven, so nothing was sent
                assert b"x" * 20 not in b"".join(received)
            else:
                assert is_forwarded or not received  # "nothing was forwarded" is said only where it is so
        assert len(running.prompts) == asked
        await soon(lambda: running.live == 0)
        await running.upstream.listen()
        await running.settle()
        await running.sound()


async def test_a_name_that_is_no_longer_resolved_is_a_failure(tmp_path: Path, kind: str) -> None:
    async with chain(tmp_path, kind) as running:
        await running.sound()
        [channel] = running.channels
        address = channel._address
        assert isinstance(address, TlsAddress | TcpAddress)
        channel._address = replace(address, host=".".join(["gone"] * 60))  # too long: no resolver is asked
        running.upstream.hang_up()
        await soon(lambda: running.idle == 0)
        asked = len(running.prompts)
        async with raw_connection(running.gateway.url) as connection:
            for stream in (False, True):
                got = await running.ask(connection, Case([], FAILED, stream))
                check_answer(got.answer, FAILED, stream=stream)
                receipt = await check_proof(running, connection, got, "failed")
                assert receipt.body_hash(FORWARDED) is None
        channel._address = address
        assert len(running.prompts) == asked
        await running.sound()
        await soon(lambda: running.live == 0)


# What it proved changes under traffic.

CLIENTS = 8


def honest_answer(seen: SeenRequest) -> Script:
    return [joined(SHAPES["stream" if json.loads(seen.body)["stream"] else "length"])]


@contextlib.asynccontextmanager
async def traffic(running: Chain) -> AsyncIterator[list[Exchanged]]:
    """Clients that ask one question after another, buffered and streamed; what they got, and all of it checked."""
    got: list[Exchanged] = []
    over = asyncio.Event()

    async def one() -> None:
        async with raw_connection(running.gateway.url) as connection:
            while not over.is_set():
                got.append(await running.ask(connection, Case([], FAILED, stream=running.number % 2 == 0)))

    clients = [asyncio.create_task(one()) for _ in range(CLIENTS)]
    try:
        yield got
    finally:
        over.set()
        await asyncio.gather(*clients)
    await check_traffic(running, got)
    await running.settle()


async def check_traffic(running: Chain, got: Sequence[Exchanged]) -> None:
    """Each request has its receipt and its log line, and what was no whole answer is a refusal or a failure."""
    lines = {line["receipt"]: line["outcome"] for line in running.gateway.lines("request")}
    assert len(lines) == len(got)
    async with raw_connection(running.gateway.url) as connection:
        for each in got:
            outcome = outcome_of(each)
            receipt_id = each.answer.header("x-receipt-id") or ""
            assert lines[receipt_id] == outcome
            receipt = await running.check_receipt(connection, receipt_id, each.sent, each.answer.body, outcome)
            assert (outcome == "refused") <= (receipt.body_hash(FORWARDED) is None)
    running.forget_lines()


def outcome_of(got: Exchanged) -> str:
    stream = json.loads(got.sent)["stream"]
    if got.answer.status == 200:
        check_answer(got.answer, STREAM_COMPLETE if stream else COMPLETE, stream=stream)
        return "complete"
    kind = json.loads(got.answer.body)["error"]["type"]
    assert (got.answer.status, kind) in ((503, "upstream_verification_failed"), (502, "upstream_error")), got
    return "refused" if kind == "upstream_verification_failed" else "failed"


def outcomes(got: Iterable[Exchanged]) -> Counter[str]:
    return Counter(outcome_of(each) for each in got)


async def more(got: list[Exchanged], count: int) -> None:
    """Wait for so many more answers."""
    begun = len(got)
    await soon(lambda: len(got) >= begun + count)


@pytest.fixture
def service(tmp_path: Path) -> AttestedService:
    (tmp_path / "service").mkdir()
    return AttestedService(tmp_path / "service", tls=True)


@pytest.fixture
def other_key(tmp_path: Path) -> TlsFiles:
    (tmp_path / "other").mkdir()
    return self_signed(tmp_path / "other")


async def rotate(running: Chain, files: TlsFiles) -> None:
    """Another key answers from now on, and each old connection ends with the answer that is under way on it."""
    assert running.upstream.tls is not None
    running.upstream.tls.load_cert_chain(files.cert, files.key)
    old = set(running.upstream.open)
    while old & running.upstream.open:
        running.upstream.hang_up(old)
        await asyncio.sleep(0)


async def test_a_tls_key_that_is_rotated_and_proven_costs_no_answer(
    tmp_path: Path, service: AttestedService, other_key: TlsFiles
) -> None:
    async with chain(tmp_path, "aci", service=service) as running:
        running.script = honest_answer
        old = running.gateway.attested("u0").session
        async with traffic(running) as got:
            await more(got, 50)
            service.keyset = service.attested_keyset(tls_public_keys=(TlsKey(other_key.spki_sha256.hex()),))
            await rotate(running, other_key)
            await more(got, 100)
        assert outcomes(got) == {"complete": len(got)}
        new = running.gateway.attested("u0").session
        assert old is not None
        assert new is not None
        assert new.pins == {other_key.spki_sha256} != old.pins


async def test_a_late_word_of_the_old_key_does_not_end_the_new_session(
    tmp_path: Path, service: AttestedService, other_key: TlsFiles
) -> None:
    async with chain(tmp_path, "aci", service=service) as running:
        running.script = honest_answer
        attested = running.gateway.attested("u0")
        first = attested.relays[-1]
        service.keyset = service.attested_keyset(tls_public_keys=(TlsKey(other_key.spki_sha256.hex()),))
        async with raw_connection(running.gateway.url) as connection:
            running.sockets += 2
            await rotate(running, other_key)
            got = await running.ask(connection, Case([], COMPLETE, stream=False))
            check_answer(got.answer, COMPLETE, stream=False)
            session = attested.session
            assert session is not None
            assert first.on_wrong_key is not None
            first.on_wrong_key()  # of a handshake that began before
            assert attested.session is session
            await running.settle()


async def test_a_tls_key_that_is_not_proven_gets_no_prompt(
    tmp_path: Path, service: AttestedService, other_key: TlsFiles
) -> None:
    async with chain(tmp_path, "aci", service=service) as running:
        running.script = honest_answer
        async with traffic(running) as got:
            await more(got, 50)
            accepted = running.upstream.accepted
            await rotate(running, other_key)
            await soon(lambda: not running.gateway.attested("u0").is_ready)
            await soon(lambda: running.live == 0)
            asked, answered = len(running.prompts), len(got)
            await more(got, 50)
        assert len(running.prompts) == asked
        assert all(seen.connection <= accepted for seen in running.prompts)
        assert outcomes(got[answered + CLIENTS :]) == {"refused": len(got) - answered - CLIENTS}


class Clock:
    """Moves when told to."""

    def __init__(self) -> None:
        self.began_s = time.time()
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return self.began_s + self.ahead_s


async def test_a_verification_that_is_over_under_traffic_is_made_again_and_costs_no_answer(tmp_path: Path) -> None:
    clock = Clock()
    async with chain(tmp_path, "aci", now=clock, session_s=60) as running:
        running.script = honest_answer
        sessions = set()
        async with traffic(running) as got:
            for _ in range(10):
                await more(got, 30)
                session = running.gateway.attested("u0").session
                sessions.add(session.id if session is not None else None)
                clock.ahead_s += 61
        assert outcomes(got) == {"complete": len(got)}
        assert len(sessions - {None}) >= 9


async def test_a_verification_that_is_over_and_cannot_be_made_again_ends_the_traffic(
    tmp_path: Path, service: AttestedService
) -> None:
    clock, is_mute = Clock(), asyncio.Event()

    def report(seen: SeenRequest) -> Script:
        return [response(b"", status=b"503 Busy")] if is_mute.is_set() else scripted_report(service, seen)

    gate = asyncio.Event()
    async with chain(tmp_path, "aci", service=service, report=report, now=clock, session_s=600) as running:
        running.script = honest_answer
        async with raw_connection(running.gateway.url) as connection:
            running.script = lambda _: [sse_head(), chunk(FIRST), gate, chunk(LAST), chunk(DONE), LAST_CHUNK]
            running.sockets += 2
            sent = running.body(stream=True)
            await connection.send(raw_post(sent))
            await soon(lambda: len(running.prompts) == 1)
            running.script = honest_answer
            async with traffic(running) as got:
                await more(got, 30)
                is_mute.set()
                clock.ahead_s = 590
                await more(got, 30)
                assert outcomes(got) == {"complete": len(got)}  # what was verified still stands
                clock.ahead_s = 601
                await more(got, CLIENTS)
                asked, answered = len(running.prompts), len(got)
                await more(got, 30)
                assert len(running.prompts) == asked
                assert outcomes(got[answered:]) == {"refused": len(got) - answered}
                gate.set()
                begun = Exchanged(sent, await connection.answer())
                assert outcome_of(begun) == "complete"  # it was begun in a session that it may still end in
                got.append(begun)


@pytest.mark.parametrize("is_asked", [True, False], ids=["under-traffic", "in-silence"])
async def test_an_upstream_that_loses_its_attestation_is_out_within_one_refresh(
    tmp_path: Path, service: AttestedService, is_asked: bool
) -> None:
    """Its keyset expires so soon that it is verified again every second."""
    shown: list[str] = []
    is_broken = asyncio.Event()

    def report(seen: SeenRequest) -> Script:
        nonce = parse_qs(urlsplit(seen.target.decode()).query)["nonce"][0]
        document = service.report_now(nonce, service.attested_keyset(not_after=int(time.time()) + 4))
        if is_broken.is_set():
            document["attestation"]["report_data"] = "00" * 32
        shown.append("broken" if is_broken.is_set() else "whole")
        body = json.dumps(document).encode()
        return [response(body, b"Content-Type: application/json", b"Connection: close"), CLOSE]

    async with chain(tmp_path, "aci", service=service, report=report) as running:
        running.tasks |= {task for task in asyncio.all_tasks() if task.get_name().startswith("verify")}
        running.script = honest_answer
        upstream = running.gateway.attested("u0")
        async with contextlib.AsyncExitStack() as closing:
            got = await closing.enter_async_context(traffic(running)) if is_asked else []
            await soon(lambda: len(shown) >= 3)
            is_broken.set()
            await soon(lambda: "broken" in shown and upstream.session is None)
            await soon(lambda: running.live == 0)
            asked, bodies, number = len(running.prompts), set(running.bodies), running.number
            if is_asked:
                await more(got, 40)
            else:
                async with raw_connection(running.gateway.url) as connection:
                    refused = await running.ask(connection, Case([], FAILED, stream=True))
                    assert outcome_of(refused) == "refused"
            assert len(running.prompts) == asked
            assert running.bodies == bodies
            assert running.number > number
            verified = running.gateway.lines("upstream")
            first = next(index for index, line in enumerate(verified) if "error" in line)
            assert all("error" in line for line in verified[first:])
            is_broken.clear()
            if not is_asked:
                running.forget_lines()
        async with raw_connection(running.gateway.url) as connection:
            again = await running.ask(connection, Case([], COMPLETE, stream=True))
            assert outcome_of(again) == "complete"
        if is_asked:
            begun = {each.sent for each in got if outcome_of(each) == "complete"}
            assert begun <= running.bodies
            assert outcomes(got)["refused"] >= 20


# There is no room.


async def test_a_pool_without_room_refuses_and_stays_in_service(tmp_path: Path, kind: str) -> None:
    gate = asyncio.Event()
    busy = Want("refused", error="service_unavailable", status=503)
    async with chain(tmp_path, kind, max_connections=POOL) as running, contextlib.AsyncExitStack() as closing:
        await running.sound()
        url = running.gateway.url
        held = [await closing.enter_async_context(raw_connection(url)) for _ in range(POOL)]
        running.script = lambda _: [gate, joined(BUFFERED["length"])]
        asked = len(running.prompts)
        bodies = [running.body(stream=False) for _ in held]
        for connection, body in zip(held, bodies, strict=True):
            await connection.send(raw_post(body))
        await soon(lambda: len(running.prompts) == asked + POOL)
        async with raw_connection(url) as connection:
            for number in range(20):
                got = await running.ask(connection, Case([], busy, stream=number % 2 == 0))
                check_answer(got.answer, busy, stream=number % 2 == 0)
                assert got.answer.header("retry-after") is not None
                receipt = await check_proof(running, connection, got, "refused")
                assert receipt.body_hash(FORWARDED) is None
            assert len(running.prompts) == asked + POOL
            held[0]._writer.transport.abort()
            await soon(lambda: running.live == POOL - 1 and bool(running.gateway.lines("request")))
            assert running.line()["outcome"] == "client_closed"
            running.script = honest_answer
            served = await running.ask(connection, Case([], COMPLETE, stream=True))  # the others still wait
            check_answer(served.answer, STREAM_COMPLETE, stream=True)
            await check_proof(running, connection, served, "complete")
        gate.set()
        for connection, body in zip(held[1:], bodies[1:], strict=True):
            got = Exchanged(body, await connection.answer())
            check_answer(got.answer, COMPLETE, stream=False)
        await soon(lambda: running.live == 0)
        assert running.idle == POOL


# The client is slow, or leaves.


def large(count: int, size: int) -> list[bytes]:
    return [b'data: {"id":"c","choices":[{"delta":{"content":"%b"}}]}\n\n' % (b"x" * size) for _ in range(count)]


def is_held_back(running: Chain) -> bool:
    """Whether the upstream cannot write on."""
    return any(not connection.writable.is_set() for connection in running.upstream.open)


async def test_a_slow_client_slows_the_upstream_and_gets_all_of_it(tmp_path: Path, kind: str) -> None:
    events = large(40, 2**20)
    script: Script = [sse_head(), *(chunk(event) for event in events), chunk(LAST), chunk(DONE), LAST_CHUNK]
    limits: dict[str, Any] = {"idle_timeout_s": SHORT_S}
    async with chain(tmp_path, kind, **limits) as running:
        running.script = lambda _: script
        async with raw_connection(running.gateway.url) as connection:
            sent = running.body(stream=True)
            await connection.send(raw_post(sent))
            await soon(lambda: is_held_back(running))
            await asyncio.sleep(2 * SHORT_S)  # the upstream's time stands still
            assert is_held_back(running)
            assert running.gateway.lifecycle.in_flight == 1
            async with asyncio.timeout(20):
                got = Exchanged(sent, await connection.answer())
            check_answer(got.answer, Want("complete", b"".join(events) + LAST + DONE), stream=True)
            await check_proof(running, connection, got, "complete")
        await running.settle()
        await running.sound()


async def test_a_client_that_never_reads_is_given_up_and_so_is_the_upstream(tmp_path: Path, kind: str) -> None:
    event = large(1, 40_000)[0]
    async with chain(tmp_path, kind) as running:
        running.script = lambda _: [sse_head(), REPEAT, chunk(event)]
        async with raw_connection(running.gateway.url) as connection:
            sent = running.body(stream=True)
            await connection.send(raw_post(sent))
            await soon(lambda: is_held_back(running))
            watching = asyncio.create_task(running.gateway.lifecycle.stop_stalled(SHORT_S))
            await running.upstream.left(1)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        await running.settle()
        line = running.line()
        assert (line["outcome"], line["reason"]) == ("client_closed", "client_stalled")
        async with raw_connection(running.gateway.url) as connection:
            receipt = await running.receipt(connection, line["receipt"])
        assert receipt.outcome == "client_closed"
        assert receipt.body_hash(RETURNED) in set(
            repeated(event, 1000)
        )  # whole events, as far as they were handed over
        await running.settle()
        await running.sound()


def repeated(event: bytes, most: int) -> Iterator[str]:
    """The digest of so many of them, from one on."""
    digest = hashlib.sha256()
    for _ in range(most):
        digest.update(event)
        yield "sha256:" + digest.hexdigest()


class Leaver:
    """A client that leaves by closing one direction, or both, or by a reset. `raw`: what it read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.raw = b""

    async def read_until(self, text: bytes) -> None:
        async with asyncio.timeout(20):
            while text not in self.raw:
                data = await self.reader.read(2**16)
                assert data, self.raw
                self.raw += data

    def leave(self, way: str) -> float:
        """The loop time at which it left."""
        at = asyncio.get_running_loop().time()
        if way == "half":
            self.writer.write_eof()
        elif way == "close":
            self.writer.close()
        else:
            self.writer.transport.abort()
        return at

    async def rest(self) -> None:
        """What still comes, where it can be read."""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(20):
                self.raw += await self.reader.read(-1)

    @property
    def body(self) -> bytes:
        """Of a stream, as far as it came."""
        _, _, framed = self.raw.partition(b"\r\n\r\n")
        body = b""
        while b"\r\n" in framed:
            size, framed = int(framed.split(b"\r\n")[0], 16), framed.partition(b"\r\n")[2]
            assert len(framed) >= size + 2
            body, framed = body + framed[:size], framed[size + 2 :]
        return body


@contextlib.asynccontextmanager
async def leaving(url: str) -> AsyncIterator[Leaver]:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Leaver(reader, writer)
    finally:
        writer.transport.abort()


@dataclass(frozen=True)
class Moment:
    """When a client leaves: while the upstream does this, and once it has read so much of the answer."""

    script: Script
    stream: bool
    has: bytes = b""


MOMENTS = {
    "buffered, before the first byte": Moment([HANG], stream=False),
    "buffered, after the head": Moment([joined(BUFFERED["length"])[: -len(WHOLE)], HANG], stream=False),
    "buffered, after the first byte": Moment([joined(BUFFERED["length"])[:-3], HANG], stream=False),
    "streamed, before the first byte": Moment([HANG], stream=True),
    "streamed, after the head": Moment([sse_head(), HANG], stream=True),
    "streamed, within the first event": Moment([sse_head() + chunk(FIRST[:9]), HANG], stream=True),
    "streamed, after the first byte": Moment([sse_head() + chunk(FIRST), HANG], stream=True, has=FIRST),
    "streamed, within an event": Moment([sse_head() + chunk(FIRST + LAST[:9]), HANG], stream=True, has=FIRST),
    "streamed, before its end": Moment([sse_head() + chunk(FIRST + LAST), HANG], stream=True, has=FIRST + LAST),
}
WAYS = ("half", "close", "reset")


async def at(running: Chain, moment: Moment, client: Leaver) -> bytes:
    """Ask, and wait for the moment; the body that was sent."""
    sent = running.body(stream=moment.stream)
    client.writer.write(raw_post(sent))
    if moment.has:
        await client.read_until(moment.has[-20:])
    else:
        await soon(lambda: sent in running.bodies)
        for _ in range(20):
            await asyncio.sleep(0)
    return sent


async def test_a_client_that_leaves_at_any_moment_has_a_receipt_of_what_it_read(tmp_path: Path, kind: str) -> None:
    count = 0
    async with chain(tmp_path, kind) as running:
        for way in WAYS:
            for name, moment in MOMENTS.items():
                running.script = lambda _, script=moment.script: script  # type: ignore[misc]
                async with leaving(running.gateway.url) as client:
                    sent = await at(running, moment, client)
                    client.leave(way)
                    count += 1
                    await running.upstream.left(count)
                    if way == "half":
                        await client.rest()
                await running.settle()
                assert client.body == moment.has, (name, way)
                assert b"[DONE]" not in client.raw
                line = running.line()
                assert line["outcome"] == "client_closed", (name, way)
                async with raw_connection(running.gateway.url) as connection:
                    await running.check_receipt(connection, line["receipt"], sent, client.body, "client_closed")
                await running.settle()
        assert count == len(running.prompts) == 27
        await running.sound()


async def test_a_client_that_closes_one_direction_with_its_request_has_left(tmp_path: Path, kind: str) -> None:
    async with chain(tmp_path, kind) as running:
        running.script = honest_answer
        for number in range(20):
            async with leaving(running.gateway.url) as client:
                sent = running.body(stream=number % 2 == 0)
                client.writer.write(raw_post(sent))
                client.leave("half")
                await client.rest()
            await soon(lambda: len(running.gateway.lines("request")) == 1)
            line = running.line()
            assert line["outcome"] == "client_closed"
            assert b"[DONE]" not in client.raw
            assert line["receipt"] is not None or sent not in running.bodies
            if line["receipt"] is not None:
                async with raw_connection(running.gateway.url) as connection:
                    await running.check_receipt(connection, line["receipt"], sent, client.body, "client_closed")
            await running.settle()
        await running.sound()


# How soon the upstream sees that the client left.

EACH_WITHIN_S = 2.0  # the budget is 0.1 s on a quiet machine; these leave room for a busy one
MOST_WITHIN_S = 0.1
AT_ONCE = 10
LEFT_AT = (
    "buffered, before the first byte",
    "buffered, after the first byte",
    "streamed, before the first byte",
    "streamed, after the head",
    "streamed, after the first byte",
)


async def aborts(running: Chain, moment: Moment, tries: int) -> list[float]:
    """Seconds from each client's leaving to the moment when the upstream saw its own client leave, in order."""
    left_at: dict[bytes, float] = {}

    async def one() -> None:
        async with leaving(running.gateway.url) as client:
            sent = await at(running, moment, client)
            left_at[sent] = client.leave("reset")

    running.script = lambda _: moment.script
    for _ in range(0, tries, AT_ONCE):
        await asyncio.gather(*(one() for _ in range(AT_ONCE)))
        await running.upstream.left(len(left_at))
        await running.settle()
    seen = running.upstream.requests
    assert len(left_at) == len(running.prompts) == len(running.upstream.departures) == tries
    took = sorted(departure.at - left_at[seen[departure.request].body] for departure in running.upstream.departures)
    lines = running.gateway.lines("request")
    assert [line["outcome"] for line in lines] == ["client_closed"] * tries
    async with raw_connection(running.gateway.url) as connection:
        for receipt_id in [line["receipt"] for line in lines]:
            receipt = await running.receipt(connection, receipt_id)
            assert (receipt.outcome, receipt.body_hash(RETURNED)) == ("client_closed", digest_of(moment.has))
    return took


@pytest.mark.parametrize("tries", [40, pytest.param(1000, marks=[pytest.mark.long])])
@pytest.mark.parametrize("name", LEFT_AT)
async def test_the_upstream_sees_at_once_that_the_client_left(
    tmp_path: Path, kind: str, name: str, tries: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async with chain(tmp_path, kind) as running:
        took = await aborts(running, MOMENTS[name], tries)
        assert len(took) == tries
        with capsys.disabled():
            if tries >= 1000:
                median, worst = statistics.median(took) * 1e3, took[-1] * 1e3
                print(f"\n{kind}, {name}: {tries} of {tries}, {median:.2f} ms (median), {worst:.2f} ms (worst)")
        assert took[int(tries * 0.95)] < MOST_WITHIN_S
        assert took[-1] < EACH_WITHIN_S
        running.forget_lines()
        await running.sound()


def test_every_kind_of_place_is_among_the_places() -> None:
    names = {name for parts in SHAPES.values() for name, _ in parts}
    assert names == {
        "interim",
        "status line",
        "header",
        "framing header",
        "blank line",
        "chunk size",
        "data",
        "between chunks",
        "last chunk",
        "end",
    }
    assert {shape: len(places(parts)) for shape, parts in SHAPES.items()} == EVERY_CLASS
    assert (len(TAKEOVERS), len(MOMENTS), len(WAYS)) == (9, 9, 3)
    assert all(read_response(joined(parts)).body in (WHOLE, b"".join(EVENTS)) for parts in SHAPES.values())
