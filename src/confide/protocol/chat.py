"""What we must know of a chat request, from one decode of its body (wire contract 2).

Proved on success: every member of tables 2.1 and 2.2 has its type, is in range and fits the others. Not checked here:
whether the model exists and can do it, `provider` (wire contract 7.4), schemas (the engine's), and the payload
of images, audio and files. The structs of messages, parts and tools are in `chat_messages`.
"""

from typing import Literal, TypeAlias

import msgspec

from confide.errors import InvalidRequest
from confide.protocol.chat_body import (
    EXPECTED,
    FREE_FORM_BYTES,
    AsSent,
    ChatBody,
    FreeForm,
    JsonObject,
    JsonSchema,
    JsonSchemaMember,
    NamedTool,
    NamedToolMember,
    Text,
)
from confide.protocol.chat_errors import RuleBroken, refusal
from confide.protocol.chat_messages import AssistantMessage, Tool
from confide.protocol.chat_reasoning import NOT_SAID, Reasoning, combine

ToolChoice: TypeAlias = Literal["auto", "none", "required"] | NamedTool
ResponseFormat: TypeAlias = Text | JsonObject | JsonSchema

FREE_TEXT = Text()
DECODER = msgspec.json.Decoder(ChatBody)
FREE_FORM_DECODER = msgspec.json.Decoder(FreeForm)

UNSUPPORTED = {
    "functions": "is deprecated and not supported: use tools",
    "function_call": "is deprecated and not supported: use tools and tool_choice",
    "audio": "is not supported: answers are text",
    "prediction": "is not supported: leave it out",
    "web_search_options": "is not supported: leave it out",
}
LIMITED = {"modalities": 'must be ["text"]'}  # members that may be sent as long as they ask for nothing


class ChatRequest(AsSent, frozen=True):
    """A chat request whose rules hold. Numbers that were not sent are None, so that the model's defaults can stand."""

    n: int = 1
    stream: bool = False
    include_usage: bool = False  # stream_options.include_usage
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "none"  # always "none" without tools
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = FREE_TEXT
    reasoning: Reasoning = NOT_SAID
    store: bool = False

    @property
    def token_limit(self) -> int | None:
        """Most tokens to generate: the smaller of the two limits, None when neither was sent."""
        limits = (self.max_tokens, self.max_completion_tokens)
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def had_empty_tool_calls(self) -> bool:
        """Whether a message came with `"tool_calls": []`. Leaving it out is a rewrite that the receipt shows."""
        return any(isinstance(message, AssistantMessage) and message.tool_calls == () for message in self.messages)


def parse_chat(body: bytes) -> ChatRequest:
    """The request in `body`, one UTF-8 JSON object. Raises InvalidRequest, `param` a dotted path (wire contract 2).

    Of duplicate member names the last wins.
    """
    try:
        if len(body) > FREE_FORM_BYTES:
            _check_free_form(body)
        return _normalised(DECODER.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RuleBroken) as error:
        refused: InvalidRequest = refusal(error, EXPECTED)
    raise refused  # outside the handler: the context of an exception is logged with it, and this one quotes the body


def new_chat_id(random: bytes) -> str:
    """`chatcmpl-` and 32 lower-case hex digits of 16 random bytes (wire contract 2.6)."""
    return f"chatcmpl-{_hex(random)}"


def new_tool_call_id(random: bytes) -> str:
    """`chatcmpl-tool-` and 32 lower-case hex digits of 16 random bytes (wire contract 2.4)."""
    return f"chatcmpl-tool-{_hex(random)}"


def _hex(random: bytes) -> str:
    if len(random) != 16:
        raise ValueError(f"got {len(random)} random bytes, expected 16")
    return random.hex()


def _normalised(body: ChatBody) -> ChatRequest:
    _refuse_unsupported(body)
    tools = _tools(body)
    return ChatRequest(
        model=body.model,
        messages=body.messages,
        temperature=body.temperature,
        top_p=body.top_p,
        n=1 if body.n is None else body.n,
        max_tokens=body.max_tokens,
        max_completion_tokens=body.max_completion_tokens,
        stream=bool(body.stream),
        include_usage=_include_usage(body),
        stop=(body.stop,) if isinstance(body.stop, str) else body.stop or (),
        seed=body.seed,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=body.logit_bias,
        logprobs=_logprobs(body),
        top_logprobs=body.top_logprobs,
        tools=tools,
        tool_choice=_tool_choice(body, tools),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        response_format=_response_format(body),
        reasoning=combine(body.reasoning, body.reasoning_effort, body.include_reasoning),
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        chat_template_kwargs=body.chat_template_kwargs,
        user=body.user,
        safety_identifier=body.safety_identifier,
        prompt_cache_key=body.prompt_cache_key,
        metadata=body.metadata,
        service_tier=body.service_tier,
        verbosity=body.verbosity,
        store=bool(body.store),
        priority=body.priority,
        provider=body.provider,
    )


def _check_free_form(body: bytes) -> None:
    free_form = FREE_FORM_DECODER.decode(body)
    sizes = {name: len(memoryview(getattr(free_form, name))) for name in free_form.__struct_fields__}
    if sum(sizes.values()) > FREE_FORM_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise RuleBroken(largest, f"is too large: everything but the messages may have {FREE_FORM_BYTES} bytes")


def _refuse_unsupported(body: ChatBody) -> None:
    for member, problem in UNSUPPORTED.items():
        if getattr(body, member) is not None:
            raise RuleBroken(member, problem)
    if body.modalities is not None and body.modalities != ["text"]:
        raise RuleBroken("modalities", LIMITED["modalities"])


def _include_usage(body: ChatBody) -> bool:
    if body.stream_options is None:
        return False
    if not body.stream:
        raise RuleBroken("stream_options", "is only allowed with stream: true")
    return bool(body.stream_options.include_usage)


def _logprobs(body: ChatBody) -> bool:
    if body.top_logprobs is not None and not body.logprobs:
        raise RuleBroken("top_logprobs", "is only allowed with logprobs: true")
    return bool(body.logprobs)


def _tools(body: ChatBody) -> tuple[Tool, ...]:
    tools = body.tools or ()
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        if tool.function.name in seen:
            raise RuleBroken(f"tools[{index}].function.name", "must be unique among the tools")
        seen.add(tool.function.name)
    return tools


def _tool_choice(body: ChatBody, tools: tuple[Tool, ...]) -> ToolChoice:
    choice = body.tool_choice or "auto"
    if choice in ("auto", "none"):
        return choice if tools else "none"
    if not tools:
        raise RuleBroken("tool_choice", "must be auto or none when there are no tools")
    if not isinstance(choice, NamedToolMember):
        return choice
    if all(tool.function.name != choice.function.name for tool in tools):
        raise RuleBroken("tool_choice.function.name", "must be the name of one of the tools")
    return choice.function


def _response_format(body: ChatBody) -> ResponseFormat:
    if isinstance(body.response_format, JsonSchemaMember):
        return body.response_format.json_schema
    return body.response_format or FREE_TEXT
