"""Several processes accept from one listening socket, so that each has as many connections as any other.

Connections live long, and what comes over them is served where they were accepted. Left to the kernel, a burst of them
goes to whoever woke first, all of it perhaps, and a socket for each process (SO_REUSEPORT) draws lots for them and
strands those of a process that died. So each process shows how many it has in memory that all share, and one that has
more than another leaves the next connection to it for a moment. Nobody waits for longer: whoever is busy or dead must
not keep a client out.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any

from confide.gateway.counters import counters
from confide.gateway.http import Protocol

ABSENT = -1
LEFT_TO_OTHERS_S = 0.001
BACKLOG = 2048
PAUSE_S = 0.1  # after the system had no descriptor or memory for a connection


class ConnectionCounts:
    """How many connections each of `workers` processes has. Made before they are forked; each writes its own count."""

    def __init__(self, workers: int) -> None:
        self._counts = counters(workers)
        for number in range(workers):
            self.leave(number)

    def add(self, number: int, more: int) -> None:
        """Worker `number` (from 0) has so many more."""
        self._counts[number] += more

    def enter(self, number: int) -> None:
        """It accepts from now on, and has none yet."""
        self._counts[number] = 0

    def leave(self, number: int) -> None:
        """It does not accept any more, or has ended."""
        self._counts[number] = ABSENT

    def is_least(self, number: int) -> bool:
        """Whether no process that accepts has fewer."""
        own = self._counts[number]
        return not any(ABSENT < count < own for count in self._counts)


class Door:
    """One process's way to the listening socket. `number`: of the worker, from 0."""

    def __init__(self, listener: socket.socket, counts: ConnectionCounts, number: int) -> None:
        self._listener = listener
        self._counts = counts
        self._number = number
        self._is_open = False
        self._again: asyncio.TimerHandle | None = None
        self._handshakes: set[asyncio.Task[None]] = set()

    def counting(self, protocol: type[Protocol]) -> type[Protocol]:
        """The protocol whose connections are counted until they end."""
        door = self

        class Counted(protocol):  # type: ignore[valid-type, misc]  # a class made at run time
            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                door._ended()

        return Counted

    def open(self, make: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None) -> None:
        """Begin to accept. `make`: the protocol of a connection, one of the class that `counting` gave."""
        self._loop = asyncio.get_running_loop()
        self._make, self._tls = make, tls
        self._listener.setblocking(False)
        self._listener.listen(BACKLOG)
        self._counts.enter(self._number)
        self._is_open = True
        self._loop.add_reader(self._listener, self._knock)

    def close(self) -> None:
        """Accept no more. What was accepted goes on. Once more does nothing."""
        if not self._is_open:
            return
        self._is_open = False
        self._counts.leave(self._number)
        self._loop.remove_reader(self._listener)
        if self._again is not None:
            self._again.cancel()
        for task in self._handshakes:
            task.cancel()

    def _knock(self) -> None:
        if self._counts.is_least(self._number):
            self._accept()
        else:
            self._pause(LEFT_TO_OTHERS_S, self._accept)

    def _pause(self, pause_s: float, then: Callable[[], None] | None = None) -> None:
        """Look away from the socket for a while."""
        self._loop.remove_reader(self._listener)

        def look_again() -> None:
            self._again = None
            self._loop.add_reader(self._listener, self._knock)
            if then is not None:
                then()

        self._again = self._loop.call_later(pause_s, look_again)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process was faster, or the client has left already
        except OSError:
            self._pause(PAUSE_S)
            return
        connection.setblocking(False)
        self._counts.add(self._number, 1)
        task = self._loop.create_task(self._connected(connection), name="accept")
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _connected(self, connection: socket.socket) -> None:
        """Hand the connection to a protocol, after the handshake where there is TLS."""
        arguments: dict[str, Any] = {} if self._tls is None else {"ssl": self._tls}
        try:
            await self._loop.connect_accepted_socket(self._make, connection, **arguments)
        except BaseException as error:
            self._ended()  # no protocol was told of it
            with contextlib.suppress(OSError):
                connection.close()
            if not isinstance(error, OSError):  # a client that left, or speaks no TLS (ssl.SSLError is an OSError)
                raise

    def _ended(self) -> None:
        if self._is_open:
            self._counts.add(self._number, -1)
