"""From a checked chat request to what the engine is given. Pure functions.

The engine takes an allow-list: only members built here reach it. A member that the wire contract names and this engine
cannot honour is refused with its name (2.2), never dropped in silence. Tools, structured output and tool choice are
ours: the template shows the tools, a grammar constrains the answer, answer.py maps it back. The engine's own handling
of them was measured not to enforce a named or required call.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from confide.engine.answer import Mode
from confide.engine.grammar import (
    ANY_OBJECT,
    NO_PARAMETERS,
    Function,
    auto_grammar,
    call_grammar,
    check_compiles,
    json_grammar,
)
from confide.errors import InvalidRequest
from confide.protocol.chat import ChatRequest
from confide.protocol.chat_body import JsonObject, JsonSchema, NamedTool
from confide.protocol.chat_messages import Tool

UNSEEN = "\u200b"  # zero width space: keeps a special token's text readable, and no longer a token
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
ENGINE_RANDOM_SEED = 0xFFFFFFFF  # llama.cpp draws its own seed when it is given this one
# The contract has no defaults for these three; small models ramble and loop without them.
DEFAULT_TOP_K = 40
DEFAULT_MIN_P = 0.05
DEFAULT_REPETITION_PENALTY = 1.1


class EngineFacts(msgspec.Struct, frozen=True):
    """What shaping must know of a loaded model. `special` matches any text that its tokenizer takes for a token."""

    special: re.Pattern[str]
    takes_images: bool = False


class Plan(msgspec.Struct, frozen=True):
    """What to ask of the engine: one body a choice, how to read the answers, and the grammar they must keep."""

    bodies: tuple[dict[str, object], ...]
    mode: Mode
    grammar: str | None
    named: str | None
    must_complete: bool  # a client's own stop string may end the text inside the grammar
    keep_reasoning: bool


def plan(request: ChatRequest, facts: EngineFacts) -> Plan:
    """Shape a request. Raises InvalidRequest naming the member that this engine cannot honour."""
    refuse_unsupported(request)
    mode, grammar, named = constraint(request)
    body: dict[str, object] = {
        "messages": messages(request, facts),
        "stream": True,  # also for a buffered answer: only a stream can be cancelled
        "return_progress": True,  # something is written in each batch of a prefill, so a closed socket is noticed
        "stream_options": {"include_usage": True},
        "cache_prompt": False,
        **sampling(request),
    }
    if grammar is not None:
        body["grammar"] = grammar
    if request.tools and request.tool_choice != "none":
        body["chat_template_kwargs"] = {"tools": [described(tool, facts.special) for tool in request.tools]}
    return Plan(
        bodies=tuple({**body, **seed(request, index)} for index in range(request.n)),
        mode=mode,
        grammar=grammar,
        named=named,
        must_complete=not request.stop,
        keep_reasoning=not request.reasoning.exclude,
    )


def refuse_unsupported(request: ChatRequest) -> None:
    """Raise InvalidRequest for what the contract names and this engine does not do."""
    if request.chat_template_kwargs:
        raise InvalidRequest("this model takes no template arguments; leave it out", param="chat_template_kwargs")
    if request.reasoning.enabled:
        raise InvalidRequest("this model does not reason; leave it out, or ask for effort none", param="reasoning")


def constraint(request: ChatRequest) -> tuple[Mode, str | None, str | None]:
    """How the answer is constrained and read: mode, grammar, and the named function."""
    functions = [Function(tool.function.name, tool.function.parameters) for tool in request.tools]
    choice, shape = request.tool_choice, request.response_format
    constrained = isinstance(shape, JsonObject | JsonSchema)
    if constrained and functions and choice not in ("none", "auto"):
        raise InvalidRequest("a forced tool call and a response format exclude each other", param="response_format")
    if isinstance(choice, NamedTool):
        function = next(function for function in functions if function.name == choice.name)
        return Mode.ARGUMENTS, compiled(json_grammar(function.parameters or NO_PARAMETERS), "tools"), function.name
    if choice == "required":
        return Mode.CALL, compiled(call_grammar(functions), "tools"), None
    if isinstance(shape, JsonSchema):
        return Mode.TEXT, compiled(json_grammar(shape.schema or {}), "response_format"), None
    if isinstance(shape, JsonObject):
        return Mode.TEXT, json_grammar(ANY_OBJECT), None
    if functions and choice == "auto":
        return Mode.AUTO, compiled(auto_grammar(functions, parallel=request.parallel_tool_calls), "tools"), None
    return Mode.TEXT, None, None


def compiled(grammar: str, param: str) -> str:
    """The grammar, once it is known to compile. Raises InvalidRequest naming `param`."""
    check_compiles(grammar, param=param)
    return grammar


def sampling(request: ChatRequest) -> dict[str, object]:
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
    if request.logprobs:
        members["logprobs"] = True
        members["top_logprobs"] = request.top_logprobs or 0
    return members


Number = TypeVar("Number", int, float)


def either(value: Number | None, default: Number) -> Number:
    """The value, or the contract's default where it was not sent. Zero is a value."""
    return default if value is None else value


