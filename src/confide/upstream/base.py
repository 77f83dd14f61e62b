"""What the gateway needs of an upstream, whatever its kind."""

import hashlib
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Literal, Protocol, runtime_checkable

import msgspec

from confide.errors import InvalidRequest, SessionNotAccepted, WireError
from confide.protocol.chat_relayed import RelayedRequest
from confide.protocol.messages_headers import Headers
from confide.protocol.serving import UNCONSTRAINED, Constraints
from confide.protocol.sse import DONE

__all__ = [
    "DONE",
    "Answering",
    "Asked",
    "Claim",
    "Head",
    "Hop",
    "Prompt",
    "SurfaceName",
    "Tally",
    "TokenCounting",
    "Unserved",
    "Upstream",
    "refuse_sessions",
    "uncounted",
]

Claim = Literal["direct", "aggregator"]
# `count_tokens` is not configured: whoever speaks `messages` has it, and so does the embedded engine.
SurfaceName = Literal["chat", "completions", "count_tokens", "embeddings", "messages", "responses"]
CHAT: frozenset[SurfaceName] = frozenset({"chat"})
NOTHING = RelayedRequest(model="", stream=False, provider=None, members={})


class Head(msgspec.Struct, frozen=True):
    """What is fixed when a request is admitted and appears in every chunk of our own. `created`: Unix seconds."""

    id: str
    created: int
    model: str  # as the client sent it


class Asked(Protocol):
    """What every surface's request tells. `provider`: the ACI constraints and what else stands there (wire contract
    7.4), None without.
    """

    @property
    def model(self) -> str: ...
    @property
    def stream(self) -> bool: ...
    @property
    def provider(self) -> Mapping[str, object] | None: ...


class Prompt:
    """One admitted request, as upstreams get it. `sha256`: of `body`, 32 bytes. `tenant`: whose cached prompts it may
    share, any bytes. `tee_only`: only an attested upstream may have it, whatever the client says. `surface`: which one
    `body` is written for. `ways`: the surfaces over which it can be answered. `headers`: of the client's, what an
    upstream that speaks `surface` itself is given.
    """

    __slots__ = (
        "asked",
        "body",
        "constraints",
        "head",
        "headers",
        "is_connection_suspect",
        "sha256",
        "surface",
        "tee_only",
        "tenant",
        "ways",
    )

    def __init__(
        self,
        body: bytes,
        sha256: bytes,
        asked: Asked,
        head: Head,
        *,
        surface: SurfaceName = "chat",
        ways: frozenset[SurfaceName] = CHAT,
        constraints: Constraints = UNCONSTRAINED,
        tenant: bytes = b"",
        tee_only: bool = False,
        headers: Headers = (),
    ) -> None:
        self.body = body
        self.sha256 = sha256
        self.asked = asked
        self.head = head
        self.surface = surface
        self.ways = ways
        self.constraints = constraints
        self.tenant = tenant
        self.tee_only = tee_only
        self.headers = headers
        self.is_connection_suspect = False  # a pooled one may have been why the attempt before this one failed

    def retold(self, body: bytes, asked: Asked) -> "Prompt":
        """The same request as a body of chat, which says what `asked` does."""
        retold = Prompt(
            body,
            hashlib.sha256(body).digest(),
            asked,
            self.head,
            constraints=self.constraints,
            tenant=self.tenant,
            tee_only=self.tee_only,
        )
        retold.is_connection_suspect = self.is_connection_suspect
        return retold

    @property
    def is_verification_required(self) -> bool:
        """Whether an upstream that is not attested must not have it."""
        return self.tee_only or self.constraints.required

    def let_go(self) -> None:
        """Forget the body, megabytes perhaps, for as long as the answer takes: no other upstream will get it."""
        self.body, self.asked = b"", NOTHING


