"""The members of an Anthropic Messages request besides its messages, as sent (wire contract 3.5).

`null` means absent; unknown members are refused. What members demand of each other is in `messages_request`.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw

from confide.protocol.chat_body import MAX_TOKEN_ID, StopText, TokenCount
from confide.protocol.chat_errors import RuleBroken
from confide.protocol.chat_messages import FUNCTION_NAME, ClosedStruct, FunctionName
from confide.protocol.messages_blocks import EXPECTED as EXPECTED_IN_MESSAGES
from confide.protocol.messages_blocks import (
    CacheControl,
    Message,
    OnlyTextContent,
    check_absent,
    check_object,
)

EFFORTS = "low, medium, high, xhigh or max"


class SchemaHead(msgspec.Struct, frozen=True):
    """What must be known of a tool's schema."""

    type: Literal["object"] = "object"


class Tool(ClosedStruct, frozen=True):
    """A tool of the client's. `input_schema`: a JSON schema of an object."""

    name: FunctionName
    input_schema: Raw
    type: Literal["custom"] | None = None
    description: str | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None  # arguments are streamed as they come in any case
    defer_loading: bool | None = None
    allowed_callers: tuple[Literal["direct"], ...] | None = None
    input_examples: Raw = Raw()

    def __post_init__(self) -> None:
        check_object("input_schema", self.input_schema)
        check_absent("input_examples", self.input_examples)
        if self.defer_loading:
            raise RuleBroken("defer_loading", "is not supported: the model is shown every tool")
        if not is_object_schema(self.input_schema):
            raise RuleBroken("input_schema", 'must be a JSON schema of type "object"')


def is_object_schema(schema: Raw) -> bool:
    try:
        msgspec.json.decode(schema, type=SchemaHead)
    except msgspec.ValidationError:
        return False
    return True


class AutoChoice(ClosedStruct, frozen=True, tag_field="type", tag="auto"):
    """The model decides."""

    disable_parallel_tool_use: bool | None = None


class AnyChoice(ClosedStruct, frozen=True, tag_field="type", tag="any"):
    """The model calls some tool."""

    disable_parallel_tool_use: bool | None = None


class ToolChoice(ClosedStruct, frozen=True, tag_field="type", tag="tool"):
    """The model calls this tool."""

    name: str
    disable_parallel_tool_use: bool | None = None


class NoneChoice(ClosedStruct, frozen=True, tag_field="type", tag="none"):
    """The model calls no tool."""


class ThinkingEnabled(ClosedStruct, frozen=True, tag_field="type", tag="enabled"):
    """Think, for so many tokens at most. `display` omitted: leave the thinking out of the answer."""

    budget_tokens: TokenCount
    display: Literal["summarized", "omitted"] | None = None


class ThinkingAdaptive(ClosedStruct, frozen=True, tag_field="type", tag="adaptive"):
    """The model decides whether and how much to think."""

    display: Literal["summarized", "omitted"] | None = None


class ThinkingDisabled(ClosedStruct, frozen=True, tag_field="type", tag="disabled"):
    """Do not think."""


class JsonFormat(ClosedStruct, frozen=True):
    """The answer is JSON text valid under `schema`."""

    type: Literal["json_schema"]
    schema: Raw

    def __post_init__(self) -> None:
        check_object("schema", self.schema)


class OutputConfig(ClosedStruct, frozen=True):
    """What the answer is to be like."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class Metadata(ClosedStruct, frozen=True):
    """Accepted, never echoed, never logged."""

    user_id: str | None = None


class PromptBody(ClosedStruct, frozen=True):
    """What the model is shown and how it is to answer: the members that counting tokens takes too."""

    model: str
    messages: Annotated[tuple[Message, ...], Meta(min_length=1)]
    system: OnlyTextContent | None = None
    tools: Annotated[tuple[Tool, ...], Meta(max_length=128)] | None = None
    tool_choice: AutoChoice | AnyChoice | ToolChoice | NoneChoice | None = None
    thinking: ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    speed: Literal["standard"] | None = None
    provider: Raw = Raw()  # its rules: wire contract 7.4
    context_management: Raw = Raw()
    mcp_servers: Raw = Raw()
    output_format: Raw = Raw()
    user_profile_id: Raw = Raw()


class MessagesBody(PromptBody, frozen=True, kw_only=True):
    """A whole request before the rules between members."""

    max_tokens: TokenCount
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)] | None = None
    stop_sequences: Annotated[tuple[StopText, ...], Meta(max_length=4)] | None = None
    stream: bool | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    container: Raw = Raw()
    diagnostics: Raw = Raw()
    inference_geo: Raw = Raw()


# The members that the current SDKs know and that nothing here can honour.
UNSUPPORTED: Mapping[str, str] = {
    "container": "is not supported: this service runs no tools of its own",
    "context_management": "is not supported: send the messages that the model is to see",
    "diagnostics": "is not supported: nothing is kept between requests",
    "inference_geo": "is not supported: the attestation says where inference runs",
    "mcp_servers": "is not supported: this service runs no tools of its own",
    "output_format": "is not supported: use output_config.format",
    "user_profile_id": "is not supported: use metadata.user_id",
}

CACHED = ("", "system[].", "tools[].", "messages[].content[].", "messages[].content[].content[].")

# What members take that are a choice or follow a pattern, by path without indices.
EXPECTED: Mapping[str, str] = {
    **EXPECTED_IN_MESSAGES,
    **{f"{place}cache_control.type": "ephemeral" for place in CACHED},
    **{f"{place}cache_control.ttl": "5m or 1h" for place in CACHED},
    "stop_sequences": "an array of at most 4 strings, none of them empty",
    "tools[].type": "custom: this service runs no tools of its own",
    "tools[].name": FUNCTION_NAME,
    "tools[].allowed_callers[]": "direct: the model calls tools itself",
    "tool_choice.type": "auto, any, tool or none",
    "thinking.type": "enabled, adaptive or disabled",
    "thinking.display": "summarized or omitted",
    "output_config.effort": EFFORTS,
    "output_config.format.type": "json_schema",
    "service_tier": "auto or standard_only",
    "speed": "standard",
}
