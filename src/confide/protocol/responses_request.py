"""A Responses request, and the chat request that it becomes (wire contract 3.4, 2).

Proved on success: every member has its type, is in range and fits the others; nothing was sent that would be dropped.
Not checked here: whether the model exists and can do it, `provider` (wire contract 7.4), schemas (the engine's), and
the payload of images.

What was asked for and has no effect: `store` (nothing is stored), `reasoning.summary` (reasoning is given as it is),
`include: ["reasoning.encrypted_content"]` (reasoning is in its item in clear, and comes back with it).
"""

from collections.abc import Mapping

import msgspec

from confide.errors import InvalidRequest
from confide.protocol.chat_body import FREE_FORM_BYTES
from confide.protocol.chat_errors import RuleBroken, refusal
from confide.protocol.chat_messages import PromptStruct
from confide.protocol.responses_body import (
    EXPECTED,
    FreeForm,
    FunctionTool,
    JsonObject,
    JsonSchema,
    NamedFunction,
    ResponsesBody,
    is_given,
)
from confide.protocol.responses_items import EXPECTED as EXPECTED_IN_ITEMS
from confide.protocol.responses_items import Item, decode_item, decode_type
from confide.protocol.responses_messages import Message, chat_messages
from confide.protocol.serving import compact

DECODER = msgspec.json.Decoder(ResponsesBody)
FREE_FORM_DECODER = msgspec.json.Decoder(FreeForm)
decode_tool = msgspec.json.Decoder(FunctionTool).decode
decode_object = msgspec.json.Decoder(dict[str, object] | None).decode

# Members of chat that an engine's error may name, as they are called here.
RENAMED: Mapping[str, str] = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
}


class ResponsesRequest(PromptStruct, frozen=True):
    """A Responses request whose rules hold. `sent`: its members as they came, those aside that follow.

    `messages`: what `instructions` and `input` are in chat.
    """

    sent: ResponsesBody
    tools: tuple[FunctionTool, ...]
    messages: tuple[Message, ...]
    provider: Mapping[str, object] | None

    @property
    def model(self) -> str:
        return self.sent.model

    @property
    def stream(self) -> bool:
        return bool(self.sent.stream)

    def chat_body(self) -> bytes:
        """The chat request for it: compact JSON, the same bytes for the same request."""
        sent = self.sent
        members: dict[str, object] = {
            "model": sent.model,
            "messages": self.messages,
            "temperature": sent.temperature,
            "top_p": sent.top_p,
            "max_tokens": sent.max_output_tokens,
            "response_format": _response_format(sent),
            "verbosity": sent.text and sent.text.verbosity,
            "reasoning_effort": sent.reasoning and sent.reasoning.effort,
            "user": sent.user,
            "safety_identifier": sent.safety_identifier,
            "prompt_cache_key": sent.prompt_cache_key,
            "service_tier": sent.service_tier,
            **(self._tool_members() if self.tools else {}),
            **({"stream": True, "stream_options": {"include_usage": True}} if self.stream else {}),
            "provider": msgspec.Raw(compact(bytes(sent.provider))) if is_given(sent.provider) else None,
        }
        return msgspec.json.encode({name: value for name, value in members.items() if value is not None})

    def _tool_members(self) -> dict[str, object]:
        choice = self.sent.tool_choice
        if isinstance(choice, NamedFunction):
            return self._tools_of_chat | {"tool_choice": {"type": "function", "function": {"name": choice.name}}}
        return self._tools_of_chat | {"tool_choice": choice}

    @property
    def _tools_of_chat(self) -> dict[str, object]:
        return {
            "tools": [{"type": "function", "function": _function(tool)} for tool in self.tools],
            "parallel_tool_calls": self.sent.parallel_tool_calls,
        }


def parse_responses(body: bytes) -> ResponsesRequest:
    """The request in `body`, one UTF-8 JSON object. Raises InvalidRequest, `param` a dotted path (wire contract 3.4).

    Of duplicate member names the last wins.
    """
    reading = Reading()
    try:
        return reading.request(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RuleBroken) as error:
        refused: InvalidRequest = refusal(error, {**EXPECTED, **EXPECTED_IN_ITEMS}, at=reading.at)
    raise refused  # outside the handler: the context of an exception is logged with it, and this one quotes the body


class Reading:
    """Reads a body member by member."""

    def __init__(self) -> None:
        self._member = ""  # the one that is read apart from the rest, and where in it
        self._index: int | None = None

    @property
    def at(self) -> str:
        """Where it stands, for what is said when a rule is broken there."""
        return self._member if self._index is None else f"{self._member}[{self._index}]"

    def request(self, body: bytes) -> ResponsesRequest:
        if len(body) > FREE_FORM_BYTES:
            _check_free_form(body)
        sent = DECODER.decode(body)
        if sent.stream_options is not None and not sent.stream:
            raise RuleBroken("stream_options", "is only allowed with stream: true")
        tools = self._tools(sent.tools or ())
        _check_tool_choice(sent, tools)
        given = sent.input if isinstance(sent.input, str) else self._items(sent.input)
        messages = chat_messages(sent.instructions, given)
        return ResponsesRequest(sent=sent, tools=tools, messages=messages, provider=self._provider(sent.provider))

    def _tools(self, raws: tuple[msgspec.Raw, ...]) -> tuple[FunctionTool, ...]:
        tools: dict[str, FunctionTool] = {}
        self._member = "tools"
        for self._index, raw in enumerate(raws):
            if decode_type(raw).type not in (None, "function"):
                raise RuleBroken("type", "must be function: other tools are not run here")
            tool = decode_tool(raw)
            if tool.name in tools:
                raise RuleBroken("name", "must be unique among the tools")
            tools[tool.name] = tool
        self._member, self._index = "", None
        return tuple(tools.values())

    def _items(self, raws: tuple[msgspec.Raw, ...]) -> list[Item]:
        items: list[Item] = []
        self._member = "input"
        for self._index, raw in enumerate(raws):
            items.append(decode_item(raw))
        self._member, self._index = "", None
        return items

    def _provider(self, raw: msgspec.Raw) -> Mapping[str, object] | None:
        self._member = "provider"
        provider: Mapping[str, object] | None = decode_object(raw)
        return provider


def _check_free_form(body: bytes) -> None:
    free_form = FREE_FORM_DECODER.decode(body)
    sizes = {name: len(memoryview(getattr(free_form, name))) for name in free_form.__struct_fields__}
    if sum(sizes.values()) > FREE_FORM_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise RuleBroken(largest, f"is too large: everything but the input may have {FREE_FORM_BYTES} bytes")


def _check_tool_choice(sent: ResponsesBody, tools: tuple[FunctionTool, ...]) -> None:
    if sent.tool_choice in (None, "auto", "none"):
        return
    if not tools:
        raise RuleBroken("tool_choice", "must be auto or none when there are no tools")
    if isinstance(sent.tool_choice, NamedFunction) and all(tool.name != sent.tool_choice.name for tool in tools):
        raise RuleBroken("tool_choice.name", "must be the name of one of the tools")


def _function(tool: FunctionTool) -> Message:
    members: Message = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }
    return {name: value for name, value in members.items() if value is not None}


def _response_format(sent: ResponsesBody) -> Message | None:
    match sent.text and sent.text.format:
        case JsonSchema() as given:
            schema = {
                "name": given.name,
                "description": given.description,
                "schema": given.schema,
                "strict": given.strict,
            }
            return {"type": "json_schema", "json_schema": {k: v for k, v in schema.items() if v is not None}}
        case JsonObject():
            return {"type": "json_object"}
        case _:
            return None
