"""The messages, parts and tools of a chat request, as decoded (wire contract 2.3, 2.4).

Each struct keeps its own rules; what needs more than one member of the request is in `chat`.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from confide.protocol.chat_errors import RuleBroken

# `\Z`, not `$`: the latter would let a name end in a line feed.
FunctionName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
FUNCTION_NAME = "a name of 1 to 64 characters out of A-Z a-z 0-9 _ -"

# Matched at the start only: the rest of a data URL is megabytes.
IMAGE_URL = re.compile(r"https?://[^\s/]|data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)


class PromptStruct(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A struct that may hold prompt text. Its repr shows none, so that no log line or traceback can.

    `gc=False`: what JSON decodes to has no cycles, and a long conversation need not be scanned for them.
    """

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class ClosedStruct(PromptStruct, frozen=True, forbid_unknown_fields=True):
    """One that takes no other members: what is not known is refused by its name, not dropped in silence."""


class TextPart(PromptStruct, frozen=True, tag_field="type", tag="text"):
    """`{"type":"text"}`."""

    text: str


class ImageUrl(PromptStruct, frozen=True):
    """Where an image is: https, http, or a base64 data URL whose payload is not looked at here."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None

    def __post_init__(self) -> None:
        if IMAGE_URL.match(self.url) is None:
            raise RuleBroken("url", "must start with https://, http:// or data:image/<type>;base64,")

    @property
    def is_remote(self) -> bool:
        """Whether the image would have to be fetched, which discloses the fetch."""
        return self.url[:4].lower() == "http"


class ImagePart(PromptStruct, frozen=True, tag_field="type", tag="image_url"):
    """`{"type":"image_url"}`."""

    image_url: ImageUrl


class InputAudio(PromptStruct, frozen=True):
    """Base64 audio, not decoded here."""

    data: str
    format: Literal["wav", "mp3"]


class AudioPart(PromptStruct, frozen=True, tag_field="type", tag="input_audio"):
    """`{"type":"input_audio"}`."""

    input_audio: InputAudio


class FileReference(PromptStruct, frozen=True):
    """A file by id or by content, neither looked at here."""

    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None


class FilePart(PromptStruct, frozen=True, tag_field="type", tag="file"):
    """`{"type":"file"}`."""

    file: FileReference


Part = TextPart | ImagePart | AudioPart | FilePart
Content = str | Annotated[tuple[Part, ...], msgspec.Meta(min_length=1)]


def _only_text(content: Content | None) -> None:
    # Not said in the type: a lone tagged struct would be decoded without its `type`.
    if isinstance(content, tuple):
        for index, part in enumerate(content):
            if not isinstance(part, TextPart):
                raise RuleBroken(f"content[{index}]", "must be a text part: this role takes no other")


class CalledFunction(PromptStruct, frozen=True):
    """What the model called. `arguments` is JSON text as the model wrote it, so it need not parse."""

    name: str
    arguments: str


class ToolCall(PromptStruct, frozen=True):
    """A call of an earlier answer, echoed back."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class SystemMessage(PromptStruct, frozen=True, tag_field="role", tag="system"):
    """Text only."""

    content: Content
    name: str | None = None

    def __post_init__(self) -> None:
        _only_text(self.content)


class DeveloperMessage(PromptStruct, frozen=True, tag_field="role", tag="developer"):
    """Text only."""

    content: Content
    name: str | None = None

    def __post_init__(self) -> None:
        _only_text(self.content)


class UserMessage(PromptStruct, frozen=True, tag_field="role", tag="user"):
    """Text or parts of any kind; whether the model takes them is the engine's to say."""

    content: Content
    name: str | None = None


class AssistantMessage(PromptStruct, frozen=True, tag_field="role", tag="assistant"):
    """An earlier answer. `content` is None only with calls; an empty `tool_calls` counts as absent."""

    content: Content | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None

    def __post_init__(self) -> None:
        _only_text(self.content)
        if self.content is None and not self.tool_calls:
            raise RuleBroken("content", "is required on an assistant message without tool_calls")


class ToolMessage(PromptStruct, frozen=True, tag_field="role", tag="tool"):
    """The result of one call. Text only."""

    content: Content
    tool_call_id: Annotated[str, msgspec.Meta(min_length=1)]

    def __post_init__(self) -> None:
        _only_text(self.content)


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class Function(PromptStruct, frozen=True):
    """A function the model may call. `parameters` is a JSON schema of an object, or None for no parameters."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None

    def __post_init__(self) -> None:
        if self.parameters is not None and self.parameters.get("type", "object") != "object":
            raise RuleBroken("parameters", 'must be a JSON schema of type "object"')


class Tool(PromptStruct, frozen=True):
    """`{"type":"function"}`; there is no other kind."""

    type: Literal["function"]
    function: Function


# What members take that are a choice or follow a pattern, by path without indices.
EXPECTED: Mapping[str, str] = {
    "messages[].role": "system, developer, user, assistant or tool",
    "messages[].content[].type": "text, image_url, input_audio or file",
    "messages[].content[].image_url.detail": "auto, low or high",
    "messages[].content[].input_audio.format": "wav or mp3",
    "messages[].tool_calls[].type": "function",
    "tools[].type": "function",
    "tools[].function.name": FUNCTION_NAME,
}
