"""From a buffered answer of chat to an Anthropic message (wire contract 2.6, 3.5)."""

from collections.abc import Iterator, Sequence

import msgspec

from confide.protocol.chat_answer import Call, Said, Usage, read_answer
from confide.protocol.translation import Untranslatable

NOT_COUNTED = Usage()


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


def usage_document(usage: Usage) -> dict[str, object]:
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


def message_document(id: str, model: str, content: Sequence[object], stop: Stop | None, usage: Usage) -> object:
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
    """The message for a buffered answer of chat. Raises Untranslatable."""
    message, choice, usage = read_answer(body)
    stop = stop_of(
        choice.finish_reason,
        choice.stop_reason,
        sequences,
        has_calls=bool(message.tool_calls),
        is_refused=bool(message.refusal),
    )
    content = [*text_blocks(message), *call_blocks(message.tool_calls or (), is_cut=stop.reason == "max_tokens")]
    return msgspec.json.encode(message_document(id, model, content, stop, usage or NOT_COUNTED))


def text_blocks(message: Said) -> Iterator[object]:
    """What was thought, then what is said. Empty text is no block, as it is none in a stream."""
    if thinking := message.thought:
        yield {"type": "thinking", "thinking": thinking, "signature": ""}
    if text := (message.content or "") + (message.refusal or ""):
        yield {"type": "text", "text": text}


def call_blocks(calls: Sequence[Call], *, is_cut: bool) -> Iterator[object]:
    """The calls. One that the token limit cut has no input that could be told, and is left out: the stop says why."""
    for index, call in enumerate(calls):
        if not call.id or call.function is None or not call.function.name:
            raise Untranslatable(f"tool_calls[{index}] has no id or no name")
        arguments = input_of(call.function.arguments or "")
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
