"""Which JSON schemas are taken to an engine, one row a rule."""

from typing import Any

import pytest

from confide.errors import InvalidRequest
from confide.protocol.schema import MAX_DEPTH, MAX_NODES, MAX_PATTERN_CHARS, SchemaSupport, check_schema
from confide.protocol.schema_keywords import KEYWORDS

CANARY = "canary-b7f2"
PARAM = "response_format.json_schema.schema"
ALL = SchemaSupport(keywords=frozenset(KEYWORDS), anchored_patterns_only=False)
ANCHORED = SchemaSupport(keywords=frozenset(KEYWORDS), anchored_patterns_only=True)
FEW = SchemaSupport(keywords=frozenset(["type", "properties", "required"]), anchored_patterns_only=True)


def refused(schema: object, allow: SchemaSupport = ALL) -> str:
    with pytest.raises(InvalidRequest) as caught:
        check_schema(schema, param=PARAM, allow=allow)
    error = caught.value
    assert error.param == PARAM
    assert error.message.startswith(f"{PARAM}: ")
    return error.message


def nested(levels: int) -> dict[str, Any]:
    """An object `levels` deep; levels count objects and arrays."""
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels - 1):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        True,
        False,
        {},
        {
            "type": "object",
            "properties": {"a": {"type": ["string", "null"]}},
            "required": ["a"],
            "additionalProperties": False,
        },
        {"$defs": {"a": {"type": "integer"}}, "items": {"$ref": "#/$defs/a"}},
        {"properties": {"child": {"anyOf": [{"$ref": "#/properties/child"}, {"type": "null"}]}}},
        {
            "$defs": {"a/b": {}, "c~d": {}, "e f": {}},
            "allOf": [{"$ref": f"#/$defs/{n}"} for n in ("a~1b", "c~0d", "e%20f")],
        },
        {"prefixItems": [{"type": "string"}], "items": {"$ref": "#/prefixItems/0"}},
        {"enum": [None, 1, "a", {"type": "not a schema"}], "const": {"pattern": "["}},
        {"minimum": -1, "exclusiveMaximum": 2.5, "multipleOf": 0.1, "minLength": 0, "uniqueItems": True},
        {"pattern": "^[a-z]+$", "patternProperties": {"^x": True}, "format": "date"},
        {"pattern": "[[a-z]"},  # Python warns of a "possible nested set"; nobody is told
        {"dependentRequired": {"a": ["b"]}, "dependentSchemas": {"a": {"minProperties": 1}}, "if": {}, "then": True},
        {"properties": {"$ref": {"type": "string"}, "pattern": {"type": "string"}}},  # names, not keywords
    ],
)
def test_a_schema_is_taken(schema: object) -> None:
    check_schema(schema, param=PARAM, allow=ALL)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("abc", "a schema is an object, true or false"),
        (None, "a schema is an object, true or false"),
        (1, "a schema is an object, true or false"),
        ([], "a schema is an object, true or false"),
        ({"properties": {"a": "string"}}, "true or false at properties/*"),
        ({"anyOf": [{}, 1]}, "true or false at anyOf/*"),
        ({"type": "text"}, "type must be one of the seven type names"),
        ({"type": []}, "type must be"),
        ({"type": ["string", "string"]}, "type must be"),
        ({"type": {"a": 1}}, "type must be"),
        ({"enum": []}, "enum must be an array of at least one value"),
        ({"enum": "a"}, "enum must be"),
        ({"required": "a"}, "required must be an array of unique strings"),
        ({"required": ["a", "a"]}, "required must be"),
        ({"required": True}, "required must be"),
        ({"properties": []}, "properties must be an object of schemas"),
        ({"items": [{}]}, "items must be an object, true or false"),
        ({"prefixItems": []}, "prefixItems must be an array of at least one schema"),
        ({"anyOf": {}}, "anyOf must be an array of at least one schema"),
        ({"minLength": -1}, "minLength must be an integer >= 0"),
        ({"maxItems": True}, "maxItems must be an integer >= 0"),
        ({"maxItems": 1.5}, "maxItems must be an integer >= 0"),
        ({"minimum": "1"}, "minimum must be a number"),
        ({"exclusiveMinimum": True}, "exclusiveMinimum must be a number"),
        ({"multipleOf": 0}, "multipleOf must be a number > 0"),
        ({"uniqueItems": 1}, "uniqueItems must be true or false"),
        ({"format": 1}, "format must be a string"),
        ({"dependentRequired": {"a": "b"}}, "dependentRequired must be"),
        ({"pattern": 1}, "pattern must be a string"),
        ({"pattern": "["}, "valid regular expression at pattern"),
        ({"pattern": "a{99999999999}"}, "valid regular expression"),
        ({"pattern": "(" * 8000 + ")" * 8000}, "valid regular expression"),
        ({"patternProperties": {"(": True}}, "valid regular expression at patternProperties"),
        ({"$ref": 1}, "$ref must be a string"),
        ({"$ref": "https://schemas.example/a.json"}, "a $ref must be local: #/... at $ref"),
        ({"$ref": "other.json#/a"}, "must be local"),
        ({"$ref": "#anchor"}, "must be local"),
        ({"$ref": "#"}, "must be local"),
        ({"$ref": "#/$defs/a"}, "must point to a subschema"),
        ({"$defs": {"a": {"enum": [1]}}, "$ref": "#/$defs/a/enum/0"}, "must point to a subschema"),
        ({"prefixItems": [{}], "items": {"$ref": "#/prefixItems/1"}}, "must point to a subschema at items/$ref"),
        ({"prefixItems": [{}], "items": {"$ref": f"#/prefixItems/{'9' * 5000}"}}, "must point to a subschema"),
        ({"default": {"type": 1}, "$ref": "#/default"}, "type must be"),  # an annotation becomes a schema by reference
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}}, "must not lead back to itself"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "must not lead back to itself"),
        ({"$dynamicRef": "#a"}, "the keyword $dynamicRef is not supported"),
        ({"nullable": True}, "the keyword nullable is not supported"),
        ({"typ": "string"}, "a keyword that JSON Schema does not define"),
    ],
)
def test_a_schema_is_refused_and_told_why(schema: object, says: str) -> None:
    assert says in refused(schema)


