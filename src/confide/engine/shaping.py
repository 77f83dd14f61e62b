"""From a checked chat request to what the engine is given. Pure functions.

The engine takes an allow-list: only members built here reach it. A member that the wire contract names and this engine
cannot honour is refused with its name (2.2), never dropped in silence. Tools, structured output and tool choice are
ours: the template shows the tools, a grammar constrains the answer, answer.py maps it back. The engine's own handling
of them was measured not to enforce a named or required call.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

import msgspec

from confide.engine.answer import Mode
from confide.engine.grammar import (
    ANY_OBJECT,
    NO_PARAMETERS,
    Function,
    arguments_schema,
    auto_grammar,
    call_grammar,
    check_bounds,
    check_size,
    json_grammar,
)
from confide.errors import InvalidRequest
from confide.protocol.chat import ChatRequest
from confide.protocol.chat_body import JsonObject, JsonSchema, NamedTool
from confide.protocol.chat_messages import Tool

UNSEEN = "\u200b"  # zero width space: keeps a special token's text readable, and no longer a token
MARKERS = frozenset(
    ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>", "<__media__>"]
)
CHARACTERS_A_TOKEN = 64  # on average over a prompt, at most; about 4 in prose
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
ENGINE_RANDOM_SEED = 0xFFFFFFFF  # llama.cpp draws its own seed when it is given this one
# The contract has no defaults for these three; small models ramble and loop without them.
DEFAULT_TOP_K = 40
DEFAULT_MIN_P = 0.05
DEFAULT_REPETITION_PENALTY = 1.1


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


class Constraint(msgspec.Struct, frozen=True):
    """What the answer is held to and how it is read. `param`: the member of the request that asked for `grammar`."""

    mode: Mode
    grammar: str | None = None
    param: str = ""
    named: str | None = None


FREE = Constraint(Mode.TEXT)


class Plan(msgspec.Struct, frozen=True):
    """What to ask of the engine: one body a choice, and how the answers are held to their form and read."""

    bodies: tuple[dict[str, object], ...]
    constraint: Constraint
    must_complete: bool  # a client's own stop string may end the text inside the grammar
    keep_reasoning: bool


def plan(request: ChatRequest, facts: EngineFacts) -> Plan:
    """Shape a request; its grammar is not compiled here, which takes time.

    Raises InvalidRequest naming the member that this engine cannot honour.
    """
    refuse_unsupported(request, facts)
    held = constraint(request)
    thinking = thinking_arguments(request, facts, is_held=held.grammar is not None)
    body: dict[str, object] = {
        "messages": messages(request, facts),
        "stream": True,  # also for a buffered answer: only a stream can be cancelled
        "return_progress": True,  # something is written in each batch of a prefill, so a closed socket is noticed
        "stream_options": {"include_usage": True},
        "cache_prompt": False,
        **sampling(request),
    }
    if request.logprobs:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    if held.grammar is not None:
        body["grammar"] = held.grammar
    if request.tools and request.tool_choice != "none":
        thinking["tools"] = [described(tool, facts.special) for tool in request.tools]
    if thinking:
        body["chat_template_kwargs"] = thinking
    if request.reasoning.max_tokens is not None:
        body["thinking_budget_tokens"] = request.reasoning.max_tokens
    return Plan(
        bodies=tuple({**body, **seed(request, index)} for index in range(request.n)),
        constraint=held,
        must_complete=not request.stop,
        keep_reasoning=not request.reasoning.exclude,
    )


def refuse_longer(request: ChatRequest, context_length: int) -> None:
    """Raise InvalidRequest for text that no tokenizer fits in `context_length` tokens.

    The engine counts tokens first, and 30 MB keep it busy for a minute, whether or not the client is still there.
    """
    length = characters(msgspec.to_builtins(request.messages)) + characters(msgspec.to_builtins(request.tools))
    if length > context_length * CHARACTERS_A_TOKEN:
        raise InvalidRequest(
            f"the prompt has {length} characters; this model takes {context_length} tokens", param="messages"
        )


def characters(value: object) -> int:
    """Of all text inside a JSON value, names of members included and images left out."""
    count, waiting = 0, [value]
    while waiting:
        match waiting.pop():
            case str() as text:
                count += len(text)
            case {"type": "image_url"}:
                pass
            case dict() as members:
                waiting += [*members, *members.values()]
            case list() | tuple() as items:
                waiting += items
    return count


def refuse_unsupported(request: ChatRequest, facts: EngineFacts) -> None:
    """Raise InvalidRequest for what the contract names and this engine does not do."""
    if request.chat_template_kwargs:
        raise InvalidRequest("this model takes no template arguments; leave it out", param="chat_template_kwargs")
    if request.reasoning.enabled and not facts.reasons:
        raise InvalidRequest("this model does not reason; leave it out, or ask for effort none", param="reasoning")


def thinking_arguments(request: ChatRequest, facts: EngineFacts, *, is_held: bool) -> dict[str, object]:
    """What the template is told of thinking. `is_held`: the answer is held to a form from its first token on, so there
    is no thinking before it. Raises InvalidRequest where it was asked for all the same.
    """
    asked = request.reasoning
    if not facts.reasons:
        return {}
    if is_held and asked.enabled:
        raise InvalidRequest(
            "this model does not reason before an answer of a given form; ask for effort none, or leave out tools and "
            "response_format",
            param="reasoning",
        )
    if is_held:
        return {THINKS: False}
    arguments: dict[str, object] = {} if asked.enabled is None else {THINKS: asked.enabled}
    return arguments if asked.effort in (None, "none") else {**arguments, "reasoning_effort": asked.effort}


def constraint(request: ChatRequest) -> Constraint:
    """How the answer is constrained and read."""
    choice, shape = request.tool_choice, request.response_format
    is_json = isinstance(shape, JsonObject | JsonSchema)
    if is_json and choice not in ("none", "auto"):
        raise InvalidRequest("a forced tool call and a response format exclude each other", param="response_format")
    if isinstance(shape, JsonSchema):
        check_bounds(shape.schema or {}, param="response_format")
        return held_to(json_grammar(shape.schema or {}), Mode.TEXT, "response_format")
    if isinstance(shape, JsonObject):
        return held_to(json_grammar(ANY_OBJECT), Mode.TEXT, "response_format")
    if choice == "none":
        return FREE
    return calls(request, choice)


def calls(request: ChatRequest, choice: str | NamedTool) -> Constraint:
    """The named function's arguments, one call of any function, or text that may hold calls."""
    functions = [Function(tool.function.name, tool.function.parameters) for tool in request.tools]
    for function in functions:
        check_bounds(arguments_schema(function), param="tools")
    if isinstance(choice, NamedTool):
        function = next(function for function in functions if function.name == choice.name)
        return held_to(json_grammar(arguments_schema(function)), Mode.ARGUMENTS, "tools", function.name)
    if choice == "required":
        return held_to(call_grammar(functions), Mode.CALL, "tools")
    return held_to(auto_grammar(functions, parallel=request.parallel_tool_calls), Mode.AUTO, "tools")


