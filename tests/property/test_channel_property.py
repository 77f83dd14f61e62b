"""In whatever segments it comes, a response is read the same; and no changed head yields a body it does not frame."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from hypothesis import example, given, settings
from hypothesis import strategies as st

from confide.upstream.channel import Channel, ChannelError, Cut, Malformed, Timeouts, UnixAddress
from http_reference import Broken, Fields, read_response
from scripted import CLOSE, TURN, Script, ScriptedUpstream, Step

Outcome = tuple[int, Fields, bytes, bool] | ChannelError


class Line:
    """A loop with an upstream and a channel to it, for many examples."""

    def __init__(self, runner: asyncio.Runner, home: Path) -> None:
        self.runner = runner
        self.home = home
        self.upstream = runner.run(self.started())
        self.channel = Channel(UnixAddress(str(home / "s")), timeouts=Timeouts(), max_connections=1)

    async def started(self) -> ScriptedUpstream:
        return await ScriptedUpstream([], path=self.home / "s").__aenter__()

    async def ended(self) -> None:
        await self.channel.close()
        await self.upstream.__aexit__(None, None, None)

    def receive(self, script: Script) -> Outcome:
        """What the channel makes of what this script writes. It holds no connection to it afterwards."""
        return self.runner.run(self.received(script))

    async def received(self, script: Script) -> Outcome:
        self.upstream.scripts = (script,)
        try:
            exchange = await self.channel.send(b"GET", b"/", [], b"")
            body = await exchange.read_all(1 << 20)
            return exchange.status, exchange.headers, body, exchange.delimited_by_close
        except ChannelError as error:
            assert self.channel.idle == 0
            return error
        finally:
            assert self.channel.live == 0
            if CLOSE in script:
                await self.upstream.until_open(0)


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else None
    with tempfile.TemporaryDirectory() as home, asyncio.Runner(loop_factory=factory) as runner:
        line = Line(runner, Path(home))
        yield line
        runner.run(line.ended())


names = st.from_regex(r"\A[A-Za-z][A-Za-z0-9-]{0,10}\Z").map(str.encode)
values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20).map(str.encode)
headers = st.lists(
    st.tuples(names, values).filter(
        lambda field: field[0].lower() not in (b"content-length", b"transfer-encoding", b"connection", b"upgrade")
    ),
    max_size=4,
)
statuses = st.sampled_from([b"200 OK", b"200", b"201 ", b"404 Not Found", b"500 Oh \xc3\xa4 no", b"599 x"])
interims = st.lists(
    st.sampled_from([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 E\r\nLink: a\r\n\r\n"]), max_size=2
)
sizes = st.sampled_from([b"%x", b"%X", b"%04x", b"%x;name=value", b'%x;a="b c";d'])


def as_lines(fields: Fields) -> bytes:
    return b"".join(b"%b: %b\r\n" % field for field in fields)


@st.composite
def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    """The body in chunks of any size, with extensions and trailers."""
    framed, left = b"", body
    while left:
        size = draw(st.integers(1, len(left)))
        framed += draw(sizes) % size + b"\r\n" + left[:size] + b"\r\n"
        left = left[size:]
    trailers = as_lines(draw(headers))
    return framed + draw(st.sampled_from([b"0", b"000", b"0;last"])) + b"\r\n" + trailers + b"\r\n"


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    """A valid response that says where it ends."""
    body = draw(st.binary(max_size=60))
    lines = [b"HTTP/1.1 " + draw(statuses), *(b"%b: %b" % field for field in draw(headers))]
    if draw(st.booleans()):
        lines.append(draw(st.sampled_from([b"Transfer-Encoding: chunked", b"transfer-encoding: \tCHUNKED"])))
        framed = draw(chunked(body))
    else:
        lines.append(draw(st.sampled_from([b"Content-Length: %d", b"content-length:%04d \t"])) % len(body))
        framed = body
    return b"".join(draw(interims)) + b"\r\n".join(lines) + b"\r\n\r\n" + framed


@st.composite
def cut_up(draw: st.DrawFn) -> list[bytes]:
    """A valid response in the segments in which it arrives."""
    stream = draw(responses())
    if draw(st.booleans()):
        return [bytes([byte]) for byte in stream]
    cuts = sorted(draw(st.sets(st.integers(1, len(stream) - 1), max_size=8)))
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def arriving(pieces: list[bytes], *end: Step) -> Script:
    """The script by which each piece arrives alone."""
    return [*(step for piece in pieces for step in (piece, TURN)), *end]


def framed(stream: bytes) -> Outcome | None:
    """What the reference makes of a stream that ended; None where it is no response."""
    try:
        read = read_response(stream)
    except Broken:
        return None
    return read.status, read.headers, read.body, read.by_close


@given(cut_up())
@settings(deadline=None)
def test_a_response_is_the_same_in_any_segments(line: Line, pieces: list[bytes]) -> None:
    expected = framed(b"".join(pieces))
    assert expected is not None
    assert line.receive(arriving(pieces)) == expected
    assert line.channel.idle == 1  # and its end was found


@given(responses(), st.data())
@settings(deadline=None)
def test_a_response_that_is_not_all_there_is_no_response(line: Line, stream: bytes, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(stream) - 1))
    pieces = [stream[:length]] if data.draw(st.booleans()) else [bytes([byte]) for byte in stream[:length]]
    outcome = line.receive(arriving(pieces, CLOSE))
    assert isinstance(outcome, Cut | Malformed)
    if isinstance(outcome, Cut):
        assert outcome.response_started == (length > 0)


PLANTS = [
    *(b"Content-Length: %b\r\n" % value for value in (b"0", b"3", b"+3", b"-3", b"0x3", b"3,3", b"3 3", b"", b"1e1")),
    *(b"Transfer-Encoding: %b\r\n" % value for value in (b"chunked", b"identity", b"gzip, chunked", b"xchunked", b"")),
    *(b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b";", b",", b"\x0b", b"\x7f", b"\xff", b"0", b"9"),
    *(
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"Connection: close\r\n",
        b"X: y\r\n z\r\n",
        b"X : y\r\n",
    ),
    *(
        b"Content-Length : 3\r\n",
        b"Content_Length: 3\r\n",
        b" Content-Length: 3\r\n",
        b"HTTP/1.0",
        b"204",
        b"304",
        b"101",
    ),
]


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A response after up to three changes, most of them in its head."""
    stream = draw(responses())
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        head_end = stream.find(b"\r\n\r\n") + 4
        at = draw(st.integers(0, head_end if draw(st.integers(0, 3)) else len(stream)))
        is_line = draw(st.booleans())
        at = stream.rfind(b"\r\n", 0, at) + 2 if is_line else at
        plant = draw(
            st.sampled_from(PLANTS) | (headers.map(as_lines) if is_line else st.binary(min_size=1, max_size=2))
        )
        removed = 0 if is_line else draw(st.sampled_from([0, 0, 1, 2, len(plant)]))
        stream = stream[:at] + plant + stream[at + removed :]
    return stream


@given(spoilt(), st.sampled_from([1 << 20, 7, 1]))
@settings(deadline=None, max_examples=400)
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 1 << 20)
@example(b"HTTP/1.1 200 OK\r\n\r\nno length", 1)
def test_a_changed_head_never_yields_a_body_that_it_does_not_frame(line: Line, stream: bytes, size: int) -> None:
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    outcome = line.receive(arriving(pieces, CLOSE))
    if isinstance(outcome, ChannelError):
        assert isinstance(outcome, Cut | Malformed)
    else:
        assert outcome == framed(stream)
