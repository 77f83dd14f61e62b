"""What is wrong with a configuration, in the words of the file."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import msgspec

from confide.config.kinds import DESCRIBED, WORDS
from confide.config.sections import Config
from confide.errors import ConfigError


def explained(error: msgspec.ValidationError, origins: Mapping[str, str]) -> ConfigError:
    """What is wrong, in the words of the file. `origins`: who gave `section.key`; under "" who gave the rest."""
    text, _, where = str(error).partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    if unknown := re.search(r"unknown field `(.*)`", text, re.DOTALL):
        text = f"unknown key {unknown[1]!r}, expected one of: {', '.join(known_keys(path))}"
    elif missing := re.search(r"required field `(.*)`", text):
        text = f"the key {missing[1]} is missing"
    elif text.startswith("Invalid enum value"):
        text = f"got {text.removeprefix('Invalid enum value ')}, expected one of: {', '.join(get_args(type_at(path)))}"
    for name, word in WORDS.items():
        text = text.replace(name, word)
    parts = [origins.get(path, origins[""]), in_file(path), text]
    return ConfigError(": ".join(part for part in parts if part), remedy=DESCRIBED)


def in_file(path: str) -> str:
    """`server.port` as `[server] port`, `model[1].id` as `[[model]] number 2, id`."""
    section, _, key = path.partition(".")
    if entry := re.fullmatch(r"(model|upstream)\[(\d+)\]", section):
        return f"[[{entry[1]}]] number {int(entry[2]) + 1}" + (f", {key}" if key else "")
    return f"[{section}] {key}".strip() if section else ""


def type_at(path: str) -> Any:
    """The type that stands at `model[0].pricing`; None where there is no such key."""
    found: Any = Config
    for part in filter(None, re.split(r"\[\d+\]|\.", path)):
        fields = {field.name: field.type for field in msgspec.structs.fields(found)} if is_struct(found) else {}
        found = innermost(fields.get(part))
    return found


def innermost(found: Any) -> Any:
    """The table that a key holds, alone, in an array or as one of its forms; else the type itself."""
    tables = [each for each in types_in(found) if is_struct(each)]
    entry = get_args(found)[0] if getattr(found, "__origin__", None) is tuple else found
    return tables[0] if tables else entry


def types_in(found: Any) -> Iterator[Any]:
    """A type, and those that it is made of."""
    yield found
    for each in get_args(found):
        yield from types_in(each)


def is_struct(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, msgspec.Struct)


def known_keys(path: str) -> tuple[str, ...]:
    """The keys of the table at `path`; none where there is no table."""
    found = type_at(path)
    return tuple(field.name for field in msgspec.structs.fields(found)) if is_struct(found) else ()