def held_to(grammar: str, mode: Mode, param: str, named: str | None = None) -> Constraint:
    """A constraint whose grammar is not too large. Raises InvalidRequest naming `param`."""
    check_size(grammar, param=param)
    return Constraint(mode, grammar, param, named)


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


def messages(request: ChatRequest, facts: EngineFacts) -> list[object]:
    """The messages as the template reads them, every text of the client's made harmless."""
    shaped: list[object] = []
    for index, message in enumerate(request.messages):
        members = msgspec.to_builtins(message)
        content = shaped_content(members.get("content"), facts, f"messages[{index}].content")
        kept: dict[str, object] = {"role": members["role"], "content": content}
        if members.get("tool_calls"):
            kept["tool_calls"] = [shaped_call(call, facts.special) for call in members["tool_calls"]]
        if members.get("tool_call_id"):
            kept["tool_call_id"] = neutralised(members["tool_call_id"], facts.special)
        shaped.append(kept)
    return shaped


def shaped_call(call: dict[str, dict[str, str]], special: re.Pattern[str]) -> object:
    """An earlier call. Its arguments go as JSON, because the engine decodes them before the template sees them.

    So a special token spelled with escapes would come alive there: what is decoded is made harmless here. Arguments
    that do not decode were cut; the engine refuses those, and takes them as a JSON string.
    """
    arguments = call["function"]["arguments"]
    try:
        decoded = neutralised(msgspec.json.decode(arguments), special)
    except (msgspec.DecodeError, RecursionError):
        decoded = neutralise(arguments, special)
    function = {
        "name": neutralise(call["function"]["name"], special),
        "arguments": msgspec.json.encode(decoded).decode(),
    }
    return {"id": neutralise(str(call["id"]), special), "type": "function", "function": function}


