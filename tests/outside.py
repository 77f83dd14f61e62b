"""The service as it is seen from outside: by a client that decides what it reads and when it leaves, by whoever looks
at the socket, and by a verifier that fetches receipts.
"""

import asyncio
import contextlib
import hashlib
import itertools
import secrets
import socket
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from confide.client.receipts import REQUIRED, Exchange, verify_receipt
from confide.evidence.result import Status
from confide.gateway.http import Protocol
from confide.protocol.receipt import Receipt
from confide.verifier.appraisal import Connection, ServiceVerification, verify_report
from confide.verifier.policy import Policy

Address = tuple[str, int]

PATH = "/v1/chat/completions"
# A visitor has an address of its own where the whole 127.0.0.0/8 is this machine: among thousands a port comes again.
SOURCES = (f"127.{1 + number // 62500 % 250}.{number // 250 % 250}.{1 + number % 250}" for number in itertools.count())
HEAD_END = b"\r\n\r\n"


@dataclass
class Response:
    """One response as its bytes came. `body`: after transfer decoding; `is_whole`: its end was there."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_whole: bool


def responses(raw: bytes | bytearray) -> list[Response]:
    """The responses in the bytes of one connection, which may have been cut anywhere; half a head is none."""
    found, rest = [], bytes(raw)
    while HEAD_END in rest:
        head, _, rest = rest.partition(HEAD_END)
        status, *lines = head.decode("latin-1").split("\r\n")
        pairs = [line.split(":", 1) for line in lines]
        headers = {name.lower(): value.strip() for name, value in pairs}
        response = Response(int(status.split()[1]), headers, b"", is_whole=False)
        found.append(response)
        if headers.get("transfer-encoding") == "chunked":
            rest = read_chunks(response, rest)
        else:
            length = int(headers["content-length"])
            response.body, rest = rest[:length], rest[length:]
            response.is_whole = len(response.body) == length
        if not response.is_whole:
            break
    return found


def read_chunks(response: Response, rest: bytes) -> bytes:
    """Decode the chunks of a body as far as they go; what follows it."""
    parts = []
    while b"\r\n" in rest and not response.is_whole:
        line, _, rest = rest.partition(b"\r\n")
        size = int(line, 16)
        parts.append(rest[:size])
        response.is_whole = size == 0 and rest.startswith(b"\r\n")
        rest = rest[size + 2 :]
    response.body = b"".join(parts)
    return rest


class Visitor:
    """A client on a connection of its own. `raw`: all that it read; `is_over`: it saw the end of the connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.address: Address = writer.get_extra_info("sockname")[:2]
        self.raw = bytearray()
        self.is_over = False

    @property
    def responses(self) -> list[Response]:
        """What it has read of each response."""
        return responses(self.raw)

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def read(self, most: int = 64 * 1024) -> None:
        """Wait for some bytes, or the end of the connection."""
        try:
            data = await self._reader.read(most)
        except ConnectionError:
            data = b""
        self.raw += data
        self.is_over = not data

    async def read_until(self, is_enough: Callable[[list[Response]], bool]) -> None:
        """Read until what was read satisfies `is_enough`, or nothing more comes."""
        while not is_enough(self.responses) and not self.is_over:
            await self.read()

    async def answer(self) -> Response:
        """The first response, whole."""
        async with asyncio.timeout(10):
            await self.read_until(lambda got: bool(got) and got[0].is_whole)
        assert self.responses, "the connection ended without a response"
        assert self.responses[0].is_whole
        return self.responses[0]

    def leave(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()

    def send_no_more(self) -> None:
        """Close one direction of the connection."""
        self._writer.write_eof()


@contextlib.asynccontextmanager
async def visiting(url: str, *, receive_buffer: int | None = None) -> AsyncIterator[Visitor]:
    """Connect to the service. `receive_buffer`: bytes that the kernel and we may hold of what was not read yet."""
    host, port = url.removeprefix("http://").split(":")
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if receive_buffer is not None:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    opened.setblocking(False)
    if sys.platform == "linux":
        opened.bind((next(SOURCES), 0))
    await asyncio.get_running_loop().sock_connect(opened, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=opened, limit=receive_buffer or 64 * 1024)
    try:
        yield Visitor(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


class Sockets:
    """What the service wrote to the sockets of its clients, by the client's address, while they were open."""

    def __init__(self) -> None:
        self._taken: dict[Address, bytearray] = defaultdict(bytearray)
        self._refused: dict[Address, bytes] = defaultdict(bytes)

    def responses(self, address: Address) -> list[Response]:
        """What the socket took."""
        return responses(self._taken[address])

    def offered(self, address: Address) -> list[Response]:
        """That, and what it refused, in the moment in which it turned out that the client was gone."""
        return responses(self._taken[address] + self._refused[address])

    def record(self, address: Address, data: bytes, *, is_taken: bool) -> None:
        if is_taken:
            self._taken[address] += data
        else:
            self._refused[address] += data


@contextlib.contextmanager
def sockets_recorded(*, send_buffer: int | None = None) -> Iterator[Sockets]:
    """Look at every connection that is made within the block. `send_buffer`: bytes that the kernel keeps for each."""
    sockets, connection_made = Sockets(), Protocol.connection_made

    def connecting(self: Protocol, transport: asyncio.Transport) -> None:
        address, write = transport.get_extra_info("peername")[:2], transport.write
        if send_buffer is not None:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)

        def recording(data: bytes) -> None:
            was_open = not transport.is_closing()
            write(data)
            if was_open:
                sockets.record(address, data, is_taken=not transport.is_closing())

        transport.write = recording  # type: ignore[method-assign, assignment]  # it is given bytes only
        connection_made(self, transport)

    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(Protocol, "connection_made", connecting)
        yield sockets


class Verifier:
    """A relying party that trusts the root of a simulated service, and nothing that was not verified to it."""

    def __init__(self, url: str, home: Path) -> None:
        """`home`: the service's state directory, which holds that root."""
        self.url = url
        self._policy = Policy(trust_roots=(home / "simulator" / "root.pem",), require_channel=False)
        self._services: dict[str, ServiceVerification] = {}

    @property
    def keysets(self) -> Mapping[str, ServiceVerification]:
        """What was verified, by keyset digest."""
        return self._services

    def believe(self, report: bytes, nonce: str | None) -> str:
        """Verify a report; the digest of its keyset."""
        connection = Connection(host="127.0.0.1", spki_sha256=None)
        verified = verify_report(
            report, nonce=nonce, policy=self._policy, now=int(time.time()), connection=connection, url=self.url
        )
        assert verified.ok, verified.checks
        assert verified.report is not None
        self._services[verified.report.keyset_digest] = verified
        return verified.report.keyset_digest

    async def appraise(self, client: httpx2.AsyncClient) -> str:
        """Ask for a report with a fresh nonce and verify it; the digest of its keyset."""
        nonce = secrets.token_hex(32)
        answer = await client.get("/v1/aci/attestation", params={"nonce": nonce})
        assert answer.status_code == 200
        return self.believe(answer.content, nonce)

    def proven(self, raw: bytes, *, receipt_id: str, sent: bytes, response_sha256: bytes, status: int = 200) -> Receipt:
        """The receipt, which proves that this was sent and that returned, by every check of wire contract 9.5."""
        exchange = Exchange(
            endpoint=PATH,
            receipt_id=receipt_id,
            request_sha256=hashlib.sha256(sent).digest(),
            response_sha256=response_sha256,
            status=status,
        )
        checks, receipt = verify_receipt(raw, exchange, services=self._services, policy=self._policy)
        assert {check.name for check in checks if check.status is Status.PASS} >= REQUIRED, checks
        assert receipt is not None
        return receipt
