"""The channel against real sockets: every way a response can arrive, stop, stall or lie, on asyncio and on uvloop."""

import asyncio
import itertools
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from confide.upstream.channel import (
    Address,
    Channel,
    ChannelError,
    Cut,
    Exchange,
    Malformed,
    NotConnected,
    Stalled,
    TcpAddress,
    Timeouts,
    TlsAddress,
    UnixAddress,
)
from scripted import (
    ABORT_WITHIN_S,
    CLOSE,
    HANG,
    LAST_CHUNK,
    REPEAT,
    RESET,
    TURN,
    Script,
    ScriptedUpstream,
    Step,
    chunk,
    chunked_head,
    response,
    sse_head,
)

pytestmark = pytest.mark.both_loops

PATIENT = Timeouts(connect_s=5, first_byte_s=5, idle_s=5)


def address_of(upstream: ScriptedUpstream) -> Address:
    return UnixAddress(str(upstream.path)) if upstream.path else TcpAddress("127.0.0.1", upstream.port)


@asynccontextmanager
async def serving(
    *scripts: Script,
    path: Path | None = None,
    timeouts: Timeouts = PATIENT,
    max_connections: int = 100,
    max_idle: int | None = None,
    idle_expiry_s: float = 30,
    max_header_bytes: int = 32 * 1024,
    probe_after_s: float = 0.5,
) -> AsyncIterator[tuple[ScriptedUpstream, Channel]]:
    """An upstream with these scripts, and a channel to it; at the end neither holds a connection."""
    async with ScriptedUpstream(*scripts, path=path) as upstream:
        channel = Channel(
            address_of(upstream),
            timeouts=timeouts,
            max_connections=max_connections,
            max_idle=max_idle,
            idle_expiry_s=idle_expiry_s,
            max_header_bytes=max_header_bytes,
            probe_after_s=probe_after_s,
        )
        try:
            yield upstream, channel
        finally:
            await channel.close()
            assert (channel.live, channel.idle) == (0, 0)
            await upstream.until_open(0)


async def ask(channel: Channel, body: bytes = b"{}") -> Exchange:
    return await channel.send(b"POST", b"/v1/chat/completions", [(b"content-type", b"application/json")], body)


async def answer(channel: Channel) -> bytes:
    return await (await ask(channel)).read_all(1 << 30)


def turning(pieces: Sequence[bytes]) -> list[bytes | Step]:
    """The script that writes each piece so that it arrives alone."""
    return [step for piece in pieces for step in (piece, TURN)]


def now() -> float:
    return asyncio.get_running_loop().time()


# What is sent, and what comes back.


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_a_buffered_answer(kind: str, tmp_path: Path) -> None:
    script = [response(b'{"a":1}', b"Content-Type: application/json", b"X-Two: a", b"x-two:  b")]
    async with serving(script, path=tmp_path / "s" if kind == "unix" else None) as (upstream, channel):
        exchange = await ask(channel, b'{"model":"m"}')

        assert exchange.status == 200
        assert exchange.headers == [
            (b"content-type", b"application/json"),
            (b"x-two", b"a"),
            (b"x-two", b"b"),
            (b"content-length", b"7"),
        ]
        assert await exchange.read() == b'{"a":1}'
        assert await exchange.read() == b""
        assert await exchange.read() == b""
        assert not exchange.delimited_by_close
        [seen] = upstream.requests
        assert (seen.method, seen.target, seen.body) == (b"POST", b"/v1/chat/completions", b'{"model":"m"}')
        assert seen.headers == [
            (b"host", b"localhost" if kind == "unix" else b"127.0.0.1:%d" % upstream.port),
            (b"content-type", b"application/json"),
            (b"content-length", b"13"),
        ]


@pytest.mark.parametrize(("method", "length"), [(b"GET", []), (b"POST", [(b"content-length", b"0")])])
async def test_a_request_without_a_body(method: bytes, length: list[tuple[bytes, bytes]]) -> None:
    async with serving([response(b"ok")]) as (upstream, channel):
        exchange = await channel.send(method, b"/health?full=1", [], b"")

        assert await exchange.read_all(2) == b"ok"
        assert upstream.requests[0].headers[1:] == length
        assert upstream.requests[0].target == b"/health?full=1"


