"""A surface that is answered by way of chat, or passed through where an upstream speaks it itself.

The request becomes a chat request and the answer of chat becomes the surface's, byte by byte as it comes. The receipt
covers what the client sent and got; that something else was handed to inference shows in it as a rewrite.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Generic, Protocol, TypeVar, cast

from confide.errors import RefusedByUpstream, UpstreamFailed, WireError
from confide.gateway.models import ModelTable
from confide.protocol.chat_relayed import RelayedRequest, parse_relayed
from confide.protocol.translation import Translation, Untranslatable
from confide.upstream.base import Answering, Asked, Head, Prompt, SurfaceName, Tally
from confide.upstream.router import Candidate

NOT_CHAT = "the model's answer could not be read; try again"


class RetoldRequest(Asked, Protocol):
    """A request of the surface, all of it read."""

    def chat_body(self) -> bytes:
        """The same as a body of chat."""


Request = TypeVar("Request", bound=RetoldRequest)


class Translated(Generic[Request]):
    """What such surfaces have in common. `renamed`: members of chat that an error may name, as they are called here."""

    name: SurfaceName
    endpoint: str
    ways: frozenset[SurfaceName]

    def __init__(
        self,
        parse: Callable[[bytes], Request],
        translation: Callable[[Request, Head], Translation],
        *,
        renamed: Mapping[str, str],
    ) -> None:
        self._parse = parse
        self._translation = translation
        self._renamed = renamed

    def parse(self, body: bytes, models: ModelTable) -> Asked:
        """See Surface.parse."""
        return parse_relayed(body) if models.is_spoken(self.name) else self._parse(body)

    async def accept(self, candidate: Candidate, prompt: Prompt) -> Answering:
        """See Surface.accept."""
        if self.name in candidate.upstream.surfaces:
            return await candidate.accept(prompt)
        asked = prompt.asked
        request = self._parse(prompt.body) if isinstance(asked, RelayedRequest) else cast(Request, asked)
        try:
            answering = await candidate.accept(prompt.retold(request.chat_body(), request))
        except WireError as error:
            raise renamed(error, self._renamed) from None
        return TranslatedAnswer(answering, self._translation(request, prompt.head), prompt.head, self._renamed)


class TranslatedAnswer:
    """An answer of chat on its way to becoming one of the surface."""

    def __init__(
        self, answering: Answering, translation: Translation, head: Head, renamed_members: Mapping[str, str]
    ) -> None:
        self._answering = answering
        self._translation = translation
        self._head = head
        self._renamed = renamed_members
        self.last = b""

    @property
    def is_forwarded(self) -> bool:
        return self._answering.is_forwarded

    @property
    def forwarded_sha256(self) -> bytes:
        return self._answering.forwarded_sha256

    def tail(self, error: WireError) -> bytes:
        """How the stream ends that this one has begun."""
        return self._translation.tail(error.message, error.type, error.status)

    async def complete(self, tally: Tally) -> bytes:
        """See Answering.complete."""
        tally.id = self._head.id
        try:
            return translated(self._translation.whole, await self._answering.complete(tally))
        except WireError as error:
            raise renamed(error, self._renamed) from None

    async def stream(self, tally: Tally) -> AsyncGenerator[bytes, None]:
        """See Answering.stream."""
        tally.id = self._head.id
        try:
            async with aclosing(self._answering.stream(tally)) as parts:
                async for data in parts:
                    if events := translated(self._translation.feed, data):
                        yield events
        except WireError as error:
            raise renamed(error, self._renamed) from None
        self.last = translated(lambda _: self._translation.end(), b"")


def translated(step: Callable[[bytes], bytes], data: bytes) -> bytes:
    """What `step` makes of it. Raises UpstreamFailed where that is no chat answer."""
    try:
        return step(data)
    except Untranslatable:
        pass
    raise UpstreamFailed(NOT_CHAT)  # outside the handler: the context of an exception is logged with it


def renamed(error: WireError, members: Mapping[str, str]) -> WireError:
    """The error with the member that it names called as the client called it. Engines name members of chat."""
    if error.param is None:
        return error
    for name, ours in members.items():
        if error.param == name or error.param.startswith((f"{name}.", f"{name}[")):
            error.param = ours
            if isinstance(error, RefusedByUpstream):
                error.raw = None  # its own words name the member of chat
            break
    return error