def test_a_keyword_that_the_engine_skips_is_named() -> None:
    check_schema({"type": "object", "properties": {"a": {"type": "string"}}}, param=PARAM, allow=FEW)
    message = refused({"type": "object", "properties": {"a": {"format": "date"}}}, FEW)
    assert message == f"{PARAM}: the keyword format is not supported on this model at properties/*."


@pytest.mark.parametrize(
    "keyword",
    [
        "title",
        "description",
        "default",
        "examples",
        "$schema",
        "$id",
        "$comment",
        "deprecated",
        "readOnly",
        "writeOnly",
    ],
)
def test_annotations_pass_unlisted(keyword: str) -> None:
    check_schema({keyword: "a", "type": "object"}, param=PARAM, allow=FEW)


@pytest.mark.parametrize("pattern", ["a", "^a", "a$", r"^a\$", r"^a\\\$", "", "$^"])
def test_a_pattern_must_be_anchored_where_the_engine_skips_it_otherwise(pattern: str) -> None:
    check_schema({"pattern": pattern}, param=PARAM, allow=ALL)
    assert "must start with ^ and end with $" in refused({"pattern": pattern}, ANCHORED)
    assert "must start with ^ and end with $" in refused({"patternProperties": {pattern: {}}}, ANCHORED)


@pytest.mark.parametrize("pattern", ["^a$", "^$", r"^a\\$"])
def test_an_anchored_pattern_is_taken(pattern: str) -> None:
    check_schema({"pattern": pattern}, param=PARAM, allow=ANCHORED)


def test_depth_is_bounded() -> None:
    check_schema(nested(MAX_DEPTH), param=PARAM, allow=ALL)
    assert f"at most {MAX_DEPTH} levels" in refused(nested(MAX_DEPTH + 1))
    assert f"at most {MAX_DEPTH} levels" in refused(nested(50_000))


def test_size_is_bounded() -> None:
    check_schema({"enum": [0] * (MAX_NODES - 2)}, param=PARAM, allow=ALL)
    assert f"at most {MAX_NODES} values" in refused({"enum": [0] * (MAX_NODES - 1)})
    assert f"at most {MAX_NODES} values" in refused({"default": [0] * (MAX_NODES - 1)})


def test_patterns_are_bounded_together() -> None:
    half = "a" * (MAX_PATTERN_CHARS // 2)
    check_schema({"allOf": [{"pattern": half}, {"pattern": half}]}, param=PARAM, allow=ALL)
    assert "characters together" in refused({"allOf": [{"pattern": half}, {"pattern": half}, {"pattern": "a"}]})


@pytest.mark.parametrize(
    "schema",
    [
        {CANARY: 1},
        {"type": CANARY},
        {"properties": {CANARY: {"type": 1}}},
        {"properties": {CANARY: {CANARY: {}}}},
        {"pattern": f"[{CANARY}"},
        {"patternProperties": {f"({CANARY}": {}}},
        {"$ref": CANARY},
        {"$ref": f"#/$defs/{CANARY}"},
        {"$defs": {CANARY: {"$ref": f"#/$defs/{CANARY}"}}},
        {"required": [CANARY, CANARY]},
    ],
)
def test_a_refusal_never_quotes_the_schema(schema: object) -> None:
    assert CANARY not in refused(schema)


def test_an_engine_cannot_honour_what_is_not_checked() -> None:
    with pytest.raises(ValueError, match="contentEncoding"):
        SchemaSupport(keywords=frozenset(["type", "contentEncoding"]), anchored_patterns_only=False)