async def test_a_big_request_and_a_big_answer() -> None:
    body = random.Random(1).randbytes(5_000_000)
    async with serving([response(body)]) as (upstream, channel):
        exchange = await ask(channel, body)

        assert await exchange.read_all(len(body)) == body
        assert upstream.requests[0].body == body


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        (b"GET /", b"/", []),
        (b"", b"/", []),
        (b"GET", b"", []),
        (b"GET", b"v1", []),
        (b"GET", b"/ HTTP/1.1\r\nx: y", []),
        (b"GET", b"/a b", []),
        (b"GET", b"/\xc3\xa4", []),
        (b"GET", b"/", [(b"a", b"b\r\nc: d")]),
        (b"GET", b"/", [(b"a", b"b\nc: d")]),
        (b"GET", b"/", [(b"a", b"b\r")]),
        (b"GET", b"/", [(b"a", b"b\0")]),
        (b"GET", b"/", [(b"a: b\r\nc", b"d")]),
        (b"GET", b"/", [(b"transfer-encoding: chunked\r\nx", b"d")]),
        (b"GET", b"/", [(b"a: b", b"c")]),
        (b"GET", b"/", [(b"a ", b"c")]),
        (b"GET", b"/", [(b"", b"c")]),
        (b"GET", b"/", [(b"Content-Length", b"5")]),
        (b"GET", b"/", [(b"Transfer-Encoding", b"chunked")]),
        (b"GET", b"/", [(b"host", b"other")]),
        (b"GET", b"/", [(b"Expect", b"100-continue")]),
        (b"HEAD", b"/", []),
        (b"CONNECT", b"/", []),
    ],
)
async def test_what_would_not_be_one_request_is_refused_and_nothing_is_sent(
    method: bytes, path: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    async with serving([response(b"ok")]) as (upstream, channel):
        with pytest.raises(ValueError, match="request"):
            await channel.send(method, path, headers, b"")
        assert (upstream.accepted, channel.live) == (0, 0)


async def test_headers_are_those_of_their_own_request(tmp_path: Path) -> None:
    fixed = ((b"a", b"b"), (b"c", b"d"))
    changing = [(b"a", b"1")]
    async with serving([response(b"ok")], path=tmp_path / "s") as (upstream, channel):
        for method, path, headers, body in [
            (b"POST", b"/1", fixed, b"{}"),
            (b"POST", b"/1", fixed, b"{...}"),
            (b"POST", b"/2", fixed, b""),
            (b"GET", b"/2", fixed, b""),
            (b"GET", b"/2", fixed[:1], b""),
            (b"GET", b"/2", changing, b""),
        ]:
            await (await channel.send(method, path, headers, body)).read_all(2)
            seen = upstream.requests[-1]
            assert (seen.method, seen.target, seen.body) == (method, path, body)
            length = [] if method == b"GET" else [(b"content-length", b"%d" % len(body))]
            assert seen.headers[1:] == [*headers, *length]
        changing.append((b"e", b"f\r\ng: h"))
        with pytest.raises(ValueError, match="CR, LF"):
            await channel.send(b"GET", b"/2", changing, b"")


STREAM = chunked_head(b"A: b") + chunk(b"data: 1\n\n") + chunk(b"x" * 20) + b"0\r\nTrailer: t\r\n\r\n"


@pytest.mark.parametrize("stream", [STREAM, response(b"0123456789", b"A: b")])
async def test_every_split_of_a_response_gives_the_same_body(stream: bytes, tmp_path: Path) -> None:
    scripts = [turning([stream[:cut], stream[cut:]]) for cut in range(1, len(stream))]
    scripts.append(turning([bytes([byte]) for byte in stream]))
    body = b"0123456789" if stream is not STREAM else b"data: 1\n\n" + b"x" * 20
    async with serving(*scripts, path=tmp_path / "s") as (upstream, channel):
        for _ in scripts:
            exchange = await ask(channel)
            assert (exchange.status, exchange.headers[0]) == (200, (b"a", b"b"))
            assert len(exchange.headers) == 2
            assert await exchange.read_all(100) == body
        assert upstream.accepted == 1


async def test_chunks_are_read_as_they_come_and_joined_when_several_have_come() -> None:
    more = asyncio.Event()
    script: Script = [sse_head() + chunk(b"a"), more, chunk(b"b") + chunk(b"c"), TURN, chunk(b"d") + LAST_CHUNK]
    async with serving(script) as (_, channel):
        exchange = await ask(channel)

        assert await exchange.read() == b"a"
        more.set()
        assert await exchange.read() in (b"bc", b"bcd")
        assert await exchange.read_all(1) in (b"d", b"")


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_a_status_without_a_body(status: bytes) -> None:
    async with serving([b"HTTP/1.1 %b\r\n\r\n" % status]) as (upstream, channel):
        for _ in range(2):
            exchange = await ask(channel)
            assert (exchange.status, exchange.delimited_by_close) == (int(status[:3]), False)
            assert await exchange.read() == b""
        assert upstream.accepted == 1


@pytest.mark.parametrize("interim", [b"100 Continue\r\n\r\n", b"103 Early Hints\r\nLink: a\r\n\r\n"])
@pytest.mark.parametrize("turn", [[], [TURN]])
async def test_interim_responses_are_skipped(interim: bytes, turn: Script) -> None:
    interim = b"HTTP/1.1 " + interim
    async with serving([interim, *turn, interim, *turn, response(b"ok", b"A: b")]) as (upstream, channel):
        for _ in range(2):
            exchange = await ask(channel)
            assert exchange.status == 200
            assert exchange.headers == [(b"a", b"b"), (b"content-length", b"2")]
            assert await exchange.read_all(2) == b"ok"
        assert upstream.accepted == 1


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_body_may_end_with_the_connection_and_is_marked(version: bytes) -> None:
    script: Script = [b"HTTP/%b 200 OK\r\nA: b\r\n\r\n" % version, TURN, b"part", TURN, b"rest", CLOSE]
    async with serving(script) as (_, channel):
        exchange = await ask(channel)

        assert exchange.delimited_by_close
        assert await exchange.read_all(100) == b"partrest"
        assert (channel.live, channel.idle) == (0, 0)


async def test_read_all_stops_at_its_limit() -> None:
    async with serving([response(b"12345")], [chunked_head(), REPEAT, chunk(b"x" * 1000)]) as (upstream, channel):
        assert await (await ask(channel)).read_all(5) == b"12345"
        exchange = await ask(channel)
        with pytest.raises(Malformed, match="over the limit"):
            await exchange.read_all(10_000)
        await upstream.left(1)


# The pool.


async def test_connections_are_kept_and_the_last_one_in_is_the_first_one_out() -> None:
    gate = asyncio.Event()
    held: Script = [gate, response(b"ok")]
    async with serving(held, held, held, held, [response(b"ok")]) as (upstream, channel):
        asking = [asyncio.ensure_future(answer(channel)) for _ in range(4)]
        await upstream.asked(4)
        assert (channel.live, channel.idle, upstream.accepted) == (4, 0, 4)
        gate.set()
        await asyncio.gather(*asking)
        assert (channel.live, channel.idle) == (0, 4)

        for _ in range(10):
            await answer(channel)
        assert upstream.accepted == 4
        assert len({seen.connection for seen in upstream.requests[4:]}) == 1


async def test_no_more_than_max_idle_connections_are_kept() -> None:
    gate = asyncio.Event()
    async with serving([gate, response(b"ok")], max_idle=2) as (upstream, channel):
        asking = [asyncio.ensure_future(answer(channel)) for _ in range(5)]
        await upstream.asked(5)
        gate.set()
        await asyncio.gather(*asking)

        assert channel.idle == 2
        await upstream.until_open(2)


async def test_a_second_wave_of_requests_needs_no_new_connection() -> None:
    gate = asyncio.Event()
    async with serving([gate, response(b"ok")]) as (upstream, channel):
        wave = [asyncio.ensure_future(answer(channel)) for _ in range(100)]
        await upstream.asked(100)
        gate.set()
        await asyncio.gather(*wave)
        await asyncio.gather(*(answer(channel) for _ in range(100)))
        assert upstream.accepted == 100


async def test_an_unused_connection_is_closed_after_a_while() -> None:
    async with serving([response(b"ok")], idle_expiry_s=0.05) as (upstream, channel):
        await answer(channel)
        assert channel.idle == 1
        await upstream.until_open(0)
        assert channel.idle == 0


@pytest.mark.parametrize(
    "script",
    [
        [response(b"ok", b"Connection: close")],
        [response(b"ok"), CLOSE],
        [b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"],
        [response(b"ok") + b"x"],
        [response(b"ok") + b"H"],
        [response(b"ok") + b"\r\n" + b"H"],
        [response(b"ok") + response(b"second")],
        [response(b"ok") + b"\r\n"],
        [response(b"ok") + b"\n"],
        [response(b"ok")[:-1], TURN, b"k\r\n"],
        [response(b"") + b"\r\n"],
        [chunked_head() + chunk(b"ok") + LAST_CHUNK + b"\r\n"],
        [chunked_head() + chunk(b"ok") + LAST_CHUNK + b"\r"],
        [chunked_head() + chunk(b"ok") + LAST_CHUNK + b"\n"],
        [chunked_head() + chunk(b"ok") + b"0\r\nX: y\r\n\r\n\r\n"],
        [chunked_head() + chunk(b"ok"), TURN, LAST_CHUNK[:-1], TURN, LAST_CHUNK[-1:] + b"\r\n"],
        [response(b"ok", b"Connection: close") + b"x"],
        [chunked_head() + chunk(b"ok") + LAST_CHUNK + response(b"second")],
        [chunked_head() + chunk(b"ok") + LAST_CHUNK + chunked_head() + chunk(b"second") + LAST_CHUNK],
        [b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc"],
        [b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n"],
        [b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n", TURN, response(b"desync")],
        [b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"],
        [b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"],
    ],
)
async def test_a_connection_that_cannot_be_trusted_with_another_request_is_not_kept(script: Script) -> None:
    async with serving(script, [response(b"fresh")], probe_after_s=0) as (upstream, channel):
        assert await answer(channel) in (b"ok", b"")
        if script[-1] is CLOSE:
            await upstream.until_open(0)
        else:
            assert channel.idle == 0
        assert await answer(channel) == b"fresh"
        assert [seen.connection for seen in upstream.requests] == [1, 2]


class Peer:
    """The other end of one connection, without a loop: what it does has happened when its method returns."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener

    async def accept(self) -> socket.socket:
        connection, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        return connection

    @staticmethod
    async def receive(connection: socket.socket, until: bytes) -> None:
        received = b""
        while until not in received:
            received += await asyncio.get_running_loop().sock_recv(connection, 65536)


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setblocking(False)
        listener.bind(str(tmp_path / "peer"))
        listener.listen()
        yield Peer(listener)


def channel_to(peer: Peer, timeouts: Timeouts = PATIENT) -> Channel:
    return Channel(UnixAddress(peer.listener.getsockname()), timeouts=timeouts, max_connections=10, probe_after_s=0)


@pytest.mark.parametrize("last_words", [b"", b"x", response(b"unasked")])
async def test_a_kept_connection_that_ended_just_now_gets_no_request(peer: Peer, last_words: bytes) -> None:
    channel = channel_to(peer)
    asking = asyncio.ensure_future(answer(channel))
    with await peer.accept() as first:
        await peer.receive(first, b"{}")
        first.sendall(response(b"one"))
        assert await asking == b"one"
        assert channel.idle == 1
        first.sendall(last_words)  # and the loop does not turn before the next request is made
        if not last_words:
            first.close()

        asking = asyncio.ensure_future(answer(channel))
        with await peer.accept() as second:
            await peer.receive(second, b"{}")
            second.sendall(response(b"two"))
            assert await asking == b"two"
        with suppress(ConnectionResetError):  # asyncio did not read the last words
            assert last_words == b"" or first.recv(100) == b""
    await channel.close()


async def test_bytes_that_nobody_asked_for_close_a_kept_connection() -> None:
    late = asyncio.Event()
    async with serving([response(b"ok"), late, b"more", HANG], [response(b"fresh")]) as (upstream, channel):
        await answer(channel)
        late.set()
        await upstream.until_open(0)
        assert channel.idle == 0
        assert await answer(channel) == b"fresh"


async def test_a_request_on_a_kept_connection_is_not_sent_twice() -> None:
    async with serving([response(b"ok")], [CLOSE], [response(b"again")]) as (upstream, channel):
        await answer(channel)
        with pytest.raises(Cut) as caught:
            await answer(channel)
        assert not caught.value.response_started
        assert len(upstream.requests) == 2


async def test_an_answer_before_the_request_was_read_is_an_answer_and_ends_the_connection(peer: Peer) -> None:
    channel = channel_to(peer)
    asking = asyncio.ensure_future(ask(channel, b"x" * 4_000_000))
    with await peer.accept() as connection:
        await peer.receive(connection, b"\r\n\r\n")
        connection.sendall(response(b"too big", status=b"413 Content Too Large"))
        exchange = await asking
        assert exchange.status == 413
        assert await exchange.read_all(100) == b"too big"
        assert (channel.live, channel.idle) == (0, 0)
    await channel.close()


async def test_more_than_max_connections_are_refused_and_nothing_is_sent() -> None:
    async with serving([HANG], [HANG], [response(b"ok")], max_connections=2) as (upstream, channel):
        waiting = [asyncio.ensure_future(ask(channel)) for _ in range(2)]
        await upstream.asked(2)
        with pytest.raises(NotConnected, match="all 2 connections"):
            await ask(channel)
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        assert await answer(channel) == b"ok"
        waiting[1].cancel()
        await asyncio.wait(waiting)
        assert channel.live == 0


# Not connected.


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_no_upstream_is_an_error_that_names_the_reason_and_not_the_place(kind: str, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        address = UnixAddress(str(tmp_path / "nobody")) if kind == "unix" else TcpAddress("127.0.0.1", port)
        channel = Channel(address, timeouts=PATIENT, max_connections=1)

        with pytest.raises(NotConnected) as caught:
            await ask(channel)
    text = f"{caught.value.message} {caught.value.remedy}"
    assert ("ENOENT" if kind == "unix" else "ECONNREFUSED") in text
    assert "127.0.0.1" not in text
    assert str(tmp_path) not in text
    assert str(port) not in text
    assert channel.live == 0


async def test_a_full_queue_of_the_listener_is_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setblocking(False)
        listener.bind(str(tmp_path / "busy"))
        listener.listen(1)
        channel = Channel(UnixAddress(str(tmp_path / "busy")), timeouts=PATIENT, max_connections=20, max_idle=0)
        asking = [asyncio.ensure_future(answer(channel)) for _ in range(20)]
        await elapsed(0.05)
        for _ in asking:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            with connection:
                await Peer.receive(connection, b"{}")
                connection.sendall(response(b"ok"))
        assert await asyncio.gather(*asking) == [b"ok"] * 20
        await channel.close()


async def test_a_full_queue_that_stays_full_is_stalled_and_leaves_nothing_open(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "busy"))
        listener.listen(0)
        address = UnixAddress(str(tmp_path / "busy"))
        limits = Timeouts(connect_s=0.2, first_byte_s=0.2, idle_s=5)
        channel = Channel(address, timeouts=limits, max_connections=5, max_idle=0)
        results = await asyncio.gather(*(answer(channel) for _ in range(5)), return_exceptions=True)
        phases = [result.phase for result in results if isinstance(result, Stalled)]
        assert len(phases) == 5
        assert set(phases) == {"connect", "first_byte"}  # some were in the queue
        assert channel.live == 0
        await channel.close()


@pytest.mark.parametrize("kind", [TcpAddress, lambda host, port: TlsAddress(host, port, frozenset(), "a")])
async def test_a_name_that_is_not_resolved_is_no_connection(kind: Callable[[str, int], Address]) -> None:
    name = ".".join(["long"] * 60)  # longer than a name may be, so that no resolver is asked
    channel = Channel(kind(name, 443), timeouts=PATIENT, max_connections=1)
    with pytest.raises(NotConnected, match="not resolved") as caught:
        await ask(channel)
    assert "long" not in caught.value.message
    assert channel.live == 0


async def test_a_name_of_several_addresses_that_all_refuse_has_a_reason_too() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        channel = Channel(TcpAddress("localhost", unused.getsockname()[1]), timeouts=PATIENT, max_connections=1)
        with pytest.raises(NotConnected, match="ECONNREFUSED"):
            await ask(channel)


@pytest.mark.parametrize("greeting", [b"220 ready\r\n", b""])
async def test_an_upstream_that_speaks_or_leaves_first_breaks_the_exchange(peer: Peer, greeting: bytes) -> None:
    channel = channel_to(peer)
    asking = asyncio.ensure_future(answer(channel))
    with await peer.accept() as connection:
        connection.sendall(greeting)
        connection.close()
        with pytest.raises(ChannelError):
            await asking
    assert channel.live == 0
    await channel.close()


# Cut.

HEAD_10 = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"


@pytest.mark.parametrize("end", [CLOSE, RESET])
@pytest.mark.parametrize(
    ("sent", "body"),
    [
        ([], None),
        ([b"H"], None),
        ([HEAD_10[:-2]], None),
        ([b"HTTP/1.1 100 Continue\r\n\r\n"], None),
        ([HEAD_10], b""),
        ([HEAD_10 + b"123456789"], b"123456789"),
        ([chunked_head()], b""),
        ([chunked_head() + b"5"], b""),
        ([chunked_head() + b"5\r\nab"], b"ab"),
        ([chunked_head() + chunk(b"abcde")], b"abcde"),
        ([chunked_head() + chunk(b"abcde") + b"0\r\n"], b"abcde"),
        ([chunked_head() + chunk(b"abcde") + b"0\r\nTrailer: t\r\n"], b"abcde"),
    ],
)
async def test_a_response_that_stops_is_cut_and_never_a_clean_end(
    sent: list[bytes], body: bytes | None, end: Step
) -> None:
    async with serving([*sent, TURN, end]) as (_, channel):
        received = b""
        with pytest.raises(Cut) as caught:  # noqa: PT012  where it stops is part of what is tested
            exchange = await ask(channel)
            while data := await exchange.read():
                received += data
        assert received == (body or b"")
        assert caught.value.response_started == bool(sent)
        if body is not None:
            with pytest.raises(Cut):
                await exchange.read()
        assert (channel.live, channel.idle) == (0, 0)


async def test_a_reset_is_no_clean_end_even_where_the_connection_delimits_the_body() -> None:
    async with serving([b"HTTP/1.1 200 OK\r\n\r\npart", TURN, RESET]) as (_, channel):
        exchange = await ask(channel)
        assert await exchange.read() == b"part"
        with pytest.raises(Cut, match="reset"):
            await exchange.read()


async def test_what_came_before_the_cut_is_delivered_first() -> None:
    async with serving([HEAD_10 + b"1234", TURN, CLOSE]) as (upstream, channel):
        exchange = await ask(channel)
        await upstream.until_open(0)
        assert await exchange.read() == b"1234"
        with pytest.raises(Cut, match="within the body"):
            await exchange.read()


# Stalled.


def unknown_key(port: int) -> TlsAddress:
    """A TLS address whose peer will not get as far as to show its key."""
    return TlsAddress("127.0.0.1", port, frozenset())


@pytest.mark.parametrize(
    ("limits", "phase"),
    [
        (Timeouts(connect_s=0.05, first_byte_s=5, idle_s=5), "connect"),
        (Timeouts(connect_s=5, first_byte_s=5, idle_s=5, total_s=0.05), "total"),
    ],
)
async def test_a_connection_that_does_not_come_about_is_stalled(peer: Peer, limits: Timeouts, phase: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, nobody answers the handshake
        address = unknown_key(silent.getsockname()[1])
        channel = Channel(address, timeouts=limits, max_connections=1)
        with pytest.raises(Stalled) as caught:
            await ask(channel)
        assert caught.value.phase == phase
        assert channel.live == 0
        await channel.close()


SHORT = 0.05
LONG = 5


@pytest.mark.parametrize(
    ("sent", "limits", "phase"),
    [
        ([], Timeouts(first_byte_s=SHORT, idle_s=LONG), "first_byte"),
        ([b"HTTP/1.1 200"], Timeouts(first_byte_s=SHORT, idle_s=LONG), "first_byte"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n"], Timeouts(first_byte_s=SHORT, idle_s=LONG), "first_byte"),
        ([sse_head()], Timeouts(first_byte_s=SHORT, idle_s=LONG), "first_byte"),
        ([sse_head() + chunk(b"a")], Timeouts(first_byte_s=LONG, idle_s=SHORT), "idle"),
        ([HEAD_10 + b"1"], Timeouts(first_byte_s=LONG, idle_s=SHORT), "idle"),
        ([], Timeouts(first_byte_s=LONG, idle_s=LONG, total_s=SHORT), "total"),
        ([sse_head() + chunk(b"a")], Timeouts(first_byte_s=LONG, idle_s=LONG, total_s=SHORT), "total"),
        ([sse_head(), REPEAT, chunk(b"a")], Timeouts(first_byte_s=LONG, idle_s=LONG, total_s=SHORT), "total"),
        ([sse_head(), REPEAT, b"HTTP"], Timeouts(first_byte_s=LONG, idle_s=LONG), None),
    ],
)
async def test_each_limit_has_its_own_name_and_the_upstream_is_left(
    sent: Script, limits: Timeouts, phase: str | None
) -> None:
    async with serving([*sent, HANG], timeouts=limits) as (upstream, channel):
        began = now()
        with pytest.raises(Stalled if phase else Malformed) as caught:
            await answer(channel)
        if isinstance(caught.value, Stalled):
            assert caught.value.phase == phase
            assert now() - began >= SHORT - 0.005
            assert now() - began < LONG
            assert f"{phase}_s = 0.05" in caught.value.message
        await upstream.left(1)


async def test_one_request_may_have_less_time_than_the_channel_gives() -> None:
    async with serving([response(b"first")], [sse_head(), HANG], [response(b"third")]) as (upstream, channel):
        await answer(channel)
        exchange = await channel.send(b"POST", b"/", [], b"{}", within_s=SHORT)
        began = now()
        with pytest.raises(Stalled) as caught:
            await exchange.read_all(1 << 30)
        assert (caught.value.phase, [seen.connection for seen in upstream.requests]) == ("total", [1, 1])
        assert now() - began < LONG
        assert await answer(channel) == b"third"


async def test_a_fresh_connection_is_made_although_one_is_pooled() -> None:
    async with serving([response(b"first")], [response(b"second")], [response(b"third")]) as (upstream, channel):
        await answer(channel)
        fresh = await channel.send(b"POST", b"/", [], b"{}", is_fresh=True)
        assert await fresh.read_all(1 << 30) == b"second"
        assert channel.idle == 2
        await answer(channel)
        assert [seen.connection for seen in upstream.requests] == [1, 2, 2]


async def test_a_limit_begins_again_with_each_exchange_on_a_kept_connection() -> None:
    limits = Timeouts(first_byte_s=0.2, idle_s=0.2)
    async with serving([response(b"ok")], [HANG], timeouts=limits) as (upstream, channel):
        await answer(channel)
        await elapsed(0.1)
        began = now()
        with pytest.raises(Stalled):
            await answer(channel)
        assert 0.195 <= now() - began < 2  # not at once, as it would be if the first exchange counted
        assert upstream.accepted == 1


async def elapsed(seconds: float) -> None:
    """Time itself is the matter of the tests that use this."""
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, passed.set)
    await passed.wait()


async def test_a_slow_reader_is_not_a_silent_upstream() -> None:
    body = b"x" * 4_000_000
    async with serving([response(body)], timeouts=Timeouts(idle_s=0.05)) as (_, channel):
        exchange = await ask(channel)
        await elapsed(0.2)
        assert await exchange.read_all(len(body)) == body


async def test_keep_alive_comments_hold_a_stream_open_beyond_the_idle_limit() -> None:
    gates = [asyncio.Event() for _ in range(4)]
    script: list[bytes | asyncio.Event] = [sse_head() + chunk(b": PROCESSING\n\n")]
    for gate in gates:
        script += [gate, chunk(b": PROCESSING\n\n")]
    async with serving([*script, LAST_CHUNK], timeouts=Timeouts(idle_s=0.2)) as (_, channel):
        exchange = await ask(channel)
        assert await exchange.read()
        for gate in gates:
            await elapsed(0.1)
            gate.set()
            assert await exchange.read()
        await exchange.read_all(1000)


# Abort.


@pytest.mark.parametrize("sent", [[], [b"HTTP/1.1 200 OK\r\n"], [b"HTTP/1.1 100 Continue\r\n\r\n"]])
@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_a_caller_that_leaves_before_the_headers_is_seen_at_once(sent: Script, kind: str, tmp_path: Path) -> None:
    async with serving([*sent, HANG], path=tmp_path / "s" if kind == "unix" else None) as (upstream, channel):
        asking = asyncio.ensure_future(ask(channel))
        await upstream.asked(1)
        left_at = now()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await upstream.left(1)
        assert upstream.departures[0].at - left_at < ABORT_WITHIN_S
        assert (channel.live, channel.idle) == (0, 0)


@pytest.mark.parametrize("how", ["abort", "cancelled read", "abort while another task reads"])
@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize("sent", [[sse_head() + chunk(b"a")], [HEAD_10 + b"a"], [b"HTTP/1.1 200 OK\r\n\r\na"]])
async def test_a_caller_that_leaves_after_the_first_byte_is_seen_at_once(
    sent: Script, how: str, kind: str, tmp_path: Path
) -> None:
    async with serving([*sent, HANG], path=tmp_path / "s" if kind == "unix" else None) as (upstream, channel):
        exchange = await ask(channel)
        assert await exchange.read() == b"a"
        left_at = now()
        if how != "abort":
            reading = asyncio.ensure_future(exchange.read())
            await asyncio.sleep(0)
            if how == "cancelled read":
                reading.cancel()
            else:
                exchange.abort()
            with pytest.raises((asyncio.CancelledError, Cut)):
                await reading
        exchange.abort()
        exchange.abort()
        await upstream.left(1)
        assert upstream.departures[0].at - left_at < ABORT_WITHIN_S
        assert (channel.live, channel.idle) == (0, 0)
        with pytest.raises(Cut, match="on this side"):
            await exchange.read()


async def test_abort_reaches_an_upstream_that_writes_faster_than_is_read() -> None:
    async with serving([sse_head(), REPEAT, chunk(b"x" * 50_000)]) as (upstream, channel):
        exchange = await ask(channel)
        await elapsed(0.05)
        left_at = now()
        exchange.abort()
        await upstream.left(1)
        assert upstream.departures[0].at - left_at < ABORT_WITHIN_S


async def test_abort_of_a_complete_exchange_changes_nothing() -> None:
    async with serving([response(b"ok")]) as (upstream, channel):
        exchange = await ask(channel)
        exchange.abort()
        assert await exchange.read() == b"ok"
        exchange.abort()
        assert (channel.live, channel.idle) == (0, 1)
        await answer(channel)
        assert upstream.accepted == 1


async def test_a_caller_that_leaves_while_connecting_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = unknown_key(silent.getsockname()[1])
        channel = Channel(address, timeouts=PATIENT, max_connections=1)
        asking = asyncio.ensure_future(ask(channel))
        silent.setblocking(False)
        connection, _ = await asyncio.get_running_loop().sock_accept(silent)
        with connection:
            assert channel.live == 1
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert channel.live == 0
            connection.setblocking(False)
            while await asyncio.get_running_loop().sock_recv(connection, 65536):
                pass  # the hello, then the end


async def leave_at_random(channel: Channel, dice: random.Random, name: bytes) -> None:
    """Ask, and stop at a random point before, at or after the first byte, or when the answer ends."""
    asking = asyncio.ensure_future(ask(channel, name))
    for _ in range(dice.randrange(12)):
        await asyncio.sleep(0)
    if not asking.done() and dice.random() < 0.5:
        asking.cancel()
    with suppress(ChannelError, asyncio.CancelledError, TimeoutError):
        exchange = await asking
        try:
            for _ in range(dice.randrange(5)):
                await asyncio.wait_for(exchange.read(), dice.choice([0.001, 0.01, 5]))
        finally:
            exchange.abort()


async def test_a_thousand_requests_with_random_aborts_leave_nothing_open(tmp_path: Path) -> None:
    dice = random.Random(7)
    event = chunk(b"data: x\n\n")
    stream: Script = [sse_head(), TURN, event, TURN, event, TURN, event, LAST_CHUNK]
    held: Script = [sse_head() + event, HANG]
    kinds: list[Script] = [stream, held, [response(b"ok")], [HANG], [sse_head(), CLOSE]]
    scripts = [dice.choice(kinds) for _ in range(1000)]
    left_at: dict[bytes, float] = {}

    async def one(channel: Channel, name: bytes) -> None:
        await leave_at_random(channel, dice, name)
        left_at[name] = now()

    limits = Timeouts(first_byte_s=0.05, idle_s=0.05)
    async with serving(*scripts, path=tmp_path / "s", timeouts=limits) as (upstream, channel):
        for batch in range(20):
            await asyncio.gather(*(one(channel, b"%d-%d" % (batch, each)) for each in range(50)))
            assert channel.live == 0
        await upstream.until_open(channel.idle)
        assert len(upstream.departures) > 100
        for departure in upstream.departures:
            assert departure.at - left_at[upstream.requests[departure.request].body] < ABORT_WITHIN_S


async def test_close_ends_what_is_live_and_what_is_idle() -> None:
    held: Script = [sse_head() + chunk(b"a"), HANG]
    async with ScriptedUpstream([response(b"ok")], held, [response(b"ok")]) as upstream:
        channel = Channel(address_of(upstream), timeouts=PATIENT, max_connections=10)
        await answer(channel)
        exchange = await ask(channel)
        await exchange.read()
        await answer(channel)
        assert (channel.live, channel.idle) == (1, 1)
        reading = asyncio.ensure_future(exchange.read())
        await asyncio.sleep(0)

        await channel.close()
        await channel.close()

        with pytest.raises(Cut, match="channel was closed"):
            await reading
        assert (channel.live, channel.idle) == (0, 0)
        await upstream.until_open(0)
        with pytest.raises(NotConnected, match="closed"):
            await ask(channel)


async def test_close_while_connecting_sends_nothing(peer: Peer) -> None:
    channel = channel_to(peer)
    asking = asyncio.ensure_future(ask(channel))
    await asyncio.sleep(0)
    assert channel.live == 1
    await channel.close()
    with pytest.raises(NotConnected):
        await asking
    with await peer.accept() as connection:
        assert await asyncio.get_running_loop().sock_recv(connection, 100) == b""


async def test_two_readers_of_one_exchange_are_a_mistake_of_ours() -> None:
    async with serving([sse_head(), HANG]) as (_, channel):
        exchange = await ask(channel)
        reading = asyncio.ensure_future(exchange.read())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one task"):
            await exchange.read()
        reading.cancel()


# Bounds.


def head_of(size: int) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: "
    return head + b"x" * (size - len(head) - 4) + b"\r\n\r\n"


@pytest.mark.parametrize("piece", [100_000, 1000, 7])
@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n"])
async def test_a_head_at_the_limit_passes_and_one_byte_more_does_not(piece: int, interim: bytes) -> None:
    def script(size: int) -> Script:
        stream = interim + head_of(size - len(interim)) + b"ok"
        pieces = [stream[start : start + piece] for start in range(0, len(stream), piece)]
        return turning(pieces)

    async with serving(script(4096), script(4097), max_header_bytes=4096) as (_, channel):
        assert await answer(channel) == b"ok"
        with pytest.raises(Malformed, match="more than 4096 bytes"):
            await answer(channel)
        assert channel.live == 0


@pytest.mark.parametrize("endless", [b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000, b"HTTP/1.1 103 A\r\nX: " + b"x" * 1000])
async def test_a_head_without_end_is_refused(endless: bytes) -> None:
    async with serving([REPEAT, endless]) as (upstream, channel):
        with pytest.raises(Malformed, match="headers of more than"):
            await ask(channel)
        await upstream.left(1)


@pytest.mark.parametrize("turn", [[], [TURN]])
async def test_interim_responses_are_counted(turn: list[Step]) -> None:
    interim: list[bytes | Step] = [b"HTTP/1.1 103 Early Hints\r\n\r\n", *turn]
    async with serving([*interim * 16, response(b"ok")], [*interim * 17, response(b"ok"), HANG]) as (upstream, channel):
        assert await answer(channel) == b"ok"
        with pytest.raises(Malformed, match="more than 16 interim responses"):
            await answer(channel)
        await upstream.left(1)


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        ([chunked_head(), b"5;" + b"a" * 1100 + b"\r\nabcde\r\n", LAST_CHUNK], "chunk extensions"),
        ([chunked_head() + b"5;" + b"a" * 1100 + b"\r\nabcde\r\n" + LAST_CHUNK], "chunk extensions"),
        ([chunked_head(), b"0" * 1100 + b"5\r\nabcde\r\n", LAST_CHUNK], "chunk extensions"),
        ([chunked_head() + b"5;", REPEAT, b"a"], "chunk extensions"),
        ([chunked_head() + b"5;", REPEAT, b"a" * 10_000], "chunk extensions"),
        ([chunked_head(), REPEAT, b"0"], "chunk extensions"),
        ([chunked_head() + b"0\r\nX: ", REPEAT, b"a" * 100], "trailers"),
        ([chunked_head() + b"0\r\n", REPEAT, b"X: y\r\n"], "trailers"),
    ],
)
async def test_chunk_framing_is_bounded(sent: Script, fault: str) -> None:
    async with serving([*sent, HANG]) as (_, channel):
        exchange = await ask(channel)
        with pytest.raises(Malformed, match=fault):
            await exchange.read_all(100_000)


@pytest.mark.parametrize(
    "stream",
    [
        chunk(b"x") * 20_000 + LAST_CHUNK,
        b"00000001\r\nx\r\n" * 20_000 + LAST_CHUNK,
        b"1;name=value\r\nx\r\n" + chunk(b"x") * 19_999 + b"0;" + b"a" * 500 + b"\r\nA: b\r\n\r\n",
    ],
)
@pytest.mark.parametrize("piece", [1 << 20, 1001])
async def test_many_small_chunks_are_fine(stream: bytes, piece: int) -> None:
    stream = chunked_head() + stream
    script = [stream[start : start + piece] for start in range(0, len(stream), piece)]
    async with serving(script) as (upstream, channel):
        assert await answer(channel) == b"x" * 20_000
        assert await answer(channel) == b"x" * 20_000
        assert upstream.accepted == 1


@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize("pattern", ["length", "chunks"])
async def test_a_slow_reader_of_a_big_body_keeps_memory_bounded(kind: str, pattern: str, tmp_path: Path) -> None:
    piece = random.Random(3).randbytes(64 * 1024)
    count = 512  # 32 MiB
    script: list[bytes] = [chunked_head(), *[chunk(piece)] * count, LAST_CHUNK]
    if pattern == "length":
        script = [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(piece) * count), *[piece] * count]
    async with serving(script, path=tmp_path / "s" if kind == "unix" else None) as (_, channel):
        exchange = await ask(channel)
        most = total = 0
        for turn in itertools.count():
            for _ in range(20 if turn < 20 else 1):
                await asyncio.sleep(0)
            most = max(most, exchange.buffered_bytes)
            data = await exchange.read()
            assert data == (piece * (len(data) // len(piece) + 2))[(offset := total % len(piece)) : offset + len(data)]
            total += len(data)
            if not data:
                break
        assert total == len(piece) * count
        assert 256 * 1024 < most <= 512 * 1024  # what was there, and one read of the loop on top
        assert channel.idle == 1


# Lies.

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "stream",
    [
        # refused by the parser
        OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        OK + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        OK + b"Content-Length: 3, 3\r\n\r\nabc",
        OK + b"Content-Length: +3\r\n\r\nabc",
        OK + b"Content-Length: -3\r\n\r\nabc",
        OK + b"Content-Length: 0x3\r\n\r\nabc",
        OK + b"Content-Length: \r\n\r\nabc",
        OK + b"Content-Length: 99999999999999999999999\r\n\r\nabc",
        OK + b"Content-Length : 3\r\n\r\nabc",
        OK + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        OK + b"X: a\r\n\tb\r\nContent-Length: 0\r\n\r\n",
        OK + b" X: a\r\nContent-Length: 0\r\n\r\n",
        OK + b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
        OK + b"X: a\rb\r\nContent-Length: 0\r\n\r\n",
        OK + b"X(y): a\r\nContent-Length: 0\r\n\r\n",
        OK + b": a\r\nContent-Length: 0\r\n\r\n",
        OK + b"Content-Length: 3\n\r\nabc",
        OK + b"Content-Length: 3\r\n\nabc",
        OK + b"Content-Length: 3\r\n\rabc",
        OK + b"Content-Length: 3\r\r\n\r\nabc",
        OK + b"Content-Length: 3 3\r\n\r\nabc",
        OK + b"Content-Length: 3.0\r\n\r\nabc",
        OK + b"Content-Length: 3e0\r\n\r\nabc",
        OK + b"Content-Length: 0_3\r\n\r\nabc",
        OK + b"Content-Length: \xd9\xa3\r\n\r\nabc",
        OK + b"Content-Length: 3;\r\n\r\nabc",
        OK + b"Content-Length: 3\r\ncontent-length: 30\r\nCONTENT-LENGTH: 300\r\n\r\nabc",
        OK + b"Content-Length:\r\n 3\r\n\r\nabc",
        OK + b"Content-Length\r\n: 3\r\n\r\nabc",
        OK + b"Content-Length\t: 3\r\n\r\nabc",
        OK + b"Content-Length\0: 3\r\n\r\nabc",
        OK + b"Content\r-Length: 3\r\n\r\nabc",
        OK + b"X: a\x01b\r\nContent-Length: 0\r\n\r\n",
        OK + b"X: a\x7fb\r\nContent-Length: 0\r\n\r\n",
        OK + b"X: a\nContent-Length: 3\r\n\r\nabc",
        OK + b"X\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc",
        b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\nabc",
        # and by us
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc",
        b"HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nContent-Length: 3\r\n\r\nabc" + OK + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1  200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1\t200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 +20 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 -20 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.10 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1,1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTPS/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 O\nK\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\x16\x03\x01",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: identity\r\n\r\nabc",
        OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: \r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\x0b\r\n\r\n0\r\n\r\n",
        OK + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
        OK + b"Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("piece", [1000, 1])
async def test_a_head_that_two_readers_could_take_for_two_things_is_refused(stream: bytes, piece: int) -> None:
    pieces = [stream[start : start + piece] for start in range(0, len(stream), piece)]
    script = turning(pieces)
    async with serving([*script, HANG]) as (upstream, channel):
        with pytest.raises(Malformed) as caught:
            await ask(channel)
        assert "abc" not in caught.value.message
        await upstream.left(1)
        assert (channel.live, channel.idle) == (0, 0)


@pytest.mark.parametrize(
    "stream",
    [
        b"3\nabc\n0\n\n",
        b"x\r\nabc\r\n",
        b"0x3\r\nabc\r\n",
        b"3 \r\nabc\r\n",
        b"-3\r\nabc\r\n",
        b"\r\nabc\r\n",
        b"3\r\nabcd\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"ffffffffffffffffff\r\nabc",
        b"0\r\nContent-Length: 3\r\n\r\n",
        b"0\r\n folded\r\n\r\n",
        b"+3\r\nabc\r\n",
        b"3_0\r\nabc\r\n",
        b"3h\r\nabc\r\n",
        b"3\t\r\nabc\r\n",
        b"3 ;a\r\nabc\r\n",
        b"3\r\r\nabc\r\n",
        b"3\rabc\r\n",
        b"3\r\nabc\r0\r\n\r\n",
        b"3\r\nabc0\r\n\r\n",
        b"3\r\nab\r\n0\r\n\r\n",
        b"3;a\nabc\r\n0\r\n\r\n",
        b"3;a\rb\r\nabc\r\n",
        b"3;a=\0\r\nabc\r\n",
        b"3;\r\n\nabc\r\n",
        b"0\r\n\n",
        b"0\r\n\rX",
        b"0\r\nX: y\n\r\n",
        b"0\r\nX: y\rZ: z\r\n\r\n",
        b"0\r\nX : y\r\n\r\n",
        b"0\r\nX\r\n\r\n",
        b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"fffffffffffffffff\r\nabc",
        b"10000000000000000\r\nabc",
    ],
)
@pytest.mark.parametrize("piece", [1000, 1])
async def test_chunks_that_do_not_add_up_are_refused(stream: bytes, piece: int) -> None:
    pieces = [stream[start : start + piece] for start in range(0, len(stream), piece)]
    script = turning(pieces)
    async with serving([chunked_head() + chunk(b"first"), *script, HANG]) as (upstream, channel):
        received = b""
        with pytest.raises(Malformed):  # noqa: PT012  what came before is delivered
            exchange = await ask(channel)
            while data := await exchange.read():
                received += data
        assert received.startswith(b"first")
        await upstream.left(1)
        assert (channel.live, channel.idle) == (0, 0)


def test_an_expiry_of_nothing_is_refused_and_not_waited_for_in_a_busy_loop() -> None:
    with pytest.raises(ValueError, match="max_idle=0"):
        Channel(UnixAddress("unused"), timeouts=Timeouts(), max_connections=1, idle_expiry_s=0)


async def test_without_idle_connections_each_request_has_its_own(tmp_path: Path) -> None:
    async with ScriptedUpstream([response(b"x")], path=tmp_path / "s") as upstream:
        channel = Channel(UnixAddress(str(tmp_path / "s")), timeouts=Timeouts(), max_connections=4, max_idle=0)
        for _ in range(3):
            exchange = await channel.send(b"GET", b"/", [], b"")
            assert await exchange.read_all(10) == b"x"
        assert upstream.accepted == 3
        assert (channel.idle, channel.live) == (0, 0)
        await channel.close()
