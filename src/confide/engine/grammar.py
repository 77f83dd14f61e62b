"""Constrained output: the grammar the engine is given, and the check that it was held to.

The engine's own JSON-schema translation ignores keywords it does not know (`not`, `multipleOf`, unanchored `pattern`)
and answers unconstrained, so it is not used. Grammars are written for LLGuidance, which compiles inside the engine.
Two more things were measured. LLGuidance refuses keywords that it does not implement, but the engine swallows that
refusal and answers freely: so every grammar is compiled here first, and refused with 400. And a pattern that is too
costly fails only while tokens are drawn, again silently: so what the engine writes is consumed by the same grammar
here, byte by byte, as it arrives (about 2 microseconds a byte), and the answer fails where it leaves the grammar.

Compiling is bounded, because the engine does it again in the loop that serves every stream: a schema of 110 bytes with
one large `multipleOf` held it for minutes, and LLGuidance's own limits allow several seconds.
"""

import json
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import cache
from math import lcm

import msgspec
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from confide.errors import InvalidRequest

SCHEMA_MOST_BYTES = 64 * 1024
SCHEMA_MOST_LEVELS = 64  # objects and arrays within each other; LLGuidance's parser stops at 128
# A `multipleOf` costs as many states as its digits count, and several of them as many as their common multiple.
MULTIPLE_OF_MOST = 1000
# At these a compilation takes up to 0.2 s, which 64 functions of ten properties fit; the defaults allow seconds.
LIMITS = LLParserLimits(max_grammar_size=10_000, initial_lexer_fuel=100_000, verbose_errors=False)
TOOL_CALL_OPEN = "<tool_call>\n"
TOOL_CALL_CLOSE = "\n</tool_call>"
ANY_OBJECT: dict[str, object] = {"type": "object"}
NO_PARAMETERS: dict[str, object] = {"type": "object", "properties": {}, "additionalProperties": False}

# What the compiler says when a limit of its own or of LIMITS is reached.
TOO_LARGE = re.compile(r"too (?:big|large)|Current row has|too many")
NAMES = re.compile(r'"([^"]*)"')
# Words of JSON Schema that a refusal may repeat; any other name in it is the client's own.
KEYWORDS = frozenset(
    {
        "$anchor",
        "$dynamicAnchor",
        "$dynamicRef",
        "$recursiveAnchor",
        "$recursiveRef",
        "$vocabulary",
        "additionalItems",
        "contains",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "id",
        "if",
        "maxContains",
        "minContains",
        "multipleOf",
        "not",
        "nullable",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    }
)


class Function(msgspec.Struct, frozen=True):
    """A function that may be called: its name, and the schema of its arguments (None: it has none)."""

    name: str
    parameters: dict[str, object] | None


def json_grammar(schema: dict[str, object]) -> str:
    """The answer is JSON under `schema`, compact."""
    return f"%llguidance {{}}\nstart: {embedded(schema)}\n"


def call_grammar(functions: Sequence[Function]) -> str:
    """The answer is one call: `{"name":"<one of them>","arguments":{…}}`."""
    return f"%llguidance {{}}\nstart: call\n{call_rules(functions)}"


def auto_grammar(functions: Sequence[Function], *, parallel: bool) -> str:
    """The answer is text; or it opens a call somewhere, and then holds one or (`parallel`) several calls to its end.

    `opened` is lazy: the lexeme ends at the first marker. `TEXT` is the same language without the marker, because a
    greedy lexeme before a literal marker would swallow it.
    """
    marker = "<tool_call>\\n"
    close = json.dumps(TOOL_CALL_CLOSE)
    more = f' ("\\n"? {json.dumps(TOOL_CALL_OPEN)} call {close})*' if parallel else ""
    return (
        "%llguidance {}\n"
        f"start: TEXT | opened call {close}{more}\n"
        f"opened[lazy]: /(?s:.*){marker}/\n"
        f"TEXT: /(?s:.*)/ & ~/(?s:.*{marker}.*)/\n"
        f"{call_rules(functions)}"
    )


def call_rules(functions: Sequence[Function]) -> str:
    """`call`, and a rule for each function: schemas stay apart, so that `#/$defs/…` means what it said."""
    rules = [f"call: {' | '.join(f'call_{i}' for i in range(len(functions)))}"]
    for i, function in enumerate(functions):
        start = json.dumps(f'{{"name":{json.dumps(function.name)},"arguments":')
        rules.append(f'call_{i}: {start} arguments_{i} "}}"')
        rules.append(f"arguments_{i}: {embedded(arguments_schema(function))}")
    return "\n".join(rules) + "\n"


