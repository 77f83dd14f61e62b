"""The members of a chat request and what each may hold, as sent (wire contract 2.1, 2.2, 2.5).

`null` means absent and unknown members are ignored. What members demand of each other is in `chat`.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct

from confide.protocol.chat_messages import EXPECTED as EXPECTED_IN_MESSAGES
from confide.protocol.chat_messages import FUNCTION_NAME, FunctionName, Message, PromptStruct, Tool
from confide.protocol.chat_reasoning import EFFORTS, Effort, ReasoningMember

# JSON integers have no end; what reads them further down has.
MAX_INTEGER = 2**63 - 1
MAX_TOKEN_ID = 2**31 - 1

TokenCount = Annotated[int, Meta(ge=1, le=MAX_INTEGER)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
StopText = Annotated[str, Meta(min_length=1)]


class NamedTool(PromptStruct, frozen=True):
    """The one function that the model must call."""

    name: str


class NamedToolMember(PromptStruct, frozen=True):
    """`{"type":"function","function":{"name":…}}`."""

    type: Literal["function"]
    function: NamedTool


class Text(PromptStruct, frozen=True, tag_field="type", tag="text"):
    """Free text: the default."""


class JsonObject(PromptStruct, frozen=True, tag_field="type", tag="json_object"):
    """One JSON object of any shape."""


class JsonSchema(PromptStruct, frozen=True):
    """JSON text valid under `schema`, which the engine has yet to look at. None: any JSON."""

    name: FunctionName
    schema: dict[str, object] | None = None
    strict: bool | None = None
    description: str | None = None


class JsonSchemaMember(PromptStruct, frozen=True, tag_field="type", tag="json_schema"):
    """`{"type":"json_schema","json_schema":{…}}`."""

    json_schema: JsonSchema


class StreamOptions(PromptStruct, frozen=True):
    """Other members are ignored."""

    include_usage: bool | None = None


class AsSent(PromptStruct, frozen=True):
    """The members that need no normalising. None: absent."""

    model: str
    messages: Annotated[tuple[Message, ...], Meta(min_length=1)]
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=MAX_INTEGER)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[TokenId, Bias] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None  # -1 and 0: no limit, as in open serving
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    chat_template_kwargs: dict[str, object] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    service_tier: str | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    priority: Annotated[int, Meta(ge=-(2**63), le=MAX_INTEGER)] | None = None
    provider: dict[str, object] | None = None  # its rules: wire contract 7.4


class ChatBody(AsSent, frozen=True):
    """A whole request before the rules between members. Decode only: the rest of the house takes a ChatRequest."""

    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: StopText | Annotated[tuple[StopText, ...], Meta(min_length=1, max_length=4)] | None = None
    logprobs: bool | None = None
    tools: Annotated[tuple[Tool, ...], Meta(max_length=128)] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedToolMember | None = None
    parallel_tool_calls: bool | None = None
    response_format: Text | JsonObject | JsonSchemaMember | None = None
    reasoning_effort: Effort | None = None
    reasoning: ReasoningMember | None = None
    include_reasoning: bool | None = None
    store: bool | None = None
    modalities: object = None
    functions: object = None
    function_call: object = None
    audio: object = None
    prediction: object = None
    web_search_options: object = None


FREE_FORM_BYTES = 1024 * 1024  # most JSON, in bytes, of all members below together


class FreeForm(Struct, frozen=True):
    """The members in which any JSON may stand, undecoded. Thirty megabytes of `[],[],…` would take seconds to decode
    and hold the service up for everyone, so a large body is measured first.
    """

    provider: Raw = Raw()
    tools: Raw = Raw()
    response_format: Raw = Raw()
    chat_template_kwargs: Raw = Raw()
    logit_bias: Raw = Raw()
    metadata: Raw = Raw()
    modalities: Raw = Raw()
    functions: Raw = Raw()
    function_call: Raw = Raw()
    audio: Raw = Raw()
    prediction: Raw = Raw()
    web_search_options: Raw = Raw()


# What members take that are a choice, follow a pattern or are closed, by path without indices.
EXPECTED: Mapping[str, str] = {
    **EXPECTED_IN_MESSAGES,
    "logit_bias": "an object from decimal token ids to numbers from -100 to 100",
    "metadata": "an object of at most 16 strings",
    "stop": "a string or an array of 1 to 4 strings, none of them empty",
    "tool_choice": 'auto, none, required or {"type":"function","function":{"name":"..."}}',
    "tool_choice.type": "function",
    "response_format.type": "text, json_object or json_schema",
    "response_format.json_schema.name": FUNCTION_NAME,
    "reasoning_effort": EFFORTS,
    "reasoning": "an object with no members but effort, max_tokens, enabled and exclude",
    "reasoning.effort": EFFORTS,
    "verbosity": "low, medium or high",
}
