"""The response object and its events, described (wire contract 3.4). See `answers`."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

Status = Literal["in_progress", "completed", "incomplete"]


class OutputTextPart(Struct, kw_only=True, tag_field="type", tag="output_text"):
    """What the model said."""

    text: str
    annotations: list[dict[str, Any]]


class RefusalPart(Struct, kw_only=True, tag_field="type", tag="refusal"):
    """What the model would not do, in its words."""

    refusal: str


class ReasoningPart(Struct, kw_only=True, tag_field="type", tag="reasoning_text"):
    """What the model thought."""

    text: str


class OutputMessage(Struct, kw_only=True, tag_field="type", tag="message"):
    """A message of the model's."""

    id: str
    role: Literal["assistant"]
    status: Status
    content: list[OutputTextPart | RefusalPart]


class OutputReasoning(Struct, kw_only=True, tag_field="type", tag="reasoning"):
    """Reasoning, in clear in `content`."""

    id: str
    summary: list[dict[str, Any]]
    content: list[ReasoningPart]
    status: Status


class OutputCall(Struct, kw_only=True, tag_field="type", tag="function_call"):
    """A call of the model's. `arguments` is JSON text."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


OutputItem = OutputMessage | OutputReasoning | OutputCall


class InputDetails(Struct, kw_only=True):
    """What the engine's cache held of the prompt."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Struct, kw_only=True):
    """What was thought and not said."""

    reasoning_tokens: int


class ResponseUsage(Struct, kw_only=True):
    """Tokens of the input, of the output, and of both together."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class IncompleteDetails(Struct, kw_only=True):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens", "content_filter"]


class EchoedReasoning(Struct, kw_only=True):
    """As it was asked for."""

    effort: str | None
    summary: str | None


class EchoedText(Struct, kw_only=True):
    """As it was asked for."""

    format: dict[str, Any]
    verbosity: str | UnsetType = UNSET


class Response(Struct, kw_only=True):
    """A response: what was asked for, the output, and what it took. Receipt and signature are found by its `id`."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Status
    background: Literal[False]
    error: None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None
    previous_response_id: None
    store: Literal[False]
    truncation: Literal["disabled"]
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    reasoning: EchoedReasoning
    temperature: float | None
    text: EchoedText
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float | None


class ResponseEvent(Struct, kw_only=True):
    """The whole response as it is when the event is sent."""

    type: Literal["response.created", "response.in_progress", "response.completed", "response.incomplete"]
    sequence_number: int
    response: Response


class ItemEvent(Struct, kw_only=True):
    """An item begins or is done."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    sequence_number: int
    output_index: int
    item: OutputItem


class PartEvent(Struct, kw_only=True):
    """A part of an item begins or is done."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    part: OutputTextPart | RefusalPart | ReasoningPart


class TextDeltaEvent(Struct, kw_only=True):
    """A piece of text."""

    type: Literal["response.output_text.delta", "response.refusal.delta", "response.reasoning_text.delta"]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[dict[str, Any]] | UnsetType = UNSET


class TextDoneEvent(Struct, kw_only=True):
    """All of a text, in `text`, or in `refusal`."""

    type: Literal["response.output_text.done", "response.refusal.done", "response.reasoning_text.done"]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str | UnsetType = UNSET
    refusal: str | UnsetType = UNSET
    logprobs: list[dict[str, Any]] | UnsetType = UNSET


class ArgumentsDeltaEvent(Struct, kw_only=True):
    """A piece of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"]
    sequence_number: int
    item_id: str
    output_index: int
    delta: str


class ArgumentsDoneEvent(Struct, kw_only=True):
    """All of a call's arguments."""

    type: Literal["response.function_call_arguments.done"]
    sequence_number: int
    item_id: str
    output_index: int
    name: str
    arguments: str


class StreamError(Struct, kw_only=True):
    """The end of a stream that broke."""

    type: Literal["error"]
    sequence_number: int
    code: str
    message: str
    param: None


EVENTS: tuple[type[Struct], ...] = (
    ResponseEvent,
    ItemEvent,
    PartEvent,
    TextDeltaEvent,
    TextDoneEvent,
    ArgumentsDeltaEvent,
    ArgumentsDoneEvent,
    StreamError,
)
