"""Every surface that answers prompts: how the official SDKs ask it, buffered and streamed."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sdk.builders import EMBEDDING_MODEL, HELLO, MODEL


@dataclass(frozen=True)
class Surface:
    """`body`: of a request, without `stream`. `create`: the SDK's call for it. `ends`: what the events that end its
    streams hold, their type where they have one; none where it has no streams.
    """

    endpoint: str
    body: dict[str, Any]
    create: Callable[[Any], Callable[..., Any]]
    ends: tuple[str, ...]
    is_anthropic: bool = False

    def ask(self, sdks: "Sdks", *, stream: bool) -> Any:
        """What the SDK returns: an answer, a stream, or an awaitable of either."""
        create = self.create(sdks.anthropic if self.is_anthropic else sdks.openai)
        return create(**self.body, stream=True) if stream else create(**self.body)

    def content(self, *, stream: bool) -> bytes:
        """The same request as bytes."""
        return json.dumps(self.body | ({"stream": True} if stream else {})).encode()

    @property
    def shows_end(self) -> bool:
        """Whether the SDK hands on the event that ends a stream."""
        return self.ends != ("[DONE]",)

    def is_end(self, event: Any) -> bool:
        """Whether a reader takes this event of the SDK for the end of a whole answer."""
        return getattr(event, "type", None) in self.ends

    @property
    def name(self) -> str:
        return self.endpoint.removeprefix("/v1/")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Sdks:
    """Both official SDKs over the same verifying client, synchronous or not."""

    openai: Any
    anthropic: Any


SURFACES = (
    Surface(
        "/v1/chat/completions",
        {"model": MODEL, "messages": HELLO, "max_tokens": 4},
        lambda sdk: sdk.chat.completions.create,
        ends=("[DONE]",),
    ),
    Surface(
        "/v1/completions",
        {"model": MODEL, "prompt": "Once upon", "max_tokens": 4},
        lambda sdk: sdk.completions.create,
        ends=("[DONE]",),
    ),
    Surface(
        "/v1/responses",
        {"model": MODEL, "input": "Say hello.", "max_output_tokens": 16},
        lambda sdk: sdk.responses.create,
        ends=("response.completed", "response.incomplete"),
    ),
    Surface(
        "/v1/messages",
        {"model": MODEL, "messages": HELLO, "max_tokens": 4},
        lambda sdk: sdk.messages.create,
        ends=("message_stop",),
        is_anthropic=True,
    ),
    Surface(
        "/v1/embeddings",
        {"model": EMBEDDING_MODEL, "input": ["One text.", "Another."]},
        lambda sdk: sdk.embeddings.create,
        ends=(),
    ),
)
EVERY_WAY = [(surface, stream) for surface in SURFACES for stream in (False, True) if surface.ends or not stream]
