"""From a checked chat request to what the engine is given. Pure functions.

The engine takes an allow-list: only members built here reach it. A member that the wire contract names and this engine
cannot honour is refused with its name (2.2), never dropped in silence. Tools, structured output and tool choice are
ours: the template shows the tools, a grammar constrains the answer, answer.py maps it back. The engine's own handling
of them was measured not to enforce a named or required call.
"""

import msgspec

from confide.engine.answer import Mode
from confide.engine.conversation import described, messages
from confide.engine.facts import NOT_HONOURED, THINKS, EngineFacts
from confide.engine.grammar import (
    ANY_OBJECT,
    Function,
    arguments_schema,
    auto_grammar,
    call_grammar,
    check_bounds,
    check_size,
    json_grammar,
)
from confide.engine.sampling import sampling, seed
from confide.errors import InvalidRequest
from confide.protocol.chat import ChatRequest
from confide.protocol.chat_body import JsonObject, JsonSchema, NamedTool

CHARACTERS_A_TOKEN = 64  # on average over a prompt, at most; about 4 in prose


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
    most = context_length * CHARACTERS_A_TOKEN
    length = 0
    for part in (*request.messages, *(request.tools or ())):
        length += characters(msgspec.to_builtins(part), most)
        if length > most:
            raise InvalidRequest(
                f"the prompt has more than {most} characters; this model takes {context_length} tokens",
                param="messages",
            )


def characters(value: object, most: int) -> int:
    """Of all text inside a JSON value, names of members included and images left out. It counts on until there are more
    than `most`: a body may have millions of them in pieces of one.
    """
    count, waiting = 0, [value]
    while waiting and count <= most:
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
    refused = "chat_template_kwargs" if request.chat_template_kwargs else None
    if request.reasoning.enabled and not facts.reasons:
        refused = refused or request.reasoning.asked_by
    if refused is not None:
        raise InvalidRequest(NOT_HONOURED[refused], param=refused)


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
            param=asked.asked_by,
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
