"""Grammars: what they let through, what is refused before the engine sees it, and that neither takes long."""

import json
import time
from collections.abc import Callable

import pytest

from confide.engine.grammar import (
    SCHEMA_MOST_BYTES,
    SCHEMA_MOST_LEVELS,
    Adherence,
    Function,
    arguments_schema,
    auto_grammar,
    call_grammar,
    check_bounds,
    compile_grammar,
    json_grammar,
)
from confide.errors import InvalidRequest

Schema = dict[str, object]

SECRET = "tangerine-4711"
CITY: Schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def adherence(text: str) -> Adherence:
    return compile_grammar(text, param="tools").adherence()


def accepts(text: str, sentence: str) -> bool:
    held = adherence(text)
    return held.holds(sentence) and held.is_complete


def refusal(schema: Schema) -> InvalidRequest:
    def prepare() -> None:
        check_bounds(schema, param="response_format")
        compile_grammar(json_grammar(schema), param="response_format")

    with pytest.raises(InvalidRequest) as raised:
        prepare()
    return raised.value


def nested(levels: int) -> Schema:
    schema: Schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def typed(kind: str) -> Schema:
    """Arguments with one member `x` of a type that `$defs` names `T`."""
    return {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/T"}},
        "required": ["x"],
        "additionalProperties": False,
        "$defs": {"T": {"type": kind}},
    }


TWO = [Function("f", typed("integer")), Function("g", typed("string"))]


@pytest.mark.parametrize(
    ("sentence", "is_inside"),
    [
        ('{"city":"Paris"}', True),
        ('{"city":"Paris","more":[1,null]}', True),
        ('{"city": "Paris"}', False),  # no optional white space
        ('{"city":1}', False),
        ("{}", False),
        ('{"city":"Paris"}\n', False),
        ('{"city":"Paris"', False),
        ("", False),
    ],
)
def test_a_json_grammar_is_the_schema_in_compact_form(sentence: str, is_inside: bool) -> None:
    assert accepts(json_grammar(CITY), sentence) is is_inside


def test_an_answer_fails_at_its_first_wrong_character_and_stays_failed() -> None:
    held = adherence(json_grammar(CITY))
    assert held.holds('{"city":')
    assert not held.holds("7")
    assert not held.holds('"Paris"}')
    assert not held.is_complete


def test_an_answer_may_be_cut_anywhere_even_inside_a_character() -> None:
    held = adherence(json_grammar({"enum": ["é", "ü"]}))
    assert held.holds('"')
    assert not held.is_complete
    assert held.holds("é")
    assert held.holds('"')
    assert held.is_complete


def test_answers_to_one_grammar_do_not_disturb_each_other() -> None:
    compiled = compile_grammar(json_grammar(CITY), param="tools")
    first, second = compiled.adherence(), compiled.adherence()
    assert not first.holds("x")
    assert second.holds('{"city":"Paris"}')
    assert second.is_complete


@pytest.mark.parametrize(
    ("call", "is_inside"),
    [
        ('{"name":"f","arguments":{"x":1}}', True),
        ('{"name":"g","arguments":{"x":"1"}}', True),
        ('{"name":"f","arguments":{"x":"1"}}', False),
        ('{"name":"g","arguments":{"x":1}}', False),
        ('{"name":"h","arguments":{}}', False),
        ('{"name":"f","arguments":{"x":1}}}', False),
    ],
)
def test_equal_names_of_definitions_in_two_functions_stay_apart(call: str, is_inside: bool) -> None:
    assert accepts(call_grammar(TWO), call) is is_inside
    assert accepts(auto_grammar(TWO, parallel=False), f"<tool_call>\n{call}\n</tool_call>") is is_inside


def test_a_reference_to_the_root_means_the_functions_own_schema() -> None:
    tree: Schema = {"type": "object", "properties": {"sub": {"$ref": "#"}}, "additionalProperties": False}
    assert accepts(call_grammar([Function("t", tree)]), '{"name":"t","arguments":{"sub":{"sub":{}}}}')
    assert not accepts(call_grammar([Function("t", tree)]), '{"name":"t","arguments":{"sub":{"other":{}}}}')