def arguments_schema(function: Function) -> dict[str, object]:
    """The schema of its arguments, which are an object even where the client's schema leaves that open."""
    return {"type": "object", **function.parameters} if function.parameters else NO_PARAMETERS


def embedded(schema: dict[str, object]) -> str:
    """`schema` as a Lark terminal, without optional white space: a small model would fill an answer with it."""
    return "%json " + msgspec.json.encode({**schema, "x-guidance": {"whitespace_flexible": False}}).decode()


def check_bounds(schema: dict[str, object], *, param: str) -> None:
    """Raise InvalidRequest naming `param` for a schema that would be costly to translate. Recurses nowhere."""
    steps = 1
    level: list[object] = [schema]
    for _ in range(SCHEMA_MOST_LEVELS):
        for value in level:
            if isinstance(value, dict):
                steps = lcm(steps, digits(value.get("multipleOf")))
        if steps > MULTIPLE_OF_MOST:
            raise InvalidRequest(
                f"this model takes a multipleOf of at most {MULTIPLE_OF_MOST}, as the least common multiple of all",
                param=param,
            )
        level = [inner for value in level for inner in members(value)]
        if not level:
            return
        if len(level) > SCHEMA_MOST_BYTES:
            raise too_large(param)
    raise InvalidRequest(f"the schema is nested too deeply: at most {SCHEMA_MOST_LEVELS} levels", param=param)


def members(value: object) -> Iterator[object]:
    """The objects and arrays directly inside `value`."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (inner for inner in inside if isinstance(inner, dict | list))


def digits(number: object) -> int:
    """A number without its sign, decimal point and trailing zeros: 0.05 is 5, and 1200 is 12. Others are 1."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not number:
        return 1  # zero is refused by the compiler
    if abs(number) >= 10**15:
        return MULTIPLE_OF_MOST + 1
    return int("".join(map(str, Decimal(str(number)).as_tuple().digits)).rstrip("0"))


def compile_grammar(grammar: str, *, param: str) -> "Compiled":
    """The grammar, ready for answers. Takes milliseconds, up to 0.2 s, and holds no lock: fit for a thread.

    Raises InvalidRequest naming `param` when it does not compile or is too large; no text of the client's is quoted.
    """
    check_size(grammar, param=param)
    matcher = LLMatcher(byte_tokenizer(), grammar, log_level=0, limits=LIMITS)
    probe = matcher.deep_copy()
    probe.consume_tokens(list(probe.compute_ff_bytes()))  # an object with too many optional members fails at its `{`
    if probe.is_error():
        raise InvalidRequest(f"this model cannot hold to the schema: {reason(probe.get_error())}", param=param)
    return Compiled(matcher)


def check_size(grammar: str, *, param: str) -> None:
    """Raise InvalidRequest naming `param` for a grammar that is not worth compiling."""
    if len(grammar) > SCHEMA_MOST_BYTES:
        raise too_large(param)


def too_large(param: str) -> InvalidRequest:
    return InvalidRequest(f"the schema is too large: at most {SCHEMA_MOST_BYTES} bytes as JSON", param=param)


def reason(refusal: str) -> str:
    """The compiler's refusal in words of ours: it quotes the client, except where it lists keywords."""
    line = refusal.partition("\n")[0]
    problem = line.partition("failed to compile JSON schema: ")[2] or line
    if problem.startswith("Unimplemented keys: "):
        known = [name for name in NAMES.findall(problem) if name in KEYWORDS]
        return f"it does not support {', '.join(known) or 'a keyword'}"
    if problem.startswith("oneOf constraints"):
        return "it does not support oneOf unless the alternatives exclude each other; use anyOf"
    if problem.startswith("Unknown format"):
        return "it does not know a format"
    if problem.startswith("Unsatisfiable schema"):
        return "no value satisfies it"
    if problem.startswith(("Pointer ", "Resource ")):
        return "a $ref points to nothing in it"
    if TOO_LARGE.search(problem):
        return "it is too complex; use fewer members, alternatives or patterns"
    return "it is not valid, or uses something unsupported"


class Compiled:
    """A grammar that compiled."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def adherence(self) -> "Adherence":
        """A check for one answer, at its beginning."""
        return Adherence(self._matcher.deep_copy())


class Adherence:
    """Consumes what the engine writes and tells whether it is still inside the grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def holds(self, text: str) -> bool:
        """False as soon as `text`, after all that came before, has left the grammar, and from then on."""
        return self._matcher.consume_tokens(list(text.encode()))

    @property
    def is_complete(self) -> bool:
        """Whether the text so far is a whole sentence of the grammar."""
        return self._matcher.is_accepting()


@cache
def byte_tokenizer() -> LLTokenizer:
    """A tokenizer in which a token is a byte, so that any engine's text can be consumed."""
    return LLTokenizer("byte")
