"""One request and its response, as its caller sees it."""

import asyncio
from typing import Protocol

from confide.upstream.errors import ChannelError, Malformed


class Carrier(Protocol):
    """What an exchange asks of the connection that carries it."""

    def resume(self) -> None:
        """Everything buffered was read."""

    def fail(self, reason: str) -> None:
        """Close the socket now, and end the exchange as cut for this reason."""


class Exchange:
    """One request and its response. Whoever was given it calls `abort` when done, in a `finally`.

    `headers` keep their order, names in lower case, values without the space around them. `delimited_by_close`: the
    body has neither a length nor chunks; without TLS its end cannot be told from a cut.
    """

    __slots__ = (
        "_chunks",
        "_connection",
        "_error",
        "_waiter",
        "buffered_bytes",
        "delimited_by_close",
        "headers",
        "status",
    )

    def __init__(self, connection: Carrier) -> None:
        self.status = 0  # until the headers are complete
        self.headers: list[tuple[bytes, bytes]] = []
        self.delimited_by_close = False
        self.buffered_bytes = 0
        self._connection: Carrier | None = connection
        self._chunks: list[bytes] = []
        self._error: ChannelError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """All body bytes that have come and were not read, at least one; b"" at the clean end. Raises ChannelError."""
        chunks = self._chunks
        while not chunks:
            if self._error is not None:
                raise self._error
            if self._connection is None:
                return b""
            await self._wait()
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.buffered_bytes = 0
        if self._connection is not None:
            self._connection.resume()
        return data

    async def read_all(self, limit: int) -> bytes:
        """The rest of the body. Raises ChannelError; Malformed when that is more than `limit` bytes."""
        parts: list[bytes] = []
        while data := await self.read():
            parts.append(data)
            limit -= len(data)
            if limit < 0:
                self.abort()
                raise Malformed(
                    "the response body is over the limit", remedy="Raise the limit if such bodies are meant."
                )
        return b"".join(parts)

    def abort(self) -> None:
        """Close the socket now, unless the response is complete. May be called at any time and any number of times."""
        if self._connection is not None:
            self._chunks.clear()
            self._connection.fail("the exchange was aborted on this side")

    # For the connection.

    async def responded(self) -> None:
        """Wait for the headers. Raises ChannelError."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._wait()

    def add(self, data: bytes) -> None:
        """Bytes of the body."""
        self.buffered_bytes += len(data)
        self._chunks.append(data)

    def end(self, error: ChannelError | None = None) -> None:
        """The response is complete, or broke with `error`; the connection serves others or nobody."""
        self._connection = None
        self._error = error
        self.wake()

    def wake(self) -> None:
        """Let whoever waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("an exchange is read by one task at a time")
        woken = False
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
            woken = True
        finally:
            self._waiter = None
            if not woken:  # the caller was cancelled
                self.abort()
