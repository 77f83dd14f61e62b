"""Where an upstream listens."""

import asyncio
import ssl as tls
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A stream socket in the file system."""

    path: str

    @property
    def authority(self) -> bytes:
        """The value of the Host header."""
        return b"localhost"

    async def open(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """Connect `factory()`; raises OSError."""
        await asyncio.get_running_loop().create_unix_connection(factory, self.path)


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port. With `ssl`, the handshake and every check in it are over before a request byte is written."""

    host: str
    port: int
    ssl: tls.SSLContext | None = None

    @property
    def authority(self) -> bytes:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}".encode("ascii")

    async def open(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """Connect `factory()`; raises OSError, which ssl.SSLError is too."""
        await asyncio.get_running_loop().create_connection(factory, self.host, self.port, ssl=self.ssl)


Address = UnixAddress | TcpAddress
