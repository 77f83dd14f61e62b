"""The channel over TLS: who may see a request is settled inside the handshake, and an end is told from a cut."""

import asyncio
import socket
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from confide.upstream.address import encoded_host
from confide.upstream.channel import (
    Channel,
    Cut,
    Exchange,
    NotConnected,
    TcpAddress,
    Timeouts,
    TlsAddress,
    UnixAddress,
    WrongKey,
)
from scripted import (
    CLOSE,
    CUT,
    HANG,
    LAST_CHUNK,
    RESET,
    TURN,
    Script,
    ScriptedUpstream,
    Step,
    chunk,
    response,
    server_tls,
    sse_head,
)
from tls_files import TlsFiles, self_signed

pytestmark = pytest.mark.both_loops

PATIENT = Timeouts(connect_s=5, first_byte_s=5, idle_s=5)
OTHER_PIN = bytes(range(32))


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    return self_signed(tmp_path)


@pytest.fixture
def other_files(tmp_path: Path) -> TlsFiles:
    (tmp_path / "other").mkdir()
    return self_signed(tmp_path / "other")


@asynccontextmanager
async def serving(
    files: TlsFiles, *scripts: Script, pins: frozenset[bytes] | None = None
) -> AsyncIterator[tuple[ScriptedUpstream, Channel]]:
    """An upstream that has the key of `files`, and a channel to it with that key pinned, or with `pins`."""
    async with ScriptedUpstream(*scripts, tls=server_tls(files)) as upstream:
        pinned = frozenset([files.spki_sha256]) if pins is None else pins
        channel = Channel(TlsAddress("127.0.0.1", upstream.port, pinned), timeouts=PATIENT, max_connections=10)
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


# Who the peer is.


@pytest.mark.parametrize("others", [[], [OTHER_PIN, bytes(32)]])
async def test_a_pinned_key_gets_the_requests_on_a_kept_connection(files: TlsFiles, others: list[bytes]) -> None:
    pins = frozenset([files.spki_sha256, *others])
    async with serving(files, [response(b"ok")], pins=pins) as (upstream, channel):
        for _ in range(3):
            assert await answer(channel) == b"ok"
        assert upstream.accepted == 1
        assert channel.idle == 1


@pytest.mark.parametrize("pins", [frozenset([OTHER_PIN]), frozenset([OTHER_PIN, bytes(32)]), frozenset[bytes]()])
async def test_another_key_gets_nothing(files: TlsFiles, pins: frozenset[bytes]) -> None:
    async with serving(files, [response(b"ok")], pins=pins) as (upstream, channel):
        with pytest.raises(WrongKey) as caught:
            await answer(channel)
        assert isinstance(caught.value, NotConnected)
        assert files.spki_sha256.hex() in caught.value.message
        assert "127.0.0.1" not in caught.value.message
        await upstream.until_open(0)
        assert (upstream.bytes_received, upstream.requests) == (0, [])
        assert channel.live == 0


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_both_versions_in_use_serve(files: TlsFiles, version: ssl.TLSVersion) -> None:
    context = server_tls(files)
    context.minimum_version = context.maximum_version = version
    async with ScriptedUpstream([response(b"ok")], tls=context) as upstream:
        address = TlsAddress("127.0.0.1", upstream.port, frozenset([files.spki_sha256]))
        channel = Channel(address, timeouts=PATIENT, max_connections=1)
        for _ in range(3):
            assert await answer(channel) == b"ok"
        assert upstream.accepted == 1
        await channel.close()


async def test_without_pins_an_unknown_authority_is_refused(files: TlsFiles) -> None:
    async with ScriptedUpstream([response(b"ok")], tls=server_tls(files)) as upstream:
        channel = Channel(TlsAddress("127.0.0.1", upstream.port, None), timeouts=PATIENT, max_connections=1)
        with pytest.raises(NotConnected, match="CERTIFICATE_VERIFY_FAILED") as caught:
            await answer(channel)
        assert not isinstance(caught.value, WrongKey)
        assert "127.0.0.1" not in caught.value.message
        await upstream.until_open(0)
        assert upstream.bytes_received == 0
        await channel.close()


