"""What can go wrong between us and an upstream.

ChannelError
├── NotConnected     nothing was sent: no connection, none free, or the channel is closed
│   ├── NoneFree     as many exchanges are under way as may be
│   └── WrongKey     the peer's TLS key is none of the pinned ones
├── Cut              closed or reset before the end of the response; `response_started` says how far it got
├── Stalled          a limit of Timeouts ran out; `phase` says which
└── Malformed        the response breaks HTTP/1.1, or a bound of the channel

Messages name no host, and hold no bytes of a request or response.
"""

from typing import Literal

from confide.errors import ConfideError

Phase = Literal["connect", "first_byte", "idle", "total"]


class ChannelError(ConfideError):
    """The upstream gave no whole response. Raise one of its subclasses."""


class NotConnected(ChannelError):
    """Nothing was sent, so the request may go elsewhere."""


class NoneFree(NotConnected):
    """Every connection carries an exchange, which says nothing against the upstream. Nothing was sent."""


class WrongKey(NotConnected):
    """The peer's TLS key is none of the pinned ones; the message names their digests. Nothing was sent."""

    def __init__(self, message: str) -> None:
        super().__init__(message, remedy="Attest the upstream again: its keys may have changed, or it is another.")


class Cut(ChannelError):
    """Closed or reset before the end. `response_started`: a byte of the response had come."""

    def __init__(self, message: str, *, response_started: bool) -> None:
        super().__init__(message, remedy="Look at what the upstream says of this request.")
        self.response_started = response_started


class Stalled(ChannelError):
    """A limit ran out. `phase` is its name in Timeouts without the unit; in "connect" nothing was sent."""

    def __init__(self, phase: Phase, limit_s: float) -> None:
        super().__init__(
            f"the upstream took longer than {phase}_s = {limit_s:g}",
            remedy=f"Look at the load of the upstream, or raise {phase}_s.",
        )
        self.phase: Phase = phase


class Malformed(ChannelError):
    """Not HTTP/1.1 as this channel accepts it. The message names the rule and holds no bytes of the response."""