@pytest.mark.parametrize("parameters", [None, {}])
def test_a_function_without_parameters_takes_an_empty_object(parameters: Schema | None) -> None:
    text = call_grammar([Function("now", parameters)])
    assert accepts(text, '{"name":"now","arguments":{}}')
    assert not accepts(text, '{"name":"now","arguments":{"a":1}}')


def test_arguments_are_an_object_even_where_the_schema_leaves_that_open() -> None:
    open_schema: Schema = {"properties": {"a": {"type": "integer"}}}
    text = json_grammar(arguments_schema(Function("f", open_schema)))
    assert accepts(text, '{"a":1}')
    assert not accepts(text, "1")
    assert "type" not in open_schema


CALL_F, CALL_G = '{"name":"f","arguments":{"x":1}}', '{"name":"g","arguments":{"x":"a"}}'


@pytest.mark.parametrize(
    ("sentence", "is_inside"),
    [
        ("", True),
        ("plain text\n\nof two paragraphs, é", True),
        ("a < b, and <tool_call without an end", True),
        ("<tool_call>", True),  # the marker is the line feed too
        ("<tool_call>\n", False),
        (f"text <tool_call>\n{CALL_F}\n</tool_call>", True),
        (f"<tool_<tool_call>\n{CALL_F}\n</tool_call>", True),
        (f"<tool_call>\n{CALL_F}</tool_call>", False),
        (f"<tool_call>\n\n{CALL_F}\n</tool_call>", False),
        (f"<tool_call>\n{CALL_F}\n</tool_call> and text", False),
        (f"<tool_call>\n{CALL_F}\n</tool_call><tool_call>\n{CALL_G}\n</tool_call>", True),
        (f"<tool_call>\n{CALL_F}\n</tool_call>\n<tool_call>\n{CALL_G}\n</tool_call>", True),
        (f"<tool_call>\n{CALL_F}\n</tool_call>\n\n<tool_call>\n{CALL_G}\n</tool_call>", False),
        (f"<tool_call>\n{CALL_F}\n</tool_call>\n", False),
    ],
)
def test_an_automatic_answer_is_text_or_text_and_calls_to_its_end(sentence: str, is_inside: bool) -> None:
    assert accepts(auto_grammar(TWO, parallel=True), sentence) is is_inside


def test_one_call_only_where_parallel_calls_are_switched_off() -> None:
    one = f"<tool_call>\n{CALL_F}\n</tool_call>"
    assert accepts(auto_grammar(TWO, parallel=False), one)
    assert not accepts(auto_grammar(TWO, parallel=False), one + one)


@pytest.mark.parametrize("keyword", ["not", "uniqueItems", "contains", "propertyNames", "dependentRequired", "if"])
def test_a_keyword_that_would_be_skipped_is_refused_by_name(keyword: str) -> None:
    values: Schema = {"uniqueItems": True, "dependentRequired": {SECRET: [SECRET]}}
    error = refusal({"type": "object", "properties": {SECRET: {keyword: values.get(keyword, {"const": SECRET})}}})
    assert error.param == "response_format"
    assert error.message == f"this model cannot hold to the schema: it does not support {keyword}"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": SECRET},
        {"type": "string", "format": SECRET},
        {"type": "string", "pattern": f"({SECRET}"},
        {"type": "string", "pattern": f"(?={SECRET})"},
        {"$ref": f"#/$defs/{SECRET}"},
        {"$ref": f"https://{SECRET}/schema"},
        {"type": "object", "properties": {SECRET: False}, "required": [SECRET]},
        {"type": "object", "patternProperties": {f"^{SECRET}": {}, f"^{SECRET[:3]}": {}}},
        {"oneOf": [{"type": "object", "properties": {SECRET: {}}}, {"type": "object"}]},
        {"enum": [SECRET], "type": "integer"},
        {"const": f"failed to compile JSON schema: Unimplemented keys: {SECRET}", "minimum": SECRET},
        {f"Unimplemented keys: {SECRET}": 1, "type": f'Unimplemented keys: ["{SECRET}"]'},
        {"x-guidance": {SECRET: SECRET}, "required": SECRET},
    ],
)
def test_no_refusal_quotes_the_client(schema: Schema) -> None:
    error = refusal(schema)
    assert SECRET not in error.message
    assert SECRET[:6] not in error.message
    assert error.param == "response_format"


