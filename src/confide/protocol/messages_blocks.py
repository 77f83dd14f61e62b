"""The messages of an Anthropic Messages request and the blocks they are made of, as decoded (wire contract 3.5).

Every struct is closed: a member that is not known is refused with its name, because what a client asks for is done or
refused. `null` for a member that may be absent means absent. JSON that is passed on stays as it was written.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Raw

from confide.protocol.chat_errors import RuleBroken
from confide.protocol.chat_messages import ClosedStruct

REMOTE_IMAGE = re.compile(r"https?://[^\s/]", re.IGNORECASE)
ABSENT = (b"", b"null")

NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]


class CacheControl(ClosedStruct, frozen=True):
    """A hint where a prefix ends that is worth keeping. Taken and without effect: nothing is kept between requests."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


def is_absent(value: Raw) -> bool:
    return bytes(value) in ABSENT


def check_absent(member: str, value: Raw) -> None:
    """For a member that the current SDKs know and that nothing here can honour."""
    if not is_absent(value):
        raise RuleBroken(member, "is not supported: leave it out")


def check_object(member: str, value: Raw) -> None:
    """Syntax is checked by the decoder, the encoding of what is skipped is not."""
    if bytes(memoryview(value)[:1]) != b"{" or not is_utf8(value):
        raise RuleBroken(member, "must be a JSON object")


def is_utf8(value: Raw) -> bool:
    try:
        str(memoryview(value), "utf-8")
    except UnicodeDecodeError:
        return False
    return True


def check_no_citations(citations: Raw) -> None:
    """An answer without any may be sent back with the empty list of them."""
    if bytes(citations) != b"[]":
        check_absent("citations", citations)


class TextBlock(ClosedStruct, frozen=True, tag_field="type", tag="text"):
    """`{"type":"text"}`."""

    text: str
    cache_control: CacheControl | None = None
    citations: Raw = Raw()

    def __post_init__(self) -> None:
        check_no_citations(self.citations)


class OnlyText(ClosedStruct, frozen=True):
    """A text block where there is no other kind. Not a tagged struct: a lone one would be decoded without its type."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Raw = Raw()

    def __post_init__(self) -> None:
        check_no_citations(self.citations)


class Base64Image(ClosedStruct, frozen=True, tag_field="type", tag="base64"):
    """An image in the request; the payload is not looked at here."""

    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str

    @property
    def address(self) -> str:
        return f"data:{self.media_type};base64,{self.data}"


class RemoteImage(ClosedStruct, frozen=True, tag_field="type", tag="url"):
    """An image that would have to be fetched."""

    url: str

    def __post_init__(self) -> None:
        if REMOTE_IMAGE.match(self.url) is None:
            raise RuleBroken("url", "must start with https:// or http://")

    @property
    def address(self) -> str:
        return self.url


class ImageBlock(ClosedStruct, frozen=True, tag_field="type", tag="image"):
    """`{"type":"image"}`."""

    source: Base64Image | RemoteImage
    cache_control: CacheControl | None = None


class ToolResultBlock(ClosedStruct, frozen=True, tag_field="type", tag="tool_result"):
    """What a call of the model's gave. Absent content is empty text."""

    tool_use_id: NonEmpty
    content: str | tuple[TextBlock | ImageBlock, ...] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None
    toolset_name: Raw = Raw()

    def __post_init__(self) -> None:
        check_absent("toolset_name", self.toolset_name)


class ToolUseBlock(ClosedStruct, frozen=True, tag_field="type", tag="tool_use"):
    """A call of an earlier answer. `input`: a JSON object."""

    id: NonEmpty
    name: str
    input: Raw
    cache_control: CacheControl | None = None
    caller: Raw = Raw()
    toolset_name: Raw = Raw()

    def __post_init__(self) -> None:
        check_object("input", self.input)
        check_absent("toolset_name", self.toolset_name)
        if not is_absent(self.caller) and not is_direct(self.caller):
            raise RuleBroken("caller", 'must be {"type":"direct"}: the model calls tools itself')


class Caller(ClosedStruct, frozen=True):
    type: Literal["direct"]


def is_direct(caller: Raw) -> bool:
    try:
        msgspec.json.decode(caller, type=Caller)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


class ThinkingBlock(ClosedStruct, frozen=True, tag_field="type", tag="thinking"):
    """The reasoning of an earlier answer. No signature is checked: reasoning is text like any other here."""

    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(ClosedStruct, frozen=True, tag_field="type", tag="redacted_thinking"):
    """Reasoning that another service sealed for itself. There is nothing in it that a model here could read."""

    data: str


UserBlock = TextBlock | ImageBlock | ToolResultBlock
AssistantBlock = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock
OnlyTextContent = str | Annotated[tuple[OnlyText, ...], msgspec.Meta(min_length=1)]


class UserMessage(ClosedStruct, frozen=True, tag_field="role", tag="user"):
    """Text, images, and the results of the calls of the message before."""

    content: str | Annotated[tuple[UserBlock, ...], msgspec.Meta(min_length=1)]


class AssistantMessage(ClosedStruct, frozen=True, tag_field="role", tag="assistant"):
    """An earlier answer."""

    content: str | Annotated[tuple[AssistantBlock, ...], msgspec.Meta(min_length=1)]


class SystemMessage(ClosedStruct, frozen=True, tag_field="role", tag="system"):
    """Instructions in the midst of a conversation, as the current SDK has them."""

    content: OnlyTextContent


Message = UserMessage | AssistantMessage | SystemMessage

IMAGE_TYPES = "image/jpeg, image/png, image/gif or image/webp"
SOURCES = "base64 or url"

# What members take that are a choice, by path without indices.
EXPECTED: Mapping[str, str] = {
    "messages[].role": "user, assistant or system",
    "messages[].content[].type": (
        "text, image or tool_result from the user; text, tool_use, thinking or redacted_thinking from the assistant; "
        "text from the system"
    ),
    "messages[].content[].source.type": SOURCES,
    "messages[].content[].source.media_type": IMAGE_TYPES,
    "messages[].content[].content[].type": "text or image",
    "messages[].content[].content[].source.type": SOURCES,
    "messages[].content[].content[].source.media_type": IMAGE_TYPES,
    "system[].type": "text",
}
