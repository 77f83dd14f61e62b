"""The scripted engine, a process of its own: `python -m bench.engine SOCKET INTERVAL_S`.

It answers at once with bytes made before, so that what is measured is what stands in front of it. It speaks llama.cpp's
dialect on the socket and OpenAI's on a port of 127.0.0.1, and keeps connections alive on both.
"""

import asyncio
import json
import sys
from typing import cast

import uvloop

from bench.answers import HELD, LLAMA, OPENAI, PACED, Script

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
RELEASE = b"POST /release HTTP/1.1\r\nContent-Length: 0\r\n\r\n"


class Scripted(asyncio.Protocol):
    """One connection, one request at a time. `held`: those that wait for a release."""

    def __init__(self, script: Script, held: "set[Scripted]", interval_s: float) -> None:
        self._script = script
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
            self._transport.write(self._script.one_piece)
        elif HELD.encode() in body:
            self._transport.write(self._script.first_half)
            self._held.add(self)
        elif PACED.encode() in body:
            self._transport.write(self._script.opening)
            self._loop.call_later(self._interval_s, self._pace, 0)
        else:
            self._transport.write(self._script.stream(body))

    def _release(self) -> None:
        for connection in self._held:
            connection._transport.write(connection._script.second_half)
        self._held.clear()
        self._transport.write(NO_CONTENT)

    def _pace(self, index: int) -> None:
        if index == len(self._script.pieces):
            self._transport.write(self._script.closing)
        elif not self._transport.is_closing():
            self._transport.write(self._script.pieces[index])
            self._loop.call_later(self._interval_s, self._pace, index + 1)


async def main(path: str, interval_s: float) -> None:
    """Serve until killed."""
    held: set[Scripted] = set()
    loop = asyncio.get_running_loop()
    embedded = await loop.create_unix_server(lambda: Scripted(LLAMA, held, interval_s), path, backlog=2048)
    local = await loop.create_server(lambda: Scripted(OPENAI, held, interval_s), "127.0.0.1", 0, backlog=2048)
    print(json.dumps({"port": local.sockets[0].getsockname()[1]}), flush=True)
    await asyncio.gather(embedded.serve_forever(), local.serve_forever())


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], float(sys.argv[2])))
