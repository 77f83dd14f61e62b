"""The scripted engine, a process of its own: `python -m bench.engine SOCKET INTERVAL_S`.

It answers at once with bytes made before, so that what is measured is what stands in front of it.
"""

import asyncio
import sys
from typing import cast

import uvloop

from bench import answers

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
RELEASE = b"POST /release HTTP/1.1\r\nContent-Length: 0\r\n\r\n"


class Scripted(asyncio.Protocol):
    """One connection, one request at a time. `held`: those that wait for a release."""

    def __init__(self, held: "set[Scripted]", interval_s: float) -> None:
        self._held = held
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._input = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._held.discard(self)

    def data_received(self, data: bytes) -> None:
        self._input += data
        head, found, rest = self._input.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if found and len(rest) >= length:
            self._input = b""
            self._answer(head, rest)

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"POST /release"):
            self._release()
        elif b'"stream":true' not in body:
            self._transport.write(answers.ONE_PIECE)
        elif answers.HELD.encode() in body:
            self._transport.write(answers.FIRST_HALF)
            self._held.add(self)
        elif answers.PACED.encode() in body:
            self._transport.write(answers.OPENING)
            self._loop.call_later(self._interval_s, self._pace, 0)
        else:
            whole = answers.SHORT.encode() not in body
            self._transport.write(answers.WHOLE_STREAM if whole else answers.SHORT_STREAM)

    def _release(self) -> None:
        for connection in self._held:
            connection._transport.write(answers.SECOND_HALF)
        self._held.clear()
        self._transport.write(NO_CONTENT)

    def _pace(self, index: int) -> None:
        if index == len(answers.PIECES):
            self._transport.write(answers.CLOSING)
        elif not self._transport.is_closing():
            self._transport.write(answers.PIECES[index])
            self._loop.call_later(self._interval_s, self._pace, index + 1)


async def main(path: str, interval_s: float) -> None:
    """Serve until killed."""
    held: set[Scripted] = set()
    server = await asyncio.get_running_loop().create_unix_server(lambda: Scripted(held, interval_s), path, backlog=2048)
    print("{}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], float(sys.argv[2])))
