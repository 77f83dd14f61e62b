"""The keywords of JSON Schema 2020-12 and what each may hold (Core 8 and 10, Validation 6 and 9)."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

Holds: TypeAlias = tuple[str, Callable[[object], bool]]  # in words, and as a predicate

TYPES = frozenset(["null", "boolean", "object", "array", "number", "integer", "string"])


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: object) -> bool:
    return type(value) in (int, float)  # not isinstance: true is no number


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and _is_number(value) and value > 0


def _is_boolean(value: object) -> bool:
    return isinstance(value, bool)


def _is_string(value: object) -> bool:
    return isinstance(value, str)


def _is_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value) and len(set(value)) == len(value)


def _is_strings_by_name(value: object) -> bool:
    return isinstance(value, dict) and all(_is_strings(item) for item in value.values())


def _is_type(value: object) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and _is_strings(names) and TYPES.issuperset(names)


def _is_filled_array(value: object) -> bool:
    return isinstance(value, list) and bool(value)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_schema(value: object) -> bool:
    return isinstance(value, dict | bool)


def _is_json(_: object) -> bool:
    return True


COUNT: Holds = ("an integer >= 0", _is_count)
NUMBER: Holds = ("a number", _is_number)
STRING: Holds = ("a string", _is_string)

# Where subschemas are: the value itself, the items of an array, the members of an object whose names the caller chose.
ONE_SCHEMA = frozenset(
    ["items", "contains", "additionalProperties", "propertyNames", "unevaluatedItems", "unevaluatedProperties"]
) | frozenset(["not", "if", "then", "else"])
MANY_SCHEMAS = frozenset(["allOf", "anyOf", "oneOf", "prefixItems"])
NAMED_SCHEMAS = frozenset(["properties", "patternProperties", "dependentSchemas", "$defs", "definitions"])

KEYWORDS: Mapping[str, Holds] = {
    "type": ("one of the seven type names, or an array of unique ones", _is_type),
    "enum": ("an array of at least one value", _is_filled_array),
    "const": ("a value", _is_json),
    "multipleOf": ("a number > 0", _is_positive),
    "uniqueItems": ("true or false", _is_boolean),
    "required": ("an array of unique strings", _is_strings),
    "dependentRequired": ("an object of arrays of unique strings", _is_strings_by_name),
    **dict.fromkeys(["pattern", "format", "$ref"], STRING),
    **dict.fromkeys(["maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"], NUMBER),
    **dict.fromkeys(["maxLength", "minLength", "maxItems", "minItems", "maxContains", "minContains"], COUNT),
    **dict.fromkeys(["maxProperties", "minProperties"], COUNT),
    **dict.fromkeys(ONE_SCHEMA, ("an object, true or false", _is_schema)),
    **dict.fromkeys(MANY_SCHEMAS, ("an array of at least one schema", _is_filled_array)),
    **dict.fromkeys(NAMED_SCHEMAS, ("an object of schemas", _is_object)),
}

# They constrain no value, so an engine may pass over them.
ANNOTATIONS = frozenset(
    ["title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"]
) | frozenset(["$schema", "$id", "$comment"])

# Words of this or an earlier draft that may be named in a message although they are never honoured.
NEVER_HONOURED = frozenset(
    ["$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveAnchor", "$recursiveRef", "$vocabulary", "id", "nullable"]
) | frozenset(["additionalItems", "dependencies", "contentEncoding", "contentMediaType", "contentSchema"])