def shaped_content(content: object, facts: EngineFacts, param: str) -> object:
    """Text as one string; with images, the list of parts that the engine takes. Raises InvalidRequest at a part."""
    if content is None or isinstance(content, str):
        return neutralise(content or "", facts.special)
    assert isinstance(content, Sequence)
    parts: list[dict[str, object]] = []
    for index, part in enumerate(content):
        shaped = shaped_part(part, facts, f"{param}[{index}]")
        if parts and parts[-1]["type"] == shaped["type"] == "text":
            parts[-1] = {"type": "text", "text": f"{parts[-1]['text']}\n{shaped['text']}"}
        else:
            parts.append(shaped)
    if [part["type"] for part in parts] == ["text"]:
        return neutralise(str(parts[0]["text"]), facts.special)
    return [
        {**part, "text": neutralise(str(part["text"]), facts.special)} if part["type"] == "text" else part
        for part in parts
    ]


def shaped_part(part: object, facts: EngineFacts, param: str) -> dict[str, object]:
    """One content part. Remote images were fetched before; what is still remote is refused."""
    assert isinstance(part, dict)
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] != "image_url":
        raise InvalidRequest("this model takes text" + (" and images" if facts.takes_images else ""), param=param)
    if not facts.takes_images:
        raise InvalidRequest("this model takes text only, got an image", param=param)
    url = part["image_url"]["url"]
    if url[:5].lower() != "data:":
        raise InvalidRequest("remote images are switched off here; send the image as a data: URL", param=param)
    return {"type": "image_url", "image_url": {"url": "data:" + url[5:]}}


def described(tool: Tool, special: re.Pattern[str]) -> dict[str, object]:
    """A tool as the template shows it."""
    function = {
        name: value
        for name, value in (
            ("name", tool.function.name),
            ("description", tool.function.description),
            ("parameters", tool.function.parameters or NO_PARAMETERS),
        )
        if value is not None
    }
    return {"type": "function", "function": neutralised(function, special)}


def special_pattern(special_tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern for the tokenizer's special tokens and the markers of template and engine, the longest first.

    Left out is what an inserted character cannot break: a single one, and a token that holds that character itself.
    """
    breakable = (token for token in special_tokens if len(token.strip()) > 1 and UNSEEN not in token)
    texts = sorted({*MARKERS, *breakable}, key=len, reverse=True)
    return re.compile("|".join(re.escape(text) for text in texts))


def neutralise(text: str, special: re.Pattern[str]) -> str:
    """The text with every special token broken by a zero-width space, so that it cannot open or close a turn."""
    while special.search(text):  # again, as tokens may overlap
        text = special.sub(lambda found: found[0][0] + UNSEEN + found[0][1:], text)
    return text


def neutralised(value: object, special: re.Pattern[str]) -> object:
    """The same for every string inside a JSON value, names of members included."""
    if isinstance(value, str):
        return neutralise(value, special)
    if isinstance(value, dict):
        return {neutralise(name, special): neutralised(member, special) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [neutralised(member, special) for member in value]
    return value
