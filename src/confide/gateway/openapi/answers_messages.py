"""An Anthropic message, its events and its errors, described (wire contract 3.5, 4). See `answers`."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

StopReason = Literal["end_turn", "max_tokens", "tool_use", "stop_sequence", "refusal"]


class AnsweredText(Struct, kw_only=True, tag_field="type", tag="text"):
    """What the model said."""

    text: str


class AnsweredThinking(Struct, kw_only=True, tag_field="type", tag="thinking"):
    """What the model thought. There is no signature to check."""

    thinking: str
    signature: str


class AnsweredToolUse(Struct, kw_only=True, tag_field="type", tag="tool_use"):
    """A call of the model's."""

    id: str
    name: str
    input: dict[str, object]


AnsweredBlock = AnsweredText | AnsweredThinking | AnsweredToolUse


class ThinkingTokens(Struct, kw_only=True):
    """What was thought and not said."""

    thinking_tokens: int


class MessageUsage(Struct, kw_only=True):
    """Tokens; those of the prompt that a cache held are counted apart."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens | UnsetType = UNSET


class MessageAnswer(Struct, kw_only=True):
    """A message. One whose stream begins has no content and no stop reason. Its receipt is found by its `id`."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnsweredBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class TextPiece(Struct, kw_only=True, tag_field="type", tag="text_delta"):
    """A piece of text."""

    text: str


class ThinkingPiece(Struct, kw_only=True, tag_field="type", tag="thinking_delta"):
    """A piece of what was thought."""

    thinking: str


class InputPiece(Struct, kw_only=True, tag_field="type", tag="input_json_delta"):
    """A piece of the JSON text of a call's input."""

    partial_json: str


class Stop(Struct, kw_only=True):
    """Why the message ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageStart(Struct, kw_only=True, tag_field="type", tag="message_start"):
    """The first event."""

    message: MessageAnswer


class BlockStart(Struct, kw_only=True, tag_field="type", tag="content_block_start"):
    """A block begins."""

    index: int
    content_block: AnsweredBlock


class BlockDelta(Struct, kw_only=True, tag_field="type", tag="content_block_delta"):
    """A block goes on."""

    index: int
    delta: TextPiece | ThinkingPiece | InputPiece


class BlockStop(Struct, kw_only=True, tag_field="type", tag="content_block_stop"):
    """A block is done."""

    index: int


class MessageDelta(Struct, kw_only=True, tag_field="type", tag="message_delta"):
    """How the message ended, and all of its counts."""

    delta: Stop
    usage: MessageUsage


class MessageStop(Struct, kw_only=True, tag_field="type", tag="message_stop"):
    """The last event."""


class MessagesErrorDetail(Struct, kw_only=True):
    """`message` names the member at fault."""

    type: str
    message: str


class MessagesError(Struct, kw_only=True, tag_field="type", tag="error"):
    """An error of this surface, as a response or as the end of a stream that broke. `request_id`: of the receipt."""

    error: MessagesErrorDetail
    request_id: str | None


MessageEvent = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | MessagesError


class TokenCount(Struct, kw_only=True):
    """Tokens of the prompt, as the model is shown it."""

    input_tokens: int
