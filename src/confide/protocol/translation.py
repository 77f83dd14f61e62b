"""What a surface is that is spoken by way of chat: its request becomes a chat request, and the answer is put back.

Both ways are pure: bytes in, bytes out, no clock and no randomness, so that one request with one answer of chat is one
answer of the surface, wherever a stream is cut.
"""

from typing import Protocol

__all__ = ["Translation", "Untranslatable"]


class Untranslatable(ValueError):
    """The chat answer is not one (wire contract 2.6, 2.7). Says which member, and quotes nothing."""


class Translation(Protocol):
    """One answer on its way from chat to the surface that was asked. Raises Untranslatable for what is no chat answer.

    Either `whole` is called once, or `feed` any number of times and then `end`; `tail` in place of `end` where the
    stream broke.
    """

    def whole(self, body: bytes) -> bytes:
        """The buffered answer for a buffered answer of chat."""

    def feed(self, data: bytes) -> bytes:
        """The events that this part of chat's event stream is worth, cut anywhere; b"" when it completes none.

        Comments and `[DONE]` are worth nothing.
        """

    def end(self) -> bytes:
        """What ends the stream, once chat's stream is over."""

    def tail(self, message: str, kind: str, status: int) -> bytes:
        """How a stream ends that broke after its first byte. `kind`, `status`: the error's type and HTTP status as
        chat would have them (wire contract 4).
        """
