"""The members of a Responses request and what each may hold, as sent (wire contract 3.4).

`null` means absent. Objects are closed: a member that is not listed is refused and not ignored, because whoever sends
it may rely on it. What members demand of each other is in `responses_request`, `input` in `responses_items`.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct

from confide.protocol.chat_body import MAX_INTEGER
from confide.protocol.chat_errors import RuleBroken
from confide.protocol.chat_messages import FUNCTION_NAME, ClosedStruct, FunctionName
from confide.protocol.chat_reasoning import EFFORTS, Effort

MIN_OUTPUT_TOKENS = 16
MOST_ITEMS = 16_384  # a million tiny ones take two seconds to read, and hold up everybody else
ABSENT = Raw(b"null")

Verbosity = Literal["low", "medium", "high"]
Schema = dict[str, object]


def refuse_given(of: Struct, unsupported: Mapping[str, str]) -> None:
    """Raise RuleBroken for the first member of `unsupported` (name, and what is wrong with it) that is not null."""
    for member, problem in unsupported.items():
        if is_given(getattr(of, member)):
            raise RuleBroken(member, problem)


def is_given(raw: Raw) -> bool:
    return raw is not ABSENT and bytes(raw) != b"null"


class FunctionTool(ClosedStruct, frozen=True):
    """A function that the model may call. `parameters`: a JSON schema of an object, None for no parameters."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None

    def __post_init__(self) -> None:
        if self.parameters is not None and self.parameters.get("type", "object") != "object":
            raise RuleBroken("parameters", 'must be a JSON schema of type "object"')


class NamedFunction(ClosedStruct, frozen=True):
    """`{"type":"function","name":…}`: the one function that the model must call."""

    type: Literal["function"]
    name: str


class Text(ClosedStruct, frozen=True, tag_field="type", tag="text"):
    """Free text: the default."""


class JsonObject(ClosedStruct, frozen=True, tag_field="type", tag="json_object"):
    """One JSON object of any shape."""


class JsonSchema(ClosedStruct, frozen=True, tag_field="type", tag="json_schema"):
    """JSON text valid under `schema`, which the engine has yet to look at."""

    name: FunctionName
    schema: Schema
    strict: bool | None = None
    description: str | None = None


class TextMember(ClosedStruct, frozen=True):
    """The member `text`."""

    format: Text | JsonObject | JsonSchema | None = None
    verbosity: Verbosity | None = None


class ReasoningMember(ClosedStruct, frozen=True):
    """The member `reasoning`. `summary` is a hint: reasoning is given as it is and not summed up."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class StreamOptions(ClosedStruct, frozen=True):
    """Events are not padded, so `include_obfuscation` may only be turned off."""

    include_obfuscation: bool | None = None

    def __post_init__(self) -> None:
        if self.include_obfuscation:
            raise RuleBroken("include_obfuscation", "must be false: events are not padded here")


# Known to clients, and not done here: nothing is stored, no tool is run, no text is judged or cut.
STATELESS = "is not supported: nothing is stored here, so send the whole conversation as input"
NOT_DONE = "is not supported: leave it out"
UNSUPPORTED: Mapping[str, str] = {
    "previous_response_id": STATELESS,
    "conversation": STATELESS,
    "prompt": "is not supported: nothing is stored here, so send the prompt's text",
    "max_tool_calls": "is not supported: no tools are run here",
    "background_options": NOT_DONE,
    "context_management": NOT_DONE,
    "moderation": NOT_DONE,
    "access_programs": NOT_DONE,
    "image": NOT_DONE,
    "prompt_cache_options": NOT_DONE,
    "prompt_cache_retention": NOT_DONE,
}


class ResponsesBody(ClosedStruct, frozen=True):
    """A whole request before the rules between members. Decode only: the rest of the house takes a ResponsesRequest."""

    model: str
    input: str | Annotated[tuple[Raw, ...], Meta(min_length=1, max_length=MOST_ITEMS)]
    instructions: str | None = None
    tools: Annotated[tuple[Raw, ...], Meta(max_length=128)] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_output_tokens: Annotated[int, Meta(ge=MIN_OUTPUT_TOKENS, le=MAX_INTEGER)] | None = None
    text: TextMember | None = None
    reasoning: ReasoningMember | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    background: bool | None = None
    truncation: Literal["disabled"] | None = None
    include: tuple[Literal["reasoning.encrypted_content"], ...] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=0)] | None = None
    provider: Raw = ABSENT  # ACI serving constraints: wire contract 7.4
    previous_response_id: Raw = ABSENT
    conversation: Raw = ABSENT
    prompt: Raw = ABSENT
    max_tool_calls: Raw = ABSENT
    background_options: Raw = ABSENT
    context_management: Raw = ABSENT
    moderation: Raw = ABSENT
    access_programs: Raw = ABSENT
    image: Raw = ABSENT
    prompt_cache_options: Raw = ABSENT
    prompt_cache_retention: Raw = ABSENT

    def __post_init__(self) -> None:
        refuse_given(self, UNSUPPORTED)
        if self.background:
            raise RuleBroken("background", "must be false: answers are not kept here, so there would be none to fetch")


class FreeForm(Struct, frozen=True):
    """The members in which any JSON may stand, undecoded: a large body is measured first (see `chat_body.FreeForm`)."""

    tools: Raw = Raw()
    text: Raw = Raw()
    metadata: Raw = Raw()
    provider: Raw = Raw()


# What members take that are a choice, follow a pattern or are bounded, by path without indices.
EXPECTED: Mapping[str, str] = {
    "input": f"a string or an array of 1 to {MOST_ITEMS} items",
    "metadata": "an object of at most 16 strings",
    "tools[].type": "function: other tools are not run here",
    "tools[].name": FUNCTION_NAME,
    "tool_choice": 'auto, none, required or {"type":"function","name":"..."}',
    "tool_choice.type": "function",
    "text.format.type": "text, json_object or json_schema",
    "text.format.name": FUNCTION_NAME,
    "text.verbosity": "low, medium or high",
    "reasoning.effort": EFFORTS,
    "reasoning.summary": "auto, concise or detailed",
    "truncation": "disabled: what the model is given is never cut here",
    "include[]": "reasoning.encrypted_content: nothing else can be included",
    "top_logprobs": "0: this surface has no log probabilities, /v1/chat/completions has",
}
