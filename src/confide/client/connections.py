"""The connections to one service: to which keys they are made, and which are left to end. Opens and closes none."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import httpx2

from confide.client.known_service import KnownService
from confide.client.pinning import pinned_context
from confide.client.sending import Options
from confide.protocol.pins import Pins

RETIRED_MOST = 2  # sets of connections to keys that a service had before; streams may be running over them

T = TypeVar("T", bound=httpx2.HTTPTransport | httpx2.AsyncHTTPTransport)


class Connections(Generic[T]):
    """Each set of them is a transport of `kind`, made with these options. Two callers at a time need a lock."""

    def __init__(self, kind: Callable[..., T], service: KnownService, options: Options) -> None:
        self.service = service
        self._kind = kind
        self._options = options
        self._pins: Pins | None = None
        self._transport: T | None = None
        self._retired: list[T] = []

    @property
    def transport(self) -> T:
        """Connections to the attested keys. Where the keyset lists none, authorities decide, as they do elsewhere."""
        pins = self.service.pins
        if self._transport is None or pins != self._pins:
            if self._transport is not None:
                self._retired.append(self._transport)  # streams may be running over it; nothing new is sent there
            context = pinned_context(pins) if pins else True
            self._pins, self._transport = pins, self._kind(**self._options, verify=context)
        return self._transport

    def first_connection(self) -> T:
        """For the report, which tells whether the key that it finds is an attested one."""
        return self._kind(**self._options, verify=pinned_context(None))

    def outdated(self) -> Iterator[T]:
        """Connections to keys that the service has not had for long, each once: to be closed."""
        while len(self._retired) > RETIRED_MOST:
            yield self._retired.pop(0)

    @property
    def made(self) -> tuple[T, ...]:
        """All that are not closed yet, but for first connections."""
        return (*(() if self._transport is None else (self._transport,)), *self._retired)
