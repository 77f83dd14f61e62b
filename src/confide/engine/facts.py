"""What is known of a loaded model, and which members of a request it honours."""

import re

import msgspec

# Members of the wire contract (2.1, 2.2) that this engine honours.
SUPPORTED = frozenset(
    {
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "min_p",
        "n",
        "parallel_tool_calls",
        "presence_penalty",
        "repetition_penalty",
        "response_format",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_k",
        "top_logprobs",
        "top_p",
    }
)
REASONING = frozenset({"include_reasoning", "reasoning", "reasoning_effort"})  # of models that reason
THINKS = "enable_thinking"  # the argument by which templates are told
# Those that it refuses where they ask for something, and what is said then.
NO_REASONING = "this model does not reason; leave it out, or ask for effort none"
NOT_HONOURED = {
    "chat_template_kwargs": "this model takes no template arguments; leave it out",
    "reasoning": NO_REASONING,
    "reasoning_effort": NO_REASONING,
}


class EngineFacts(msgspec.Struct, frozen=True):
    """What shaping must know of a loaded model. `special` matches any text that its tokenizer takes for a token.
    `reasons`: its template can be told whether to think.
    """

    special: re.Pattern[str]
    takes_images: bool = False
    reasons: bool = False

    @property
    def supported(self) -> frozenset[str]:
        """The members of the wire contract that this model honours."""
        return SUPPORTED | REASONING if self.reasons else SUPPORTED
