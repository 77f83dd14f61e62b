"""What is read of an answer of chat that becomes an answer of another surface (wire contract 2.6, 2.7).

Engines differ in what they leave out, repeat and add. What is not named here is not looked at; what is named and of
another type makes the answer none.
"""

from typing import Annotated, TypeVar

import msgspec
from msgspec.structs import replace

from confide.protocol.chat_errors import PLACE
from confide.protocol.translation import Untranslatable


class SaidPart(msgspec.Struct, frozen=True, gc=False):
    """A part of an answer. Its repr shows none of it, so that no log line or traceback can."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class CalledFunction(SaidPart, frozen=True):
    """A function by name, and its arguments as the model wrote them; in a stream, pieces of both."""

    name: str | None = None
    arguments: str | None = None


class Call(SaidPart, frozen=True):
    """A tool call or a piece of one. `index`: which one, None where the engine does not say."""

    index: int | None = None
    id: str | None = None
    function: CalledFunction | None = None


class Said(SaidPart, frozen=True):
    """The message of an answer, or what a chunk adds to it."""

    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: object = None  # the name that some engines have for it
    tool_calls: tuple[Call, ...] | None = None

    @property
    def thought(self) -> str:
        """The reasoning, "" without."""
        return self.reasoning_content or (self.reasoning if isinstance(self.reasoning, str) else "")


class Choice(SaidPart, frozen=True):
    """`message` in a buffered answer, `delta` in a chunk. `stop_reason`: of some engines, the stop text they met."""

    index: int = 0
    message: Said | None = None
    delta: Said | None = None
    finish_reason: str | None = None
    stop_reason: object = None


Count = Annotated[int, msgspec.Meta(ge=0)]


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None


class CompletionDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: Count | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens, as far as the engine says."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class Answer(msgspec.Struct, frozen=True):
    """A buffered answer."""

    choices: tuple[Choice, ...]
    usage: Usage | None = None


class Chunk(msgspec.Struct, frozen=True):
    """One event of a stream. `error`: JSON, what the engine says when it failed."""

    choices: tuple[Choice, ...] | None = None
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


ANSWER_DECODER = msgspec.json.Decoder(Answer)
CHUNK_DECODER = msgspec.json.Decoder(Chunk)

Read = TypeVar("Read", Answer, Chunk)


def read_answer(body: bytes) -> tuple[Said, Choice, Usage | None]:
    """What is said in the one choice that was asked for, the choice, and what it took. Raises Untranslatable."""
    answer = _decoded(ANSWER_DECODER, body)
    if len(answer.choices) != 1 or (said := answer.choices[0].message) is None:
        raise Untranslatable("choices: expected one, with its message")
    calls = tuple(replace(call, index=index) for index, call in enumerate(said.tool_calls or ()))
    return replace(said, tool_calls=calls), answer.choices[0], answer.usage


def read_chunk(data: bytes) -> Chunk:
    """The chunk in the data of one event other than `[DONE]`. Raises Untranslatable, also for an error."""
    chunk = _decoded(CHUNK_DECODER, data)
    if bytes(chunk.error) != b"null":
        raise Untranslatable("error: the stream says that it failed")
    if any(choice.index != 0 for choice in chunk.choices or ()):
        raise Untranslatable("choices: expected one")
    return chunk


def _decoded(decoder: msgspec.json.Decoder[Read], data: bytes) -> Read:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        place = PLACE.match(str(error))
        problem = f"{place['path'] if place else 'the answer'}: of another type than chat's"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        problem = "the answer: no JSON"
    raise Untranslatable(problem)  # outside the handlers: the context of an exception is logged with it
