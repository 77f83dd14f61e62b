"""Fuzz grammars: any schema is refused without a quote or compiles in bounded time, and any answer can be read."""

import json
import sys
import time

from confide.engine.answer import Choice, EngineChoice, EngineDelta, EngineEvent, LeftGrammar, Mode
from confide.engine.grammar import Function, arguments_schema, auto_grammar, check_bounds, compile_grammar, json_grammar
from confide.errors import InvalidRequest
from fuzz.chat import spell

WORDS = """
type enum const multipleOf required pattern format $ref maximum minimum exclusiveMaximum maxLength minLength maxItems
minItems maxProperties minProperties items prefixItems additionalProperties anyOf oneOf allOf not properties
patternProperties $defs $id $anchor x-guidance uniqueItems title default a
"""
KEYWORDS = WORDS.split()
COMPILES_WITHIN_S = 2.0  # of processor time; the aim is 0.2, and libFuzzer's instruments slow it down
CALLS = compile_grammar(auto_grammar([Function("f", {"type": "object"})], parallel=True), param="tools")
# What an answer is put together from, besides bytes of its own.
PIECES = [
    "<tool_call>\n",
    "\n</tool_call>",
    '{"name":"f","arguments":',
    "{",
    "}",
    '"',
    "\\",
    ":",
    "1",
    ",",
    "a",
    "<",
    "\n",
]


def fuzz_one(data: bytes) -> None:
    """One input: as a schema, and as an answer with calls in it."""
    choices = iter(data)
    schema = spell(choices, KEYWORDS)
    if isinstance(schema, dict):
        compile_one(schema)
    read("".join(PIECES[byte % len(PIECES)] for byte in choices))


def compile_one(schema: dict[str, object]) -> None:
    """As the arguments of a function, and as the form of an answer."""
    began = time.process_time()
    try:
        check_bounds(arguments_schema(Function("f", schema)), param="tools")
        compile_grammar(json_grammar(schema), param="response_format")
    except InvalidRequest as refused:
        if any(name in refused.message for name in ("#/", "99999999999", "image/png")):
            raise AssertionError("the refusal quotes the schema") from None
    if time.process_time() - began > COMPILES_WITHIN_S:
        raise AssertionError("a schema that takes long was not refused")


def read(text: str) -> None:
    """An answer in pieces of one character has the deltas of the whole; whatever stays inside the form can be read."""
    if outcome(list(text)) != outcome([text]):
        raise AssertionError("the deltas depend on how the answer was cut")


def outcome(texts: list[str]) -> str:
    """All text and arguments in order, or that the form was left."""
    answer = Choice(0, mode=Mode.AUTO, adherence=CALLS.adherence(), new_call_id=lambda: "id")
    events = [EngineEvent(choices=[EngineChoice(EngineDelta(content=text))]) for text in texts]
    try:
        deltas = [delta for event in events for delta in answer.step(event)]
        deltas += answer.step(EngineEvent(choices=[EngineChoice(finish_reason="length")]))
    except LeftGrammar:
        return "left"
    parts: list[list[str]] = []
    for delta in deltas:
        kind, text = type(delta).__name__, str(getattr(delta, "text", ""))
        if parts and parts[-1][0] == kind != "CallOpened":
            parts[-1][1] += text
        else:
            parts.append([kind, text])
    return json.dumps(parts)


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