def seed(request: ChatRequest, index: int) -> dict[str, object]:
    """A seed for each choice, so that `n` repeatable answers differ from each other. The engine's is 32 bits wide."""
    return {} if request.seed is None else {"seed": (request.seed + index) % ENGINE_RANDOM_SEED}


def messages(request: ChatRequest, facts: EngineFacts) -> list[object]:
    """The messages as the template reads them, every text of the client's made harmless."""
    shaped: list[object] = []
    for index, message in enumerate(request.messages):
        members: dict[str, object] = msgspec.to_builtins(message)
        content = shaped_content(members.get("content"), facts, f"messages[{index}].content")
        kept: dict[str, object] = {"role": members["role"], "content": content}
        if members.get("tool_calls"):
            kept["tool_calls"] = neutralised(members["tool_calls"], facts.special)
        if members.get("tool_call_id"):
            kept["tool_call_id"] = neutralised(members["tool_call_id"], facts.special)
        shaped.append(kept)
    return shaped


def shaped_content(content: object, facts: EngineFacts, param: str) -> object:
    """Text as one string; with images, the list of parts that the engine takes. Raises InvalidRequest at a part."""
    if content is None or isinstance(content, str):
        return neutralise(content or "", facts.special)
    assert isinstance(content, Sequence)
    parts = [shaped_part(part, facts, f"{param}[{index}]") for index, part in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        return "\n".join(str(part["text"]) for part in parts)
    return parts


def shaped_part(part: object, facts: EngineFacts, param: str) -> dict[str, object]:
    """One content part. Remote images were fetched before; what is still remote is refused."""
    assert isinstance(part, dict)
    if part["type"] == "text":
        return {"type": "text", "text": neutralise(part["text"], facts.special)}
    if part["type"] != "image_url":
        raise InvalidRequest("this model takes text" + (" and images" if facts.takes_images else ""), param=param)
    if not facts.takes_images:
        raise InvalidRequest("this model takes text only, got an image", param=param)
    url = part["image_url"]["url"]
    if not url.startswith("data:"):
        raise InvalidRequest("remote images are switched off here; send the image as a data: URL", param=param)
    return {"type": "image_url", "image_url": {"url": url}}


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
    """A pattern for the tokenizer's special tokens and the template's own markers, the longest first."""
    markers = {"<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>"}
    texts = sorted({*markers, *(token for token in special_tokens if len(token.strip()) > 2)}, key=len, reverse=True)
    return re.compile("|".join(re.escape(text) for text in texts))


def neutralise(text: str, special: re.Pattern[str]) -> str:
    """The text with every special token broken by a zero-width space, so that it cannot open or close a turn."""
    while special.search(text):
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
