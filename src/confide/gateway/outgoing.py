"""An answer on its way out: hashed as it is handed over, and with comments while a stream is silent."""

import asyncio
from typing import Self

from confide.gateway.lifecycle import InFlight, Stop
from confide.gateway.wire import EVENT_STREAM, Connection, Header, Message, Send, Writer
from confide.protocol.sse import KEEP_ALIVE

NO_E2EE = (b"x-e2ee-applied", b"false")
STREAM_HEADERS = (*EVENT_STREAM, NO_E2EE)


class Outgoing(Writer):
    """The response to a prompt. `entry` is told while a write waits for the client to read, and when it finds it gone.

    The server drops in silence what it cannot send any more, and tells a turn of the loop later; a receipt must not
    count it as sent. So the connection is asked before each part, and once more after the server waited with it.

    `receipt_header` is sent with every answer once it is set.
    """

    def __init__(self, send: Send, entry: InFlight, connection: Connection, common: tuple[Header, ...]) -> None:
        super().__init__(self._hand_over, common)
        self._to_server = send
        self._entry = entry
        self._connection = connection
        self.receipt_header: tuple[Header, ...] = ()

    async def write(self, data: bytes) -> None:
        """A part of a stream, which begins with the first one."""
        if not self.is_started:
            await self.begin()
        is_lost = self._connection.is_lost()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        if is_lost or self._connection.is_lost():  # by now also where the socket refused this very part
            self._entry.stop(Stop.CLIENT_GONE)
            await asyncio.sleep(0)  # where that is felt, when it is this task's answer
            return
        self.add(data)  # not before: a send that is cancelled while the client is slow to read handed over nothing

    async def end_added(self, data: bytes) -> None:
        """The last part. Afterwards `entry.is_client_gone` says whether the client left before it was handed over."""
        is_lost = self._connection.is_lost()
        await super().end_added(data)
        if is_lost or self._connection.is_gone:
            self._entry.stop(Stop.CLIENT_GONE)

    async def begin(self) -> None:
        """Status and headers of a stream."""
        await self.start(200, (*STREAM_HEADERS, *self.receipt_header))

    async def _hand_over(self, message: Message) -> None:
        """Any part, the first and the last too: each may wait for a client that does not read."""
        self._entry.begin_write()
        try:
            await self._to_server(message)
        finally:
            self._entry.end_write()


class Comments:
    """Writes a stream's frames, and a comment when nothing was written for `every_s` seconds (wire contract 2.7).

    One writes at a time, so that all is hashed in the order in which the server was given it.
    """

    def __init__(self, writer: Outgoing, every_s: float) -> None:
        self._writer = writer
        self._every_s = every_s
        self._turn = asyncio.Lock()
        self._time = asyncio.get_running_loop().time
        self._wrote_at = self._time()

    async def __aenter__(self) -> Self:
        self._commenting = asyncio.create_task(self._comment())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._commenting.cancel()
        await asyncio.gather(self._commenting, return_exceptions=True)

    async def write(self, data: bytes) -> None:
        """A frame."""
        async with self._turn:
            await self._writer.write(data)
            self._wrote_at = self._time()

    async def _comment(self) -> None:
        while True:
            await asyncio.sleep(self._wrote_at + self._every_s - self._time())
            async with self._turn:
                if self._time() >= self._wrote_at + self._every_s:
                    await self._writer.write(KEEP_ALIVE)
                    self._wrote_at = self._time()
