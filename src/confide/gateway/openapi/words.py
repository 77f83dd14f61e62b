"""A JSON schema in words."""

import msgspec

from confide.gateway.openapi.html import Html, anchor, element, joined, raw
from confide.gateway.openapi.schemas import NULL, Schema

# Least, most, and of what.
RANGES = (
    ("minimum", "maximum", ""),
    ("minLength", "maxLength", " characters"),
    ("minItems", "maxItems", " entries"),
    ("minProperties", "maxProperties", " members"),
)
UNBOUNDED = {2**63 - 1, -(2**63)}  # what a number can be at all here


def type_of(schema: Schema) -> Html:
    """Its type, with links to the shapes that stand on the page."""
    parts = alternatives(schema)
    return joined_by(" or ", parts) if parts else raw("any JSON")


def alternatives(schema: Schema) -> list[Html]:
    """What it may be, null aside: a member that is null counts as absent."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return [element("a", name.partition(".")[2], href=f"#{anchor(name)}")]
    if "anyOf" in schema:
        found = [part for each in schema["anyOf"] if each != NULL for part in alternatives(each)]
        return list(dict.fromkeys(found))
    if "enum" in schema or "const" in schema:
        return [
            element("code", literal(value)) for value in schema.get("enum", [schema.get("const")]) if value is not None
        ]
    kinds = schema.get("type", [])
    return [kind_of(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind != "null"] or (
        [raw("null")] if kinds == "null" else []
    )


def kind_of(kind: str, schema: Schema) -> Html:
    if kind == "array" and schema.get("items"):
        return joined("array of ", type_of(schema["items"]))
    if kind == "object" and schema.get("additionalProperties"):
        return joined("object of ", type_of(schema["additionalProperties"]))
    return joined(kind)


def literal(value: object) -> str:
    """As JSON has it, and text as it is."""
    return value if isinstance(value, str) and value else msgspec.json.encode(value).decode()


def limits(schema: Schema) -> str:
    """Its bounds."""
    options = [schema, *schema.get("anyOf", ())]
    found = [
        text
        for option in options
        for least, most, of in RANGES
        if (text := between(option.get(least), option.get(most), of))
    ]
    found += [f"above {option['exclusiveMinimum']}" for option in options if "exclusiveMinimum" in option]
    found += [f"matches {option['pattern']}" for option in options if "pattern" in option]
    if "default" in schema and schema["default"] is not None:
        found.append(f"default {literal(schema['default'])}")
    return ", ".join(dict.fromkeys(found))


def between(least: float | None, most: float | None, of: str) -> str:
    """A range in words; one that is no bound here is none."""
    least, most = (None if each in UNBOUNDED else each for each in (least, most))
    if least is not None and most is not None:
        return f"{least} to {most}{of}" if least != most else f"{least}{of}"
    if most is not None:
        return f"at most {most}{of}"
    if least is None or (of and least == 0):
        return ""
    return "not empty" if of and least == 1 else f"at least {least}{of}"


def joined_by(separator: str, parts: list[Html]) -> Html:
    return joined(*(part if not index else joined(raw(separator), part) for index, part in enumerate(parts)))
