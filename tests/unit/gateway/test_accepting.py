"""How processes share a listening socket, as far as it can be seen in one process."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from confide.gateway.accepting import ABSENT, ConnectionCounts, Door
from confide.gateway.http import Protocol
from tls_files import self_signed


class Greeting(asyncio.Protocol):
    """Says which door it came through."""

    def __init__(self, name: bytes) -> None:
        self.name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self.name)

    def connection_lost(self, exc: Exception | None) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener


def greeting(door: Door, name: bytes) -> asyncio.Protocol:
    """A protocol that the door counts."""
    counted = door.counting(Greeting)  # type: ignore[arg-type]  # any protocol that can be subclassed
    made: asyncio.Protocol = counted(name)  # type: ignore[arg-type, call-arg]
    return made


@contextlib.asynccontextmanager
async def doors(listener: socket.socket, counts: ConnectionCounts, number: int) -> AsyncIterator[list[Door]]:
    """So many doors to one socket, open."""
    made = [Door(listener.dup(), counts, each) for each in range(number)]
    for each, door in enumerate(made):
        door.open(lambda door=door, each=each: greeting(door, b"%d" % each), None)  # type: ignore[misc]
    try:
        yield made
    finally:
        for door in made:
            door.close()
            door._listener.close()


class Visits:
    """Connections to the listener, open until `leave`."""

    def __init__(self, listener: socket.socket) -> None:
        self._address = listener.getsockname()
        self._writers: list[asyncio.StreamWriter] = []

    async def one(self) -> int:
        """Connect, and be greeted; by which door."""
        reader, writer = await asyncio.open_connection(*self._address)
        self._writers.append(writer)
        return int(await reader.readexactly(1))

    async def leave(self) -> None:
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@pytest.fixture
async def visits(listener: socket.socket) -> AsyncIterator[Visits]:
    visits = Visits(listener)
    yield visits
    await visits.leave()


async def test_connections_are_shared_out_and_counted_until_they_end(listener: socket.socket, visits: Visits) -> None:
    counts = ConnectionCounts(3)
    async with doors(listener, counts, 3):
        met = [await visits.one() for _ in range(12)]
        assert sorted(met) == [0] * 4 + [1] * 4 + [2] * 4
        await visits.leave()
        async with asyncio.timeout(10):
            while list(counts._counts) != [0, 0, 0]:
                await asyncio.sleep(0.005)
    assert list(counts._counts) == [ABSENT] * 3


async def test_whoever_has_more_takes_what_nobody_else_takes(listener: socket.socket, visits: Visits) -> None:
    counts = ConnectionCounts(2)
    async with doors(listener, counts, 1):
        counts.enter(1)  # it has none, and does not come to the door
        for number in range(5):
            assert await visits.one() == 0
            assert counts._counts[0] == number + 1


async def test_a_closed_door_takes_nobody_and_the_other_all(listener: socket.socket, visits: Visits) -> None:
    counts = ConnectionCounts(2)
    async with doors(listener, counts, 2) as (first, _):
        first.close()
        first.close()
        assert [await visits.one() for _ in range(6)] == [1] * 6


async def test_who_does_not_speak_tls_is_forgotten(listener: socket.socket, tmp_path: Path) -> None:
    counts = ConnectionCounts(1)
    files = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    door = Door(listener, counts, 0)
    door.open(lambda: greeting(door, b"0"), context)
    _, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"GET / HTTP/1.1\r\n\r\n" * 10)
    async with asyncio.timeout(10):
        while counts._counts[0] != 0 or door._handshakes:
            await asyncio.sleep(0.005)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    door.close()


def test_the_protocol_that_is_counted_is_the_services_own() -> None:
    with socket.socket() as listener:
        assert issubclass(Door(listener, ConnectionCounts(1), 0).counting(Protocol), Protocol)