class Tally(msgspec.Struct):
    """What becomes known of one answer while it is made: its tokens, and the `id` that it names itself by."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    id: str | None = None


class Hop(msgspec.Struct, frozen=True):
    """What is known of a second hop before it gets a prompt: the session it is verified in, or why there is none.

    `model`: its name of the model. `name`: of the upstream, as configured. `required`: it would not be used otherwise.
    """

    name: str
    model: str
    required: bool
    session_id: str | None = None
    reason: str | None = None


class Unserved(Exception):
    """One upstream did not serve, and nothing of an answer has left: another may be asked.

    `error`: what the client is told when none serves. `reason`: for the receipt, in words that name no backend.
    `is_stale`: it may have been the connection alone, which the upstream ended while it was pooled.
    """

    def __init__(self, error: WireError, reason: str, *, is_stale: bool = False) -> None:
        super().__init__(reason)
        self.error = error
        self.reason = reason
        self.is_stale = is_stale


class Answering(Protocol):
    """One answer that was accepted and is about to be made. Closing the generator ends the generation at once.

    Both ways raise WireError where the answer cannot go on, and Unserved where another upstream may be asked.
    """

    @property
    def is_forwarded(self) -> bool:
        """Whether the request was handed to inference: false while it waits, and for good when it was refused then."""

    @property
    def forwarded_sha256(self) -> bytes:
        """SHA-256 (32 bytes) of the body as inference is given it."""

    @property
    def last(self) -> bytes:
        """The event that ends the stream once `stream` is over: the upstream's own `[DONE]`, or ours."""

    def stream(self, tally: Tally) -> AsyncGenerator[bytes, None]:
        """The bytes of the event stream, whole events, without the last one."""

    async def complete(self, tally: Tally) -> bytes:
        """The body of the buffered response. Cancelling ends the generation at once."""


class Upstream(Protocol):
    """Serves models. `reads_body`: it takes a RelayedRequest, and judges the rest of the body itself. `surfaces`: what
    it speaks itself.
    """

    @property
    def context_length(self) -> int | None: ...
    @property
    def description(self) -> str: ...
    @property
    def supported_parameters(self) -> frozenset[str]: ...
    @property
    def is_ready(self) -> bool: ...
    @property
    def reads_body(self) -> bool: ...
    @property
    def surfaces(self) -> frozenset[SurfaceName]: ...
    @property
    def serving(self) -> Claim:
        """`direct`: inside this workload; `aggregator`: behind a second hop."""

    @property
    def is_attested(self) -> bool:
        """Whether every prompt it gets is protected by a TEE: ours, or its own of hardware."""

    async def ready(self, prompt: Prompt, model: str) -> Hop | None:
        """What the receipt says of the second hop; None where there is none.

        Raises UpstreamNotVerified and SessionNotAccepted: then nothing may be sent to it.
        """

    async def accept(self, prompt: Prompt, model: str) -> Answering:
        """Check what only this upstream can know, and rewrite. `model`: its name of the model.

        Raises InvalidRequest, NotReady or LimitReached; sends nothing.
        """


@runtime_checkable
class TokenCounting(Protocol):
    """An upstream inside this process that counts the tokens of a prompt itself; others are asked over a relay."""

    async def count_tokens(self, chat_body: Callable[[], bytes]) -> int:
        """The tokens that a chat request has for its prompt. `chat_body`: makes its body, beside the event loop.

        Raises InvalidRequest, also for what cannot be counted, LimitReached or NotReady where too many are waiting,
        UpstreamFailed or UpstreamTimeout.
        """


def refuse_sessions(constraints: Constraints) -> None:
    """A direct service serves inside the workload itself: every answer is verified, and no session is (7.4)."""
    if constraints.session_ids:
        raise SessionNotAccepted(
            "this service answers itself and has no attested sessions; leave aci_session_ids out",
            param="provider.aci_session_ids",
        )


def uncounted() -> InvalidRequest:
    """What a client is told whose prompt nobody can count."""
    return InvalidRequest("tokens cannot be counted for this model: its upstream does not count them", param="model")
