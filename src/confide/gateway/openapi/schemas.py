"""JSON Schema of our structs: of those that requests are parsed with, and of those that describe answers.

Every schema has a namespace, so that two surfaces may each have a `Text`. A struct becomes a named component, and a
member that says `null` or is left out becomes one that need not be there.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import inspect

Schema = dict[str, Any]

ANY: Schema = {}
NULL: Schema = {"type": "null"}
OBJECT: Schema = {"type": "object"}
NONE = re.compile(r"\bNone\b")
DECIMAL_KEYS = r"^(0|[1-9][0-9]{0,9})$"
SIMPLE = frozenset({"boolean", "integer", "number", "string", "array", "object"})


class Either:
    """Any of these structs, which tell themselves apart without one tag in common."""

    def __init__(self, *structs: type[msgspec.Struct]) -> None:
        self.structs = structs


class ListOf:
    """An array of what stands for `items`, of so many entries; or `or_a`."""

    def __init__(self, items: object, *, least: int | None = None, most: int, or_a: Schema) -> None:
        self.items, self.least, self.most, self.or_a = items, least, most, or_a


class Required:
    """A member that the struct's own rules ask for, though its field has a default."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema


# What a member holds where its struct leaves it undecoded: a schema, a type, Either, ListOf, or Required.
Overrides = Mapping[type[msgspec.Struct], Mapping[str, object]]


class Components:
    """The named schemas of one document. `overrides`: see there."""

    def __init__(self, overrides: Overrides) -> None:
        self.schemas: dict[str, Schema] = {}
        self._structs: dict[str, type] = {}
        self._overrides = overrides

    def of(self, what: object, namespace: str) -> Schema:
        """The schema of a type, Either or ListOf; structs in it are referred to as `namespace.Name`."""
        match what:
            case Either():
                return {"anyOf": [self.of(each, namespace) for each in what.structs]}
            case ListOf():
                bounds = {"minItems": what.least, "maxItems": what.most}
                array = {"type": "array", "items": self.of(what.items, namespace), **given(bounds)}
                return either([what.or_a, array])
            case Required():
                return what.schema
            case dict():
                return what
        return self._of_type(inspect.type_info(what), namespace)

    def name_of(self, struct: type[msgspec.Struct], namespace: str) -> str:
        """The name of a struct's component, which is made where it is not there.

        Raises ValueError where another struct has that name.
        """
        name = f"{namespace}.{struct.__name__}"
        if self._structs.setdefault(name, struct) is not struct:
            raise ValueError(f"two structs are called {name}; rename one of them")
        if name not in self.schemas:
            self.schemas[name] = {}  # taken, for structs that hold themselves
            info = inspect.type_info(struct)
            assert isinstance(info, inspect.StructType)
            self.schemas[name] = self._of_struct(info, namespace)
        return name

    def _of_type(self, info: inspect.Type, namespace: str) -> Schema:
        match info:
            case inspect.Metadata():
                return self._of_type(info.type, namespace)
            case inspect.StructType():
                return {"$ref": f"#/components/schemas/{self.name_of(info.cls, namespace)}"}
            case inspect.UnionType():
                return self._of_union(info, namespace)
            case inspect.VarTupleType() | inspect.ListType():
                items = self._of_type(info.item_type, namespace)
                return {"type": "array", "items": items, **lengths(info, "Items")}
            case inspect.DictType():
                return self._of_dict(info, namespace)
            case _:
                return scalar(info)

    def _of_dict(self, info: inspect.DictType, namespace: str) -> Schema:
        key, value = info.key_type, self._of_type(info.value_type, namespace)
        names: Schema = {"propertyNames": {"pattern": DECIMAL_KEYS}} if isinstance(key, inspect.IntType) else {}
        values: Schema = {"additionalProperties": value} if value else {}
        return {"type": "object", **names, **values, **lengths(info, "Properties")}

    def _of_union(self, info: inspect.UnionType, namespace: str) -> Schema:
        tagged = [each for each in info.types if isinstance(each, inspect.StructType) and each.tag_field]
        options = [self._of_type(each, namespace) for each in info.types if each not in tagged]
        if tagged:
            structs = {str(each.tag): self._of_type(each, namespace) for each in tagged}
            mapping = {tag: schema["$ref"] for tag, schema in structs.items()}
            discriminator = {"propertyName": tagged[0].tag_field, "mapping": mapping}
            one_of_them: Schema = {"anyOf": list(structs.values())}
            options.append(one_of_them | ({"discriminator": discriminator} if len(structs) > 1 else {}))
        return either(options)

    def _of_struct(self, info: inspect.StructType, namespace: str) -> Schema:
        overrides = self._overrides.get(info.cls, {})
        properties: dict[str, Schema] = {}
        required: list[str] = []
        if info.tag_field is not None:
            properties[info.tag_field] = {"const": info.tag}
            required.append(info.tag_field)
        for field in info.fields:
            override = overrides.get(field.encode_name)
            schema = self._of_type(field.type, namespace) if override is None else self.of(override, namespace)
            properties[field.encode_name] = {**schema, **default_of(field)}
            if field.required or isinstance(override, Required):
                required.append(field.encode_name)
        document: Schema = {"type": "object", "description": first_sentences(info.cls), "properties": properties}
        if required:
            document["required"] = required
        if info.forbid_unknown_fields:
            document["additionalProperties"] = False
        return document


def scalar(info: inspect.Type) -> Schema:
    """The schema of a type that holds no other."""
    match info:
        case inspect.AnyType() | inspect.RawType() | inspect.CustomType():
            return dict(ANY)
        case inspect.NoneType():
            return dict(NULL)
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.IntType() | inspect.FloatType():
            bounds = {"minimum": info.ge, "exclusiveMinimum": info.gt, "maximum": info.le, "exclusiveMaximum": info.lt}
            return {"type": "integer" if isinstance(info, inspect.IntType) else "number", **given(bounds)}
        case inspect.StrType():
            pattern = None if info.pattern is None else info.pattern.replace(r"\A", "^").replace(r"\Z", "$")
            return {"type": "string", **lengths(info, "Length"), **given({"pattern": pattern})}
        case inspect.LiteralType():
            return {"const": info.values[0]} if len(info.values) == 1 else {"enum": list(info.values)}
    raise TypeError(f"no schema for {info}")


def either(options: list[Schema]) -> Schema:
    """Any of the options; where null joins one simple type the shorter form, and no `anyOf` around a single one."""
    unique = [option for index, option in enumerate(options) if option not in options[:index]]
    others = [option for option in unique if option != NULL]
    if len(unique) == 1:
        return unique[0]
    if len(others) == 1 and NULL in unique:
        (other,) = others
        if other.get("type") in SIMPLE:
            return {**other, "type": [other["type"], "null"]}
        if "enum" in other or "const" in other:
            return {"enum": [*other.get("enum", [other.get("const")]), None]}
    return {"anyOf": others + [NULL] * (NULL in unique)}


def default_of(field: inspect.Field) -> Schema:
    """The default, where it says more than that the member is absent."""
    is_plain = isinstance(field.default, bool | int | float | str)
    return {"default": field.default} if is_plain else {}


def lengths(info: Any, of: str) -> Schema:
    return given({f"min{of}": info.min_length or None, f"max{of}": info.max_length})


def given(members: Mapping[str, object]) -> Schema:
    """Those that are not None."""
    return {name: value for name, value in members.items() if value is not None}


def first_sentences(struct: type) -> str:
    """The first paragraph of a docstring, on one line, in JSON's words."""
    return NONE.sub("null", " ".join((struct.__doc__ or "").partition("\n\n")[0].split()))
