"""A text completion's request, from one decode of its body (wire contract 3.3).

Proved on success: every member has its type, is in range and fits the others. Members that are not in the contract are
refused by name. Not checked here: whether the model exists and can do it, and `provider` (wire contract 7.4).
"""

from typing import Annotated

import msgspec
from msgspec import Meta, Raw

from confide.errors import InvalidRequest
from confide.protocol.chat_body import (
    EXPECTED,
    FREE_FORM_BYTES,
    MAX_INTEGER,
    MAX_TOKEN_ID,
    Bias,
    Penalty,
    StopText,
    StreamOptions,
    TokenCount,
    TokenId,
)
from confide.protocol.chat_errors import RuleBroken, refusal
from confide.protocol.chat_messages import ClosedStruct
from confide.protocol.text_inputs import Text, read_texts

DEFAULT_MAX_TOKENS = 16
MOST_CHOICES = 128


class CompletionBody(ClosedStruct, frozen=True):
    """As sent. None: absent."""

    model: str
    prompt: Raw
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=MOST_CHOICES)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=MOST_CHOICES)] | None = None
    stop: StopText | Annotated[tuple[StopText, ...], Meta(min_length=1, max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=MAX_INTEGER)] | None = None
    logit_bias: dict[TokenId, Bias] | None = None
    user: str | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    provider: dict[str, object] | None = None


class FreeForm(msgspec.Struct, frozen=True):
    """Any JSON may stand in these; see chat_body.FreeForm."""

    logit_bias: Raw = Raw()
    provider: Raw = Raw()


class CompletionRequest(ClosedStruct, frozen=True):
    """A request whose rules hold. Numbers that were not sent are None, so that the model's defaults can stand."""

    model: str
    prompts: tuple[Text, ...]
    token_limit: int = DEFAULT_MAX_TOKENS
    n: int = 1  # choices of each prompt
    stream: bool = False
    include_usage: bool = False
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    logit_bias: dict[int, float] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    provider: dict[str, object] | None = None


DECODER = msgspec.json.Decoder(CompletionBody)
FREE_FORM_DECODER = msgspec.json.Decoder(FreeForm)


def parse_completion(body: bytes) -> CompletionRequest:
    """The request in `body`, one UTF-8 JSON object. Raises InvalidRequest, `param` a dotted path."""
    try:
        if len(body) > FREE_FORM_BYTES:
            check_free_form(body)
        return normalised(DECODER.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RuleBroken) as error:
        refused: InvalidRequest = refusal(error, EXPECTED)
    raise refused  # outside the handler: the context of an exception is logged with it, and this one quotes the body


def new_completion_id(random: bytes) -> str:
    """`cmpl-` and 32 lower-case hex digits of 16 random bytes (wire contract 3.3)."""
    return f"cmpl-{random.hex()}"


def normalised(body: CompletionBody) -> CompletionRequest:
    n = body.n or 1
    if body.best_of is not None and body.best_of != n:
        raise RuleBroken("best_of", "must be n, or left out: every choice that is made is returned")
    if body.suffix:
        raise RuleBroken("suffix", "is not supported: leave it out")
    if body.stream_options is not None and not body.stream:
        raise RuleBroken("stream_options", "is only allowed with stream: true")
    if body.echo and body.logprobs is not None:
        raise RuleBroken("logprobs", "is not supported together with echo: a prompt's own tokens have none here")
    prompts = read_texts(body.prompt, member="prompt", most=MOST_CHOICES)
    if len(prompts) * n > MOST_CHOICES:
        raise RuleBroken("n", f"asks for {len(prompts) * n} choices with these prompts; at most {MOST_CHOICES}")
    return CompletionRequest(
        model=body.model,
        prompts=prompts,
        token_limit=body.max_tokens or DEFAULT_MAX_TOKENS,
        n=n,
        stream=bool(body.stream),
        include_usage=body.stream_options is not None and bool(body.stream_options.include_usage),
        stop=(body.stop,) if isinstance(body.stop, str) else body.stop or (),
        logprobs=body.logprobs,
        echo=bool(body.echo),
        temperature=body.temperature,
        top_p=body.top_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        seed=body.seed,
        logit_bias=body.logit_bias,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        provider=body.provider,
    )


def check_free_form(body: bytes) -> None:
    free_form = FREE_FORM_DECODER.decode(body)
    for member in free_form.__struct_fields__:
        if len(memoryview(getattr(free_form, member))) > FREE_FORM_BYTES:
            raise RuleBroken(member, f"is too large: it may have {FREE_FORM_BYTES} bytes")