@pytest.mark.parametrize(
    ("host", "server_name", "is_served"),
    [("127.0.0.1", None, True), ("localhost", None, False), ("localhost", "127.0.0.1", True)],
)
async def test_without_pins_a_certificate_of_a_known_root_serves_its_own_name_only(
    files: TlsFiles, host: str, server_name: str | None, is_served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(files.cert))
    async with ScriptedUpstream([response(b"ok")], tls=server_tls(files)) as upstream:
        address = TlsAddress(host, upstream.port, None, server_name)
        channel = Channel(address, timeouts=PATIENT, max_connections=1)
        if is_served:
            assert await answer(channel) == b"ok"
            assert upstream.requests[0].headers[0] == (b"host", b"127.0.0.1:%d" % upstream.port)
        else:
            with pytest.raises(NotConnected, match="CERTIFICATE_VERIFY_FAILED") as caught:
                await answer(channel)
            assert "localhost" not in caught.value.message
            assert upstream.bytes_received == 0
        await channel.close()


async def test_the_peer_is_asked_for_the_server_name(files: TlsFiles) -> None:
    asked: list[str | None] = []
    context = server_tls(files)
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    async with ScriptedUpstream([response(b"ok")], tls=context) as upstream:
        address = TlsAddress("127.0.0.1", upstream.port, frozenset([files.spki_sha256]), "api.example")
        channel = Channel(address, timeouts=PATIENT, max_connections=1)
        assert await answer(channel) == b"ok"
        assert asked == ["api.example"]
        assert upstream.requests[0].headers[0] == (b"host", b"api.example:%d" % upstream.port)
        await channel.close()


def test_an_address_names_itself_as_a_url_would() -> None:
    none: frozenset[bytes] = frozenset()
    assert TlsAddress("api.example", 443, none).authority == b"api.example"
    assert TlsAddress("10.0.0.1", 443, none, "api.example").authority == b"api.example"
    assert TlsAddress("::1", 8443, none).authority == b"[::1]:8443"
    assert TcpAddress("::1", 80).authority == b"[::1]:80"
    assert TcpAddress("bücher.example", 80).authority == b"xn--bcher-kva.example:80"
    assert encoded_host("localhost") == b"localhost"


