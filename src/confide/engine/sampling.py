"""How tokens are drawn, as the engine is told it. Pure functions."""

from collections.abc import Mapping
from typing import Protocol, TypeVar

ENGINE_RANDOM_SEED = 0xFFFFFFFF  # llama.cpp draws its own seed when it is given this one
# The contract has no defaults for these three; small models ramble and loop without them.
DEFAULT_TOP_K = 40
DEFAULT_MIN_P = 0.05
DEFAULT_REPETITION_PENALTY = 1.1
# Has the engine say which stop text it met, and no more than that: without a list it would repeat the prompt.
TELLS_WHICH: Mapping[str, object] = {"verbose": True, "response_fields": ["stopping_word"]}


class Sampled(Protocol):
    """What any request says of how its tokens are drawn; None: not sent."""

    @property
    def temperature(self) -> float | None: ...
    @property
    def top_p(self) -> float | None: ...
    @property
    def top_k(self) -> int | None: ...
    @property
    def min_p(self) -> float | None: ...
    @property
    def repetition_penalty(self) -> float | None: ...
    @property
    def presence_penalty(self) -> float | None: ...
    @property
    def frequency_penalty(self) -> float | None: ...
    @property
    def token_limit(self) -> int | None: ...
    @property
    def stop(self) -> tuple[str, ...]: ...
    @property
    def logit_bias(self) -> Mapping[int, float] | None: ...
    @property
    def seed(self) -> int | None: ...


def sampling(request: Sampled) -> dict[str, object]:
    """The sampling members, absent ones left to the contract's defaults and not to the engine's."""
    members: dict[str, object] = {
        "temperature": either(request.temperature, 1.0),
        "top_p": either(request.top_p, 1.0),
        "top_k": max(0, either(request.top_k, DEFAULT_TOP_K)),
        "min_p": either(request.min_p, DEFAULT_MIN_P),
        "repeat_penalty": either(request.repetition_penalty, DEFAULT_REPETITION_PENALTY),
        "presence_penalty": either(request.presence_penalty, 0.0),
        "frequency_penalty": either(request.frequency_penalty, 0.0),
    }
    if request.token_limit is not None:
        members["max_tokens"] = request.token_limit
    if request.stop:
        members["stop"] = list(request.stop)
        members |= TELLS_WHICH
    if request.logit_bias:
        members["logit_bias"] = {str(token): bias for token, bias in request.logit_bias.items()}
    return members


Number = TypeVar("Number", int, float)


def either(value: Number | None, default: Number) -> Number:
    """The value, or the contract's default where it was not sent. Zero is a value."""
    return default if value is None else value


def seed(request: Sampled, index: int) -> dict[str, object]:
    """A seed for each choice, so that `n` repeatable answers differ from each other. The engine's is 32 bits wide."""
    return {} if request.seed is None else {"seed": (request.seed + index) % ENGINE_RANDOM_SEED}