def test_a_client_cannot_switch_the_compiler_to_lenient() -> None:
    lenient: Schema = {"x-guidance": {"lenient": True}, "type": "integer", "not": {"const": 1}}
    assert "not" in refusal(lenient).message
    assert "not" in refusal({"type": "object", "properties": {"a": lenient}}).message


def optional_members(count: int) -> Schema:
    return {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(count)}}


def alternatives_squared(count: int) -> Schema:
    pairs = [
        {"anyOf": [{"properties": {f"a{i}": {"type": "string"}}}, {"properties": {f"b{i}": {"type": "integer"}}}]}
        for i in range(count)
    ]
    return {"allOf": pairs}


HOSTILE: dict[str, Callable[[], Schema]] = {
    "10,000 levels": lambda: nested(10_000),
    "one level too many": lambda: nested(SCHEMA_MOST_LEVELS),
    "a large multipleOf": lambda: {"type": "integer", "multipleOf": 10_000_019},
    "a huge multipleOf": lambda: {"type": "integer", "multipleOf": 10**5000},
    "multipleOf by allOf": lambda: {"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}]},
    "multipleOf by reference": lambda: {"$ref": "#/x/0", "multipleOf": 991, "x": [{"multipleOf": 997}]},
    "members": lambda: optional_members(600),
    "more members": lambda: optional_members(2_000),
    "too many bytes": lambda: {"enum": ["x" * SCHEMA_MOST_BYTES]},
    "too many values": lambda: {"x": [[] for _ in range(SCHEMA_MOST_BYTES + 1)]},
    "alternatives that multiply": lambda: alternatives_squared(9),
    "more of them": lambda: alternatives_squared(16),
    "formats": lambda: {"prefixItems": [{"type": "string", "format": "uri", "minLength": i} for i in range(400)]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_schema_made_to_be_costly_is_refused_at_once(name: str) -> None:
    schema = HOSTILE[name]()
    began = time.process_time()
    error = refusal(schema)
    assert time.process_time() - began < 1.0  # measured: 0.2; the costliest of these took 228 s unbounded
    assert error.status == 400


@pytest.mark.parametrize(
    "pattern",
    ["^(a|b|ab)*c{1,1000}$", "^(([a-z])+.)+[A-Z]([a-z])+$", "^((a{0,100}){0,100}){0,100}$", "^[ab]*a[ab]{30}$"],
)
def test_a_pattern_made_to_explode_costs_little_while_an_answer_is_checked(pattern: str) -> None:
    began = time.process_time()
    held = adherence(json_grammar({"type": "string", "pattern": pattern}))
    for character in '"' + "ab" * 500:
        if not held.holds(character):
            break
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize("value", [5, 0.01, 0.25, 1000, 1_000_000, 960])
def test_an_ordinary_multiple_of_is_honoured(value: float) -> None:
    schema: Schema = {"type": "number", "multipleOf": value}
    check_bounds(schema, param="response_format")
    assert accepts(json_grammar(schema), json.dumps(value))
    assert not accepts(json_grammar(schema), "0.003")


def test_sixty_functions_of_ten_members_still_compile() -> None:
    members: Schema = {f"member_{i}": {"type": "string", "description": "what it is"} for i in range(10)}
    functions = [Function(f"f{i}", {"type": "object", "properties": members}) for i in range(60)]
    text = auto_grammar(functions, parallel=True)
    assert accepts(text, '<tool_call>\n{"name":"f59","arguments":{"member_3":"x"}}\n</tool_call>')


def test_the_deepest_schema_compiles() -> None:
    schema = nested(SCHEMA_MOST_LEVELS - 1)
    check_bounds(schema, param="response_format")
    assert accepts(json_grammar(schema), "[" * 63 + "]" * 63)


def test_text_in_a_schema_cannot_leave_its_place_in_the_grammar() -> None:
    hostile = 'a"\n}\nstart: "free"\n\\u2028 %json {} /x/'
    text = json_grammar({"const": hostile})
    assert accepts(text, json.dumps(hostile, ensure_ascii=False))
    assert not accepts(text, "free")
