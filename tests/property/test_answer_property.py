"""Reading an answer does not depend on how the engine cut it; a grammar lets through what its schema does."""

import itertools
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from confide.engine.answer import (
    CallArguments,
    CallOpened,
    Choice,
    Content,
    Delta,
    EngineChoice,
    EngineDelta,
    EngineEvent,
    LeftGrammar,
    Mode,
)
from confide.engine.grammar import (
    TOOL_CALL_CLOSE,
    TOOL_CALL_OPEN,
    Function,
    auto_grammar,
    call_grammar,
    compile_grammar,
    json_grammar,
)
from confide.errors import InvalidRequest

FUNCTIONS = [Function("f", {"type": "object"}), Function("g", {"type": "object"})]
CALLS = compile_grammar(call_grammar(FUNCTIONS), param="tools")
AUTO = compile_grammar(auto_grammar(FUNCTIONS, parallel=True), param="tools")
# Characters that could be mistaken for the form's own, among others.
TEXT = st.text(alphabet=st.sampled_from('<>{}[]"\\/_:, \n\tatolcé😀'), max_size=12)
PLAIN = TEXT.filter(lambda text: TOOL_CALL_OPEN not in text)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(TEXT, JSON_VALUES, max_size=3)
CALLED = st.lists(st.tuples(st.sampled_from("fg"), ARGUMENTS), max_size=3)


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def written(name: str, arguments: object) -> str:
    """A call as the model writes it."""
    return f'{{"name":"{name}","arguments":{compact(arguments)}}}'


def pieces(text: str, cuts: list[int]) -> list[str]:
    """`text`, cut at these places."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[begin:end] for begin, end in itertools.pairwise(places)]


def read(mode: Mode, texts: list[str], finish: str) -> list[Delta]:
    compiled = {Mode.CALL: CALLS, Mode.AUTO: AUTO}[mode]
    answer = Choice(0, mode=mode, adherence=compiled.adherence(), new_call_id=lambda: "id")
    events = [EngineEvent(choices=[EngineChoice(EngineDelta(content=text))]) for text in texts]
    events.append(EngineEvent(choices=[EngineChoice(finish_reason=finish)]))
    return [delta for event in events for delta in answer.step(event)]


def joined(deltas: list[Delta]) -> tuple[str, list[tuple[str, str]]]:
    """All text, and each call's name and arguments."""
    content = "".join(delta.text for delta in deltas if isinstance(delta, Content))
    calls: list[tuple[str, str]] = []
    for delta in deltas:
        if isinstance(delta, CallOpened):
            assert delta.call == len(calls)
            calls.append((delta.name, ""))
        elif isinstance(delta, CallArguments):
            name, before = calls[delta.call]
            calls[delta.call] = (name, before + delta.text)
    return content, calls


@given(PLAIN, CALLED, st.booleans(), st.lists(st.integers(0, 500), max_size=30))
def test_text_and_calls_come_out_as_they_went_in_however_they_are_cut(
    text: str, called: list[tuple[str, object]], is_spaced: bool, cuts: list[int]
) -> None:
    calls = [TOOL_CALL_OPEN + written(name, arguments) + TOOL_CALL_CLOSE for name, arguments in called]
    whole = text + ("\n" if is_spaced else "").join(calls)
    content, given = joined(read(Mode.AUTO, pieces(whole, cuts), "stop"))
    assert content == text
    assert given == [(name, compact(arguments)) for name, arguments in called]


@given(st.sampled_from("fg"), ARGUMENTS, st.lists(st.integers(0, 500), max_size=30))
def test_a_required_call_comes_out_however_it_is_cut(name: str, arguments: object, cuts: list[int]) -> None:
    assert joined(read(Mode.CALL, pieces(written(name, arguments), cuts), "stop")) == ("", [(name, compact(arguments))])


@given(PLAIN, CALLED, st.integers(0, 500), st.lists(st.integers(0, 500), max_size=10))
def test_an_answer_that_ran_out_of_tokens_is_a_beginning_of_the_whole_one(
    text: str, called: list[tuple[str, object]], length: int, cuts: list[int]
) -> None:
    whole = text + "".join(TOOL_CALL_OPEN + written(name, arguments) + TOOL_CALL_CLOSE for name, arguments in called)
    content, given = joined(read(Mode.AUTO, pieces(whole[:length], cuts), "length"))
    expected = [(name, compact(arguments)) for name, arguments in called]
    assert content == text if given else (text + TOOL_CALL_OPEN).startswith(content)
    assert len(given) <= len(expected)
    assert given[:-1] == expected[: max(0, len(given) - 1)]
    for (name, arguments), (expected_name, whole_arguments) in zip(given, expected, strict=False):
        assert name == expected_name
        assert whole_arguments.startswith(arguments)


@given(TEXT, st.lists(st.integers(0, 50), max_size=10))
def test_whatever_is_written_in_place_of_a_call_never_ends_as_one(text: str, cuts: list[int]) -> None:
    try:
        deltas = read(Mode.CALL, pieces(text, cuts), "stop")
    except LeftGrammar:
        return
    raise AssertionError(f"{len(deltas)} deltas of text that is no call")


# Schemas of which LLGuidance and a validator must hold the same view; numbers are integers, which both write alike.
LEAVES: st.SearchStrategy[dict[str, object]] = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size}, *[st.integers(-20, 20)] * 2
    ),
    st.builds(
        lambda low, size: {"type": "string", "minLength": low, "maxLength": low + size}, *[st.integers(0, 4)] * 2
    ),
    st.builds(lambda values: {"enum": values}, st.lists(st.integers(-3, 3) | st.sampled_from("abé"), min_size=1)),
    st.sampled_from([{"type": "string", "pattern": p} for p in ("b", "^a", "a$", "^[ab]{2}$", "^(a|bb)*$", "a|^b$")]),
)
NAMES = st.sampled_from("abc")


def larger(inner: st.SearchStrategy[dict[str, object]]) -> st.SearchStrategy[dict[str, object]]:
    return st.one_of(
        st.builds(
            lambda members, required, more: {
                "type": "object",
                "properties": members,
                "required": required,
                "additionalProperties": more,
            },
            st.dictionaries(NAMES, inner, max_size=3),
            st.lists(NAMES, unique=True, max_size=2),
            st.booleans(),
        ),
        st.builds(
            lambda items, low, size: {"type": "array", "items": items, "minItems": low, "maxItems": low + size},
            *(inner, st.integers(0, 2), st.integers(0, 2)),
        ),
        st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner),
    )


SCHEMAS = st.recursive(LEAVES, larger, max_leaves=4)
INSTANCES = st.recursive(
    st.none() | st.booleans() | st.integers(-25, 45) | st.text(alphabet="abé", max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(SCHEMAS, st.lists(INSTANCES, min_size=1, max_size=8))
def test_a_grammar_lets_through_what_is_valid_under_its_schema(
    schema: dict[str, object], instances: list[object]
) -> None:
    is_valid = Draft202012Validator(schema).is_valid
    try:
        compiled = compile_grammar(json_grammar(schema), param="response_format")
    except InvalidRequest:
        assert not any(map(is_valid, instances))  # only what nothing satisfies is refused here
        return
    for instance in instances:
        held = compiled.adherence()
        is_let_through = held.holds(compact(instance)) and held.is_complete
        if is_let_through != is_valid(instance):
            assert is_valid(instance)
            assert has_members_out_of_order(schema, instance)


def has_members_out_of_order(schema: object, instance: object) -> bool:
    """A grammar wants members in the order of `properties`, which a validator does not care about."""
    return "properties" in json.dumps(schema) and '":' in compact(instance)
