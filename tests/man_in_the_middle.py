"""Somebody on the way: takes every connection to a service, and passes it on, reads it, or changes it.

    with between(service, own=self_signed(tmp_path)) as relay:
        relay.intercepts = lambda number: number > 0    # the first connection is passed on untouched
        ...
        assert relay.read == b""                        # what it could read of what clients sent

A TLS connection that it intercepts ends at its own key; what it cannot intercept it passes on as ciphertext. Plain HTTP
is always read.
"""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Protocol

from attested_service import STOP_WITHIN_S
from ending import end
from tls_files import TlsFiles

READ_BYTES = 64 * 1024


class Reached(Protocol):
    """The service, as whoever connects to it knows it: its port on 127.0.0.1, and whether it speaks TLS."""

    @property
    def port(self) -> int: ...

    @property
    def tls(self) -> bool: ...


def unchanged(data: bytes) -> bytes:
    return data


class Relay:
    """`connections`: how many clients came. `read`: what it could read of their bytes. `to_service`, `to_client`: what
    it makes of the bytes that it can read, a read at a time.
    """

    def __init__(self, service: Reached, own: TlsFiles | None) -> None:
        self.port = self.inner_port = 0
        self.connections = 0
        self.read = b""
        self.intercepts: Callable[[int], bool] = lambda _: True
        self.to_service: Callable[[bytes], bytes] = unchanged
        self.to_client: Callable[[bytes], bytes] = unchanged
        self._service = service
        self.writers: list[asyncio.StreamWriter] = []
        self.own: ssl.SSLContext | None = None
        if own is not None:
            self.own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.own.load_cert_chain(own.cert, own.key)

    @property
    def url(self) -> str:
        return f"{'https' if self._service.tls else 'http'}://127.0.0.1:{self.port}"

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection as it came: on to the service, or to where TLS ends at the relay's own key."""
        number, self.connections = self.connections, self.connections + 1
        if not self._service.tls:
            await self.read_on(reader, writer)
        elif self.intercepts(number):
            await self._join(reader, writer, self.inner_port)
        else:
            await self._join(reader, writer, self._service.port)

    async def read_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection whose plaintext is here."""
        await self._join(reader, writer, self._service.port, tls=self._blind(), is_read=True)

    async def _join(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        is_read: bool = False,
    ) -> None:
        there = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
        self.writers.append(there[1])
        await asyncio.gather(
            pipe(reader, there[1], self._heard if is_read else unchanged),
            pipe(there[0], writer, self._answered if is_read else unchanged),
        )

    def _heard(self, data: bytes) -> bytes:
        self.read += data
        return self.to_service(data)

    def _answered(self, data: bytes) -> bytes:
        return self.to_client(data)

    def _blind(self) -> ssl.SSLContext | None:
        """Towards the service: whatever key it has."""
        if not self._service.tls:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Callable[[bytes], bytes]) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(READ_BYTES):
            writer.write(change(data))
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()  # whoever ends one direction ends the other too


@contextlib.contextmanager
def between(service: Reached, own: TlsFiles | None = None) -> Iterator[Relay]:
    """A relay in a thread, in front of the service. `own`: its key and certificate, to intercept TLS with."""
    relay = Relay(service, own)
    started = threading.Event()
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def run() -> None:
        ending = asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        def handled(serve: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
            def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                relay.writers.append(writer)
                task = asyncio.create_task(serve(reader, writer))
                connections.add(task)
                task.add_done_callback(connections.discard)

            return accepted

        outer = await asyncio.start_server(handled(relay.take), "127.0.0.1", 0)
        inner = await asyncio.start_server(handled(relay.read_on), "127.0.0.1", 0, ssl=relay.own)
        relay.port, relay.inner_port = (each.sockets[0].getsockname()[1] for each in (outer, inner))
        loops.append((asyncio.get_running_loop(), ending))
        started.set()
        await ending.wait()

        def abort() -> None:
            for task in connections:
                task.cancel()
            for writer in relay.writers:
                writer.transport.abort()

        await end((outer, inner), abort)
        await asyncio.gather(*connections, return_exceptions=True)

    thread = threading.Thread(target=asyncio.run, args=(run(),), name="man-in-the-middle", daemon=True)
    thread.start()
    assert started.wait(STOP_WITHIN_S)
    try:
        yield relay
    finally:
        loop, ending = loops[0]
        loop.call_soon_threadsafe(ending.set)
        thread.join(STOP_WITHIN_S)
        assert not thread.is_alive()
