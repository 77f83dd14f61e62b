"""Constrained output: the grammar the engine is given, and the check that it was held to.

The engine's own JSON-schema translation ignores keywords it does not know (`not`, `multipleOf`, unanchored `pattern`)
and answers unconstrained, so it is not used. Grammars are written for LLGuidance, which compiles inside the engine.
Two more things were measured. LLGuidance refuses keywords that it does not implement, but the engine swallows that
refusal and answers freely: so every grammar is compiled here first, and refused with 400. And a pattern that is too
costly fails only while tokens are drawn, again silently: so what the engine writes is consumed by the same grammar
here, byte by byte, as it arrives (about 2 microseconds a byte), and the answer fails where it leaves the grammar.
"""

import json
from collections.abc import Sequence
from functools import cache

import msgspec
from llguidance import LLMatcher, LLTokenizer

from confide.errors import InvalidRequest

SCHEMA_MOST_BYTES = 64 * 1024
TOOL_CALL_OPEN = "<tool_call>\n"
TOOL_CALL_CLOSE = "\n</tool_call>"
ANY_OBJECT: dict[str, object] = {"type": "object"}
NO_PARAMETERS: dict[str, object] = {"type": "object", "properties": {}, "additionalProperties": False}

# Refusals of the compiler that name only keywords and formats of the schema language.
QUOTABLE = ("Unimplemented keys: ", "oneOf constraints are not supported", "look-around")


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
        rules.append(f"arguments_{i}: {embedded(function.parameters or NO_PARAMETERS)}")
    return "\n".join(rules) + "\n"


def embedded(schema: dict[str, object]) -> str:
    """`schema` as a Lark terminal, without optional white space: a small model would fill an answer with it."""
    return "%json " + msgspec.json.encode({**schema, "x-guidance": {"whitespace_flexible": False}}).decode()


def check_compiles(grammar: str, *, param: str) -> None:
    """Raise InvalidRequest naming `param` when the grammar does not compile or is too large."""
    if len(grammar) > SCHEMA_MOST_BYTES:
        raise InvalidRequest(f"the schema is too large: at most {SCHEMA_MOST_BYTES} bytes as JSON", param=param)
    refusal = LLMatcher.validate_grammar(grammar)
    if refusal:
        first = refusal.partition("failed to compile JSON schema: ")[2].partition("\n")[0]
        reason = first if first.startswith(QUOTABLE) else "it is not valid, or uses something unsupported"
        raise InvalidRequest(f"this model cannot hold to the schema: {reason}", param=param)


class Adherence:
    """Consumes what the engine writes and tells whether it is still inside the grammar."""

    def __init__(self, grammar: str) -> None:
        self._matcher = LLMatcher(byte_tokenizer(), grammar)

    def holds(self, text: str) -> bool:
        """False as soon as `text`, after all that came before, has left the grammar."""
        tokens = list(text.encode())
        taken: int = self._matcher.try_consume_tokens(tokens)
        return taken == len(tokens) and not self._matcher.is_error()

    @property
    def is_complete(self) -> bool:
        """Whether the text so far is a whole sentence of the grammar."""
        return bool(self._matcher.is_accepting())


@cache
def byte_tokenizer() -> LLTokenizer:
    """A tokenizer in which a token is a byte, so that any engine's text can be consumed."""
    return LLTokenizer("byte")
