"""The answers of OpenAI's surfaces, described (wire contract 2.6, 2.7, 3.1 to 3.3).

For the OpenAPI document alone: nothing is built or read with these. `tests/gateway/test_openapi_answers.py` holds each
against what the service really answers. A model behind an upstream may send members that are not named here.
"""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class Usage(Struct, kw_only=True):
    """Tokens of the prompt, of all choices, and of both together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnsweredFunction(Struct, kw_only=True):
    """What was called. `arguments` is JSON text."""

    name: str
    arguments: str


class Call(Struct, kw_only=True):
    """A call of the model's."""

    id: str
    type: Literal["function"]
    function: AnsweredFunction


class LikelyToken(Struct, kw_only=True):
    """A token, its log probability, and its UTF-8 bytes."""

    token: str
    logprob: float
    bytes: list[int] | None


class DrawnToken(LikelyToken, kw_only=True):
    """The token that was drawn, and the likeliest in its place."""

    top_logprobs: list[LikelyToken]


class Logprobs(Struct, kw_only=True):
    """One entry a token of the answer's text."""

    content: list[DrawnToken]
    refusal: None


class ChatMessage(Struct, kw_only=True):
    """What the model said. `content` is null where it only calls."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[Call] | UnsetType = UNSET


class ChatChoice(Struct, kw_only=True):
    """One of the `n` answers. `stop_reason`: the stop text that ended it, where one did."""

    index: int
    message: ChatMessage
    finish_reason: FinishReason | None
    logprobs: Logprobs | None
    stop_reason: str | UnsetType = UNSET


class ChatCompletion(Struct, kw_only=True):
    """A whole answer. Receipt and signature are found by its `id`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(Struct, kw_only=True):
    """`name` in the first piece of a call; the pieces of `arguments` make JSON text."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class CallDelta(Struct, kw_only=True):
    """A piece of the call of this index; `id` and `type` in the first one."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class Delta(Struct, kw_only=True):
    """What is new; empty in the piece with the finish reason."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallDelta] | UnsetType = UNSET


class ChunkChoice(Struct, kw_only=True):
    """A piece of one of the `n` answers. `stop_reason`: beside `finish_reason`, the stop text that was met."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None
    logprobs: Logprobs | UnsetType = UNSET
    stop_reason: str | UnsetType = UNSET


class ChatChunk(Struct, kw_only=True):
    """One event of a stream. With `stream_options.include_usage` all have `usage`, and the last one has no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class TextLogprobs(Struct, kw_only=True):
    """Parallel arrays, one entry a token. `text_offset`: characters before it."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Struct, kw_only=True):
    """A text, or a piece of it in a stream."""

    text: str
    index: int
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | UnsetType = UNSET


class TextCompletion(Struct, kw_only=True):
    """A whole answer, with `usage`; or one event of a stream, where `usage` is as in a chat chunk."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET


class EmbeddingsUsage(Struct, kw_only=True):
    """Tokens of all entries."""

    prompt_tokens: int
    total_tokens: int


class Embedding(Struct, kw_only=True):
    """One vector: numbers, or base64 of little-endian IEEE-754 single floats."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(Struct, kw_only=True):
    """One vector an entry of `input`, in its order. There is no id: the receipt is found by `X-Receipt-Id`."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


class Pricing(Struct, kw_only=True):
    """Price of one token, or of one image or request, as decimal text."""

    prompt: str
    completion: str
    image: str | UnsetType = UNSET
    request: str | UnsetType = UNSET
    input_cache_read: str | UnsetType = UNSET
    input_cache_write: str | UnsetType = UNSET


class Metadata(Struct, kw_only=True):
    """`simulated_tee`: the TEE is a simulated one, which protects nothing. `appid`: the platform's name for us."""

    tee: bool
    simulated_tee: bool
    appid: str | UnsetType = UNSET


class Architecture(Struct, kw_only=True):
    """What goes in and comes out."""

    modality: str
    input_modalities: list[str]
    output_modalities: list[str]


class Model(Struct, kw_only=True):
    """A name that `model` takes. Nothing here is evidence. `supported_parameters`: members that the model honours."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    name: str
    description: str
    context_length: int | None
    max_output_length: int | None
    pricing: Pricing
    providers: list[str]
    metadata: Metadata
    is_tee: bool
    architecture: Architecture
    input_modalities: list[str]
    output_modalities: list[str]
    supported_parameters: list[str]


class ModelList(Struct, kw_only=True):
    """Models; an alias is an entry of its own."""

    object: Literal["list"]
    data: list[Model]
