"""What a service's parent process and its workers say to each other, and the line that it travels on.

One stream socket for each worker, made before the worker is forked and known to nobody else. Messages arrive whole and
in order. No key is ever among them: what workers share of keys they were born with (`gateway/workers.py`).
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Self, cast

import msgspec

from confide.config import Model, Upstream
from confide.engine.slot_service import Acquire, Denied, EngineStands, Granted, PassOn, Release, Room
from confide.gateway.service import Offered, Platform
from confide.upstream.sessions import AttestedSession

LENGTH_BYTES = 4


class Begin(msgspec.Struct, frozen=True, tag=True):
    """To a new worker: what of the configuration may be another than when the service started."""

    upstream: tuple[Upstream, ...]
    model: tuple[Model, ...]


class Listen(msgspec.Struct, frozen=True, tag=True):
    """All that is needed is there: accept connections. `chain`: the certificates of the attested TLS key, PEM, where
    there is one: whoever was given one to trust must meet the same at every worker.
    """

    chain: bytes | None


class Drain(msgspec.Struct, frozen=True, tag=True):
    """The service ends: let answers finish, then end."""


class Stage(msgspec.Struct, frozen=True, tag=True):
    """Get ready to run by another configuration, and change nothing. `number`: of the reload."""

    number: int
    upstream: tuple[Upstream, ...]
    model: tuple[Model, ...]


class Commit(msgspec.Struct, frozen=True, tag=True):
    """Run by what was staged."""


class Abandon(msgspec.Struct, frozen=True, tag=True):
    """Forget what was staged."""


class SessionStands(msgspec.Struct, frozen=True, tag=True):
    """The session that prompts may be sent in to this upstream, or why there is none."""

    name: str
    session: AttestedSession | None
    reason: str = ""


class Verified(msgspec.Struct, frozen=True, tag=True):
    """How the upstream stands was told: the answer to Verify."""

    ticket: int


class HasOpened(msgspec.Struct, frozen=True, tag=True):
    """From a worker: it could serve. `identity`: public, tells its keys from others. `chain`: see Listen."""

    platform: Platform
    identity: str
    models: tuple[Offered, ...]
    keyset_digest: str
    chain: bytes | None


class HasFailed(msgspec.Struct, frozen=True, tag=True):
    """It cannot serve, and ends."""

    message: str
    remedy: str | None


class Listens(msgspec.Struct, frozen=True, tag=True):
    """It accepts connections."""


class HasStaged(msgspec.Struct, frozen=True, tag=True):
    """It could run by the other configuration, or says why not."""

    number: int
    error: str | None = None
    remedy: str | None = None


class Verify(msgspec.Struct, frozen=True, tag=True):
    """Say how this upstream stands, verified now if it has no session. `known`: the session that the worker knows."""

    name: str
    ticket: int
    known: str | None


class WrongKey(msgspec.Struct, frozen=True, tag=True):
    """Another key answered than those of this session."""

    name: str
    session_id: str


ToWorker = (
    Begin
    | Listen
    | Drain
    | Stage
    | Commit
    | Abandon
    | SessionStands
    | Verified
    | EngineStands
    | Granted
    | Denied
    | Room
)
ToParent = HasOpened | HasFailed | Listens | HasStaged | Verify | WrongKey | Acquire | PassOn | Release

encode = msgspec.msgpack.Encoder().encode


class Line(asyncio.Protocol):
    """One end. `kinds`: the union of what may come; `received` is called with each message, `lost` at the end."""

    def __init__(self, kinds: object, received: Callable[[Any], None], lost: Callable[[], None]) -> None:
        self._decode = msgspec.msgpack.Decoder(cast("type[Any]", kinds)).decode
        self._received = received
        self._lost = lost
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(
        cls, end: socket.socket, kinds: object, received: Callable[[Any], None], lost: Callable[[], None]
    ) -> Self:
        """The line over this end of a socket pair, which it closes at its end."""
        end.setblocking(False)
        _, line = await asyncio.get_running_loop().create_unix_connection(lambda: cls(kinds, received, lost), sock=end)
        return line

    def send(self, message: ToWorker | ToParent) -> None:
        """Hand over one message; lost when the other end is gone."""
        if self._transport is not None and not self._transport.is_closing():
            data = encode(message)
            self._transport.write(len(data).to_bytes(LENGTH_BYTES, "big") + data)

    def abort(self) -> None:
        """End it now, whether or not the other end takes what was sent."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
            if len(self._buffer) < end:
                return
            message = self._decode(self._buffer[LENGTH_BYTES:end])
            del self._buffer[:end]
            self._received(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()
