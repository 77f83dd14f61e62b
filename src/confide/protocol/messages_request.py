"""An Anthropic Messages request: what we must know of it, and the chat request it becomes (wire contract 3.5).

Proved on success: every member has its type, is in range and fits the others, and the chat request keeps the rules of
chat (wire contract 2). Not checked here: whether the model exists and can do it, `provider` (wire contract 7.4),
schemas (the engine's), and the payload of images.
"""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from confide.errors import InvalidRequest
from confide.protocol.chat_body import FREE_FORM_BYTES
from confide.protocol.chat_errors import RuleBroken, refusal
from confide.protocol.messages_blocks import AssistantMessage, check_object, is_absent
from confide.protocol.messages_body import (
    EXPECTED,
    UNSUPPORTED,
    AnyChoice,
    MessagesBody,
    PromptBody,
    ThinkingDisabled,
    ThinkingEnabled,
    ToolChoice,
)
from confide.protocol.messages_chat import answer_members, prompt_members

MESSAGES_DECODER = msgspec.json.Decoder(MessagesBody)
COUNT_DECODER = msgspec.json.Decoder(PromptBody)
Body = TypeVar("Body", bound=PromptBody)

# Members of chat that an error may name, and what stands behind them in a Messages request. Messages are numbered
# otherwise there, so of those only the name is kept.
RENAMED = {
    "max_completion_tokens": "max_tokens",
    "messages": "messages",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "reasoning": "thinking",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
    "tools": "tools",
    "user": "metadata.user_id",
}


class MessagesRequest:
    """A Messages request whose rules hold."""

    __slots__ = ("_sent",)

    def __init__(self, sent: MessagesBody) -> None:
        self._sent = sent

    @property
    def model(self) -> str:
        """As sent; ids are compared byte for byte."""
        return self._sent.model

    @property
    def stream(self) -> bool:
        """Whether the answer is an event stream."""
        return bool(self._sent.stream)

    @property
    def provider(self) -> Mapping[str, object] | None:
        """The constraints and what else stands there (wire contract 7.4), None without."""
        return provider_of(self._sent)

    @property
    def stop_sequences(self) -> tuple[str, ...]:
        """The texts that end the answer."""
        return self._sent.stop_sequences or ()

    def chat_body(self) -> bytes:
        """The chat request that this one is: one JSON object, the same bytes for the same request.

        A stream is asked to end with its usage.
        """
        return msgspec.json.encode({**prompt_members(self._sent), **answer_members(self._sent)})


class CountTokensRequest:
    """A request to count the tokens of a prompt."""

    __slots__ = ("_sent",)
    stream = False

    def __init__(self, sent: PromptBody) -> None:
        self._sent = sent

    @property
    def model(self) -> str:
        """As sent; ids are compared byte for byte."""
        return self._sent.model

    @property
    def provider(self) -> Mapping[str, object] | None:
        """The constraints and what else stands there (wire contract 7.4), None without."""
        return provider_of(self._sent)

    def chat_body(self) -> bytes:
        """The chat request whose prompt is to be counted."""
        return msgspec.json.encode(prompt_members(self._sent))


def parse_messages(body: bytes) -> MessagesRequest:
    """The request in `body`, one UTF-8 JSON object. Raises InvalidRequest, `param` a dotted path (wire contract 3.5).

    Of duplicate member names the last wins.
    """
    return MessagesRequest(_parsed(body, MESSAGES_DECODER))


def parse_count_tokens(body: bytes) -> CountTokensRequest:
    """The request in `body`, which takes no member that only an answer needs. Raises InvalidRequest."""
    return CountTokensRequest(_parsed(body, COUNT_DECODER))


def new_message_id(random: bytes) -> str:
    """`msg_` and 32 lower-case hex digits of 16 random bytes."""
    if len(random) != 16:
        raise ValueError(f"got {len(random)} random bytes, expected 16")
    return f"msg_{random.hex()}"


def provider_of(sent: PromptBody) -> dict[str, object] | None:
    return None if is_absent(sent.provider) else msgspec.json.decode(sent.provider, type=dict[str, object])


def _parsed(body: bytes, decoder: "msgspec.json.Decoder[Body]") -> Body:
    try:
        sent = decoder.decode(body)
        _check(sent)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RuleBroken) as error:
        refused: InvalidRequest = refusal(error, EXPECTED)
    else:
        return sent
    raise refused  # outside the handler: the context of an exception is logged with it, and this one quotes the body


def _check(sent: PromptBody) -> None:
    for member, problem in UNSUPPORTED.items():
        if not is_absent(getattr(sent, member, msgspec.Raw())):
            raise RuleBroken(member, problem)
    if isinstance(sent.messages[-1], AssistantMessage):
        last = len(sent.messages) - 1
        raise RuleBroken(f"messages[{last}].role", "must be user in the last message: no answer is begun for the model")
    _check_free_form(sent)
    if not is_absent(sent.provider):
        check_object("provider", sent.provider)
        provider_of(sent)  # it may be nested too deeply
    _check_tools(sent)
    _check_thinking(sent)


def _check_free_form(sent: PromptBody) -> None:
    """Where any JSON may stand it is bounded: decoding megabytes of `[],[],…` would hold the service up for all."""
    sizes = {"tools": sum(len(memoryview(tool.input_schema)) for tool in sent.tools or ())}
    sizes["provider"] = len(memoryview(sent.provider))
    if sent.output_config is not None and sent.output_config.format is not None:
        sizes["output_config.format.schema"] = len(memoryview(sent.output_config.format.schema))
    if sum(sizes.values()) > FREE_FORM_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise RuleBroken(largest, f"is too large: everything but the messages may have {FREE_FORM_BYTES} bytes")


def _check_tools(sent: PromptBody) -> None:
    names: set[str] = set()
    for index, tool in enumerate(sent.tools or ()):
        if tool.name in names:
            raise RuleBroken(f"tools[{index}].name", "must be unique among the tools")
        names.add(tool.name)
    if isinstance(sent.tool_choice, AnyChoice | ToolChoice) and not names:
        raise RuleBroken("tool_choice", "must be auto or none when there are no tools")
    if isinstance(sent.tool_choice, ToolChoice) and sent.tool_choice.name not in names:
        raise RuleBroken("tool_choice.name", "must be the name of one of the tools")


def _check_thinking(sent: PromptBody) -> None:
    effort = None if sent.output_config is None else sent.output_config.effort
    if effort is None:
        return
    if isinstance(sent.thinking, ThinkingEnabled):
        raise RuleBroken("thinking.budget_tokens", "cannot be combined with output_config.effort: send one of them")
    if isinstance(sent.thinking, ThinkingDisabled):
        raise RuleBroken("output_config.effort", "contradicts thinking that is disabled: leave it out")
