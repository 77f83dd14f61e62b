"""From a buffered answer of chat to an Anthropic message (wire contract 2.6, 3.5)."""

from collections.abc import Iterator, Sequence
from typing import Annotated, TypeVar

import msgspec

from confide.protocol.chat_errors import refusal
from confide.protocol.translation import Untranslatable

Count = Annotated[int, msgspec.Meta(ge=0)]
Decoded = TypeVar("Decoded")


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: Count | None = None


class CompletionDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: Count | None = None


class ChatUsage(msgspec.Struct, frozen=True):
    """Zero where the engine counted nothing."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


NOT_COUNTED = ChatUsage()


class ChatFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class ChatCall(msgspec.Struct, frozen=True):
    id: str
    function: ChatFunction


class ChatMessage(msgspec.Struct, frozen=True):
    """Engines call reasoning by either name, some by both."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: tuple[ChatCall, ...] | None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """`stop_reason`: of some engines, the stop text that was met."""

    message: ChatMessage
    finish_reason: str | None = None
    stop_reason: object = None


class ChatAnswer(msgspec.Struct, frozen=True):
    choices: Annotated[tuple[ChatChoice, ...], msgspec.Meta(min_length=1)]
    usage: ChatUsage | None = None


ANSWER = msgspec.json.Decoder(ChatAnswer)


class Stop(msgspec.Struct, frozen=True):
    """Why a message ended. `sequence`: the stop text that was met, where the engine says so."""

    reason: str
    sequence: str | None = None


REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def stop_of(
    finish_reason: str | None, met: object, sequences: Sequence[str], *, has_calls: bool, is_refused: bool
) -> Stop:
    """Raises Untranslatable for an answer that does not say how it ended, or says it in words that chat does not have.

    Chat says `stop` both of a natural end and of a stop text. Which text it was stands in no member of chat; it is told
    where the engine does (`met`), and never guessed. Engines that were told which tool to call say `stop` of calls.
    """
    reason = REASONS.get(finish_reason or "")
    if reason is None:
        raise Untranslatable("finish_reason is none of chat's")
    if is_refused:
        return Stop("refusal")
    if reason == "end_turn" and isinstance(met, str) and met in sequences:
        return Stop("stop_sequence", met)
    return Stop("tool_use" if reason == "end_turn" and has_calls else reason)


def usage_document(usage: ChatUsage) -> dict[str, object]:
    """The counts as Messages has them: of the prompt, tokens that were read from a cache are counted apart."""
    prompt, details = usage.prompt_tokens or 0, usage.prompt_tokens_details
    cached = 0 if details is None else min(details.cached_tokens or 0, prompt)
    document: dict[str, object] = {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens or 0,
    }
    thinking = usage.completion_tokens_details and usage.completion_tokens_details.reasoning_tokens
    return document if thinking is None else document | {"output_tokens_details": {"thinking_tokens": thinking}}


def message_document(id: str, model: str, content: Sequence[object], stop: Stop | None, usage: ChatUsage) -> object:
    """A message; one whose stream begins has no content and no `stop` yet."""
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop and stop.reason,
        "stop_sequence": stop and stop.sequence,
        "usage": usage_document(usage),
    }


def whole_message(body: bytes, *, id: str, model: str, sequences: Sequence[str]) -> bytes:
    """The message for a buffered answer of chat, of which the first choice counts. Raises Untranslatable."""
    answer = decoded(ANSWER, body)
    choice = answer.choices[0]
    message = choice.message
    stop = stop_of(
        choice.finish_reason,
        choice.stop_reason,
        sequences,
        has_calls=bool(message.tool_calls),
        is_refused=bool(message.refusal),
    )
    content = [*text_blocks(message), *call_blocks(message.tool_calls or (), is_cut=stop.reason == "max_tokens")]
    return msgspec.json.encode(message_document(id, model, content, stop, answer.usage or NOT_COUNTED))


def text_blocks(message: ChatMessage) -> Iterator[object]:
    """What was thought, then what is said. Empty text is no block, as it is none in a stream."""
    if thinking := message.reasoning_content or message.reasoning:
        yield {"type": "thinking", "thinking": thinking, "signature": ""}
    if text := (message.content or "") + (message.refusal or ""):
        yield {"type": "text", "text": text}


def call_blocks(calls: Sequence[ChatCall], *, is_cut: bool) -> Iterator[object]:
    """The calls. One that the token limit cut has no input that could be told, and is left out: the stop says why."""
    for index, call in enumerate(calls):
        arguments = input_of(call.function.arguments)
        if arguments is not None:
            yield {"type": "tool_use", "id": call.id, "name": call.function.name, "input": arguments}
        elif not is_cut:
            raise Untranslatable(f"tool_calls[{index}].function.arguments is no JSON object")


def input_of(arguments: str) -> msgspec.Raw | None:
    """The input that these arguments are, as the model wrote it; no text is the empty object. None: they are none."""
    if not arguments.strip():
        return msgspec.Raw(b"{}")
    raw = arguments.encode()
    try:
        msgspec.json.decode(raw, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError):
        return None
    return msgspec.Raw(raw)


def decoded(decoder: "msgspec.json.Decoder[Decoded]", data: bytes) -> Decoded:
    """`data` as what an engine is to send. Raises Untranslatable."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        member = refusal(error, {}).param
    raise Untranslatable(f"{member or 'the answer'} is not as chat has it")
