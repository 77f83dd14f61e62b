"""From a checked text completion to what the engine is given, and its log probabilities in that surface's shape.

The prompt is the caller's alone and reaches the engine as it is, special tokens and all: there are no turns to forge.
"""

from collections.abc import Sequence

from confide.engine.answer import Content
from confide.engine.facts import SUPPORTED
from confide.engine.sampling import sampling, seed
from confide.engine.shaping import CHARACTERS_A_TOKEN
from confide.errors import InvalidRequest
from confide.protocol.completions import CompletionRequest

COMPLETION_SUPPORTED = frozenset({"echo"}) | SUPPORTED - {
    "max_completion_tokens",
    "parallel_tool_calls",
    "response_format",
    "tool_choice",
    "tools",
    "top_logprobs",
}


def completion_bodies(request: CompletionRequest) -> list[dict[str, object]]:
    """One engine request for each choice, those of the first prompt first (wire contract 3.3)."""
    common: dict[str, object] = {
        "stream": True,
        "return_progress": True,
        "stream_options": {"include_usage": True},
        "cache_prompt": False,
        **sampling(request),
    }
    if request.logprobs is not None:
        common["logprobs"] = max(1, request.logprobs)  # 0: of the drawn token alone, which the engine gives with others
    return [
        {**common, "prompt": prompt, **seed(request, index)} for prompt in request.prompts for index in range(request.n)
    ]


def refuse_longer_prompts(request: CompletionRequest, context_length: int) -> None:
    """Raise InvalidRequest for a prompt that no tokenizer fits in `context_length` tokens; see `refuse_longer`."""
    for prompt in request.prompts:
        most, unit = context_length, "tokens"
        if isinstance(prompt, str):
            most, unit = context_length * CHARACTERS_A_TOKEN, "characters"
        if len(prompt) > most:
            raise InvalidRequest(
                f"a prompt has {len(prompt)} {unit}; this model takes {context_length} tokens", param="prompt"
            )


class TextLogprobs:
    """The log probabilities of one choice in the older shape: parallel arrays, with where each token's text begins.

    `most`: how many of the likeliest tokens were asked for.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._offset = 0

    def shaped(self, contents: Sequence[Content]) -> dict[str, object]:
        """Of these pieces, which follow those before."""
        entries = [entry for content in contents for entry in content.logprobs or ()]
        offsets: list[int] = []
        for entry in entries:
            offsets.append(self._offset)
            self._offset += len(str(entry["token"]))
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [self._likeliest(entry) for entry in entries],
            "text_offset": offsets,
        }

    def _likeliest(self, entry: dict[str, object]) -> dict[str, object]:
        """The likeliest, and the drawn one where it is not among them."""
        others = entry["top_logprobs"]
        assert isinstance(others, list)
        likeliest = {other["token"]: other["logprob"] for other in others[: self._most]}
        return {**likeliest, str(entry["token"]): entry["logprob"]}