@pytest.mark.parametrize("host", ["", "a..b", "x" * 64])
def test_what_is_no_host_is_refused_where_it_is_named(host: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Channel(TcpAddress(host, 80), timeouts=PATIENT, max_connections=1)


@pytest.mark.parametrize("pin", [b"", b"x" * 31, b"x" * 33, b"ab" * 32])
def test_what_is_no_digest_is_no_pin(pin: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        TlsAddress("127.0.0.1", 443, frozenset([pin]))


# Pins are replaced.


async def test_a_kept_connection_to_a_key_that_is_pinned_no_longer_is_not_used(
    files: TlsFiles, other_files: TlsFiles
) -> None:
    async with serving(files, [response(b"ok")]) as (upstream, channel):
        assert await answer(channel) == b"ok"
        assert channel.idle == 1

        channel.pin(frozenset([other_files.spki_sha256]))

        assert channel.idle == 0
        await upstream.until_open(0)
        with pytest.raises(WrongKey):
            await answer(channel)
        assert len(upstream.requests) == 1
        assert upstream.tls is not None
        upstream.tls.load_cert_chain(other_files.cert, other_files.key)
        assert await answer(channel) == b"ok"
        # A handshake that failed was no connection to the other end.
        assert [seen.connection for seen in upstream.requests] == [1, 2]


async def test_a_kept_connection_to_a_key_that_stays_pinned_is_used(files: TlsFiles) -> None:
    async with serving(files, [response(b"ok")]) as (upstream, channel):
        assert await answer(channel) == b"ok"
        channel.pin(frozenset([files.spki_sha256, OTHER_PIN]))
        assert await answer(channel) == b"ok"
        assert upstream.accepted == 1


async def test_an_exchange_that_was_begun_comes_to_its_end_and_its_connection_is_not_kept(files: TlsFiles) -> None:
    more = asyncio.Event()
    async with serving(files, [sse_head() + chunk(b"a"), more, chunk(b"b") + LAST_CHUNK]) as (upstream, channel):
        exchange = await ask(channel)
        assert await exchange.read() == b"a"
        channel.pin(frozenset([OTHER_PIN]))
        more.set()
        assert await exchange.read_all(10) == b"b"
        assert (channel.live, channel.idle) == (0, 0)
        await upstream.until_open(0)


async def test_pins_that_are_replaced_within_the_handshake_hold(files: TlsFiles) -> None:
    async with serving(files, [response(b"ok")]) as (upstream, channel):
        for turns in range(40):  # wherever the handshake is by then
            channel.pin(frozenset([files.spki_sha256]))
            asking = asyncio.ensure_future(answer(channel))
            for _ in range(turns):
                await asyncio.sleep(0)
            asked = len(upstream.requests)
            channel.pin(frozenset([OTHER_PIN]))
            if asked == 0 and channel.live == 0:
                continue
            result = (await asyncio.gather(asking, return_exceptions=True))[0]
            assert result == b"ok" or isinstance(result, WrongKey)
            if isinstance(result, WrongKey):
                assert len(upstream.requests) == asked
            assert (channel.live, channel.idle) == (0, 0)


@pytest.mark.parametrize(
    "address", [UnixAddress("unused"), TcpAddress("127.0.0.1", 1), TlsAddress("localhost", 1, None)]
)
def test_only_pins_can_be_replaced_by_pins(address: UnixAddress | TcpAddress | TlsAddress) -> None:
    channel = Channel(address, timeouts=PATIENT, max_connections=1)
    with pytest.raises(ValueError, match="has none"):
        channel.pin(frozenset([OTHER_PIN]))


# Ends.


@pytest.mark.parametrize(("end", "is_clean"), [(CLOSE, True), (CUT, False), (RESET, False)])
async def test_a_body_without_a_length_ends_only_where_the_peer_says_so(
    files: TlsFiles, end: Step, is_clean: bool
) -> None:
    async with serving(files, [b"HTTP/1.1 200 OK\r\n\r\npart", TURN, end]) as (_, channel):
        exchange = await ask(channel)
        assert exchange.delimited_by_close
        assert await exchange.read() == b"part"
        if is_clean:
            assert await exchange.read() == b""
        else:
            with pytest.raises(Cut):
                await exchange.read()
        assert (channel.live, channel.idle) == (0, 0)


@pytest.mark.parametrize("size", [300_000, 450_000, 700_000, 1_000_000, 3_000_000])
@pytest.mark.parametrize("end", [CLOSE, CUT])
async def test_a_slow_reader_gets_all_of_a_body_whose_upstream_has_left(files: TlsFiles, size: int, end: Step) -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size
    async with serving(files, [head + b"x" * size, end]) as (_, channel):
        exchange = await ask(channel)
        received = b""
        while True:
            for _ in range(20):
                await asyncio.sleep(0)
            if not (data := await exchange.read()):
                break
            received += data
        assert received == b"x" * size


@pytest.mark.parametrize("script", [[response(b"ok")], [HANG]])
async def test_a_server_without_tls_is_not_sent_a_request(script: Script) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = TlsAddress("127.0.0.1", listener.getsockname()[1], frozenset([OTHER_PIN]))
        channel = Channel(address, timeouts=PATIENT, max_connections=1)
        asking = asyncio.ensure_future(answer(channel))
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        with connection:
            hello = await asyncio.get_running_loop().sock_recv(connection, 65536)
            connection.sendall(response(b"no TLS here"))
            with pytest.raises(NotConnected, match="TLS failed: WRONG_VERSION_NUMBER"):
                await asking
            assert b"POST" not in hello
        await channel.close()


# Both ways are bounded.


async def test_a_big_request_and_a_big_answer(files: TlsFiles) -> None:
    body = bytes(range(256)) * 20_000
    async with serving(files, [response(body)]) as (upstream, channel):
        exchange = await ask(channel, body)
        assert await exchange.read_all(len(body)) == body
        assert upstream.requests[0].body == body
        assert channel.idle == 1


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("kind", ["unix", "tcp", "tls"])
async def test_a_big_request_waits_for_its_reader_outside_of_memory(kind: str, files: TlsFiles, tmp_path: Path) -> None:
    body = bytes(12 << 20)
    async with ScriptedUpstream(
        [response(b"ok")],
        path=tmp_path / "s" if kind == "unix" else None,
        tls=server_tls(files) if kind == "tls" else None,
    ) as upstream:
        address = UnixAddress(str(tmp_path / "s")) if kind == "unix" else TcpAddress("127.0.0.1", upstream.port)
        pinned = TlsAddress("127.0.0.1", upstream.port, frozenset([files.spki_sha256]))
        channel = Channel(pinned if kind == "tls" else address, timeouts=PATIENT, max_connections=1)
        assert await answer(channel) == b"ok"
        [connection] = upstream.open
        connection.transport.pause_reading()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()

        asking = asyncio.ensure_future(ask(channel, body))
        for _ in range(200):
            await asyncio.sleep(0)

        assert tracemalloc.get_traced_memory()[1] - before < 3 << 20
        assert upstream.bytes_received < len(body)
        connection.transport.resume_reading()
        exchange = await asking
        assert await exchange.read_all(2) == b"ok"
        assert upstream.requests[1].body == body
        assert channel.idle == 1
        await channel.close()
