"""The load: keep-alive connections, one request at a time on each, and every answer compared to a known one."""

import asyncio
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import httptools

Address = str | int  # the path of a unix socket, or a port of 127.0.0.1
OPENED_AT_ONCE = 100
OWN = re.compile(rb'"(?:id|created)":(?:"[^"]*"|\d+),?')  # what differs between two equal answers


class BenchFailed(Exception):
    """What was measured did not do what it should; its figures would mean nothing."""


@dataclass(frozen=True)
class Answer:
    """One response. `latency_s`: from the request's last byte to the answer's."""

    status: int
    body: bytes
    latency_s: float

    @property
    def comparable(self) -> bytes:
        """The body without its ids and times."""
        return OWN.sub(b"", self.body)

    def events(self) -> Iterator[dict[str, Any]]:
        """The events of a stream."""
        for line in self.body.split(b"\n\n"):
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])

    def text(self, *, stream: bool) -> str:
        """What the model said. Raises BenchFailed unless the answer is whole."""
        if self.status != 200 or (stream and not self.body.endswith(b"data: [DONE]\n\n")):
            raise BenchFailed(f"status {self.status}, not a whole answer: {self.body[-200:]!r}")
        if not stream:
            return str(json.loads(self.body)["choices"][0]["message"]["content"])
        choices = [choice for event in self.events() for choice in event["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)


def post(
    body: bytes, *, key: str | None = None, headers: Sequence[str] = (), path: str = "/v1/chat/completions"
) -> bytes:
    """A request as bytes, of chat unless `path` says otherwise."""
    lines = [f"POST {path} HTTP/1.1", "Host: bench", "Content-Type: application/json"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    lines += headers
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Connection(asyncio.Protocol):
    """One connection. `began` is set when the first byte of an answer's body has come."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Answer] | None = None
        self._parts: list[bytes] = []

    @classmethod
    async def open(cls, address: Address) -> Self:
        loop = asyncio.get_running_loop()
        if isinstance(address, str):
            return (await loop.create_unix_connection(cls, address))[1]
        return (await loop.create_connection(cls, "127.0.0.1", address))[1]

    async def ask(self, request: bytes) -> Answer:
        """Send one request and wait for its whole answer. Raises BenchFailed when the connection ends before."""
        if self._transport.is_closing():
            raise BenchFailed("the connection was closed between two requests")
        self._answer = asyncio.get_running_loop().create_future()
        self._parts = []
        self.began.clear()
        self._asked_at = time.perf_counter()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(BenchFailed("the connection ended within an answer"))
        self.began.set()

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)
        if not self.began.is_set():
            self.began.set()

    def on_message_complete(self) -> None:
        latency_s = time.perf_counter() - self._asked_at
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(self._parser.get_status_code(), b"".join(self._parts), latency_s))


async def connect(address: Address, count: int) -> list[Connection]:
    """So many connections, opened in groups that the listener's backlog holds."""
    connections: list[Connection] = []
    while (missing := count - len(connections)) > 0:
        group = min(missing, OPENED_AT_ONCE)
        connections += await asyncio.gather(*(Connection.open(address) for _ in range(group)))
    return connections


async def ask_once(address: Address, request: bytes) -> Answer:
    """One answer on a connection of its own."""
    connection = await Connection.open(address)
    try:
        return await connection.ask(request)
    finally:
        connection.close()


async def closed_loop(connections: list[Connection], request: bytes, count: int, expected: bytes) -> list[float]:
    """Ask `count` times over, the next on each connection when the last was answered; the latencies in seconds.

    `expected`: what each answer must compare to. Raises BenchFailed for the first one that differs.
    """
    latencies: list[float] = []
    left = iter(range(count))

    async def keep_asking(connection: Connection) -> None:
        for _ in left:
            answer = await connection.ask(request)
            check(answer, expected)
            latencies.append(answer.latency_s)

    await asyncio.gather(*(keep_asking(connection) for connection in connections))
    return latencies


def check(answer: Answer, expected: bytes) -> None:
    """Raises BenchFailed unless it is the expected answer, byte for byte but for ids and times."""
    if answer.status != 200 or answer.comparable != expected:
        raise BenchFailed(
            f"an answer differs: status {answer.status}, {len(answer.body)} bytes, {answer.body[-200:]!r}"
        )
