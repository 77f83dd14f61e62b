"""Is this a JSON schema that an engine honours to the letter? (wire contract 2.5)

An engine that skips a keyword answers with JSON that the schema does not allow, so what it would skip is refused here.
Checked: the shape of every keyword, references, patterns, size. Not checked: whether any value can satisfy the schema.

A refusal names a standard keyword and the way to it (`properties/*/pattern`). Names that the caller chose are content:
they appear as `*`, or not at all.
"""

import re
import warnings
from collections.abc import Iterator
from typing import TypeAlias
from urllib.parse import unquote

import msgspec

from confide.errors import InvalidRequest
from confide.protocol.schema_keywords import (
    ANNOTATIONS,
    KEYWORDS,
    MANY_SCHEMAS,
    NAMED_SCHEMAS,
    NEVER_HONOURED,
    ONE_SCHEMA,
)

MAX_DEPTH = 64  # arrays and objects within each other
MAX_NODES = 100_000  # JSON values of any kind
MAX_PATTERN_CHARS = 16_384  # in all patterns together: compiling takes microseconds a character

ARRAY_INDEX = re.compile(r"0|[1-9][0-9]{0,5}")

Way: TypeAlias = tuple[str, ...]  # keywords from the root, "*" for a name that the caller chose
Schema: TypeAlias = dict[str, object]


class SchemaSupport(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine honours: keywords, and whether it skips a pattern that is not `^...$`.

    Annotations need not be listed; `format` is one only to an engine that lists it.
    """

    keywords: frozenset[str]
    anchored_patterns_only: bool

    def __post_init__(self) -> None:
        if unknown := self.keywords - KEYWORDS.keys():
            raise ValueError(f"got {sorted(unknown)}, expected keywords out of {sorted(KEYWORDS)}")


def check_schema(schema: object, *, param: str, allow: SchemaSupport) -> None:
    """Raise InvalidRequest with `param` unless `allow` covers all of `schema`, which is what a JSON decoder returned.

    true and false are schemas too. References are local (`#/...`) and their targets are checked wherever they are.
    """
    try:
        _check_size(schema)
        _Walk(schema, allow).run()
    except _NotHonoured as found:
        at = f" at {'/'.join(found.way)}" if found.way else ""
        raise InvalidRequest(f"{param}: {found.problem}{at}.", param=param) from None


class _NotHonoured(Exception):
    """The first thing wrong."""

    def __init__(self, problem: str, way: Way = ()) -> None:
        super().__init__(problem)
        self.problem = problem
        self.way = way


def _check_size(value: object) -> None:
    # Level by level, not recursive: the depth is the caller's.
    level, nodes = [value], 1
    for _ in range(MAX_DEPTH):
        below = [item for held in level for item in _held(held)]
        nodes += len(below)
        if nodes > MAX_NODES:
            raise _NotHonoured(f"a schema has at most {MAX_NODES} values")
        level = [item for item in below if isinstance(item, dict | list)]
        if not level:
            return
    raise _NotHonoured(f"a schema is at most {MAX_DEPTH} levels deep")


def _held(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


class _Walk:
    """One pass over every subschema. `run` raises _NotHonoured at the first thing wrong."""

    def __init__(self, root: object, allow: SchemaSupport) -> None:
        self._root = root
        self._allow = allow
        self._waiting: list[tuple[object, Way]] = [(root, ())]
        self._seen: set[int] = set()  # by id(): the root keeps all subschemas alive
        self._pattern_chars = 0
        self._links: dict[int, int] = {}  # a schema with $ref -> its target

    def run(self) -> None:
        while self._waiting:
            schema, way = self._waiting.pop()
            if isinstance(schema, dict):
                self._visit(schema, way)
            elif not isinstance(schema, bool):
                raise _NotHonoured("a schema is an object, true or false", way)
        if _has_cycle(self._links):
            raise _NotHonoured("a $ref must not lead back to itself through references alone")

    def _visit(self, schema: Schema, way: Way) -> None:
        if id(schema) in self._seen:
            return
        self._seen.add(id(schema))
        for keyword, value in schema.items():
            if keyword not in ANNOTATIONS:
                self._check_keyword(keyword, value, way)
                self._waiting += _subschemas(keyword, value, (*way, keyword))
        if isinstance(reference := schema.get("$ref"), str):
            self._follow(schema, reference, (*way, "$ref"))

    def _check_keyword(self, keyword: str, value: object, way: Way) -> None:
        if keyword not in self._allow.keywords:
            raise _NotHonoured(_unsupported(keyword), way)
        expected, holds = KEYWORDS[keyword]
        if not holds(value):
            raise _NotHonoured(f"{keyword} must be {expected}", way)
        if keyword == "pattern" and isinstance(value, str):
            self._check_pattern(value, (*way, keyword))
        if keyword == "patternProperties" and isinstance(value, dict):
            for pattern in value:
                self._check_pattern(pattern, (*way, keyword))

    def _check_pattern(self, pattern: str, way: Way) -> None:
        self._pattern_chars += len(pattern)
        if self._pattern_chars > MAX_PATTERN_CHARS:
            raise _NotHonoured(f"the patterns of a schema have at most {MAX_PATTERN_CHARS} characters together")
        if not _compiles(pattern):
            raise _NotHonoured("a pattern must be a valid regular expression", way)
        if self._allow.anchored_patterns_only and not _is_anchored(pattern):
            raise _NotHonoured("a pattern must start with ^ and end with $ on this model", way)

    def _follow(self, schema: Schema, reference: str, way: Way) -> None:
        if not reference.startswith("#/"):
            raise _NotHonoured("a $ref must be local: #/...", way)
        target = _resolve(self._root, reference)
        if not isinstance(target, dict | bool):
            raise _NotHonoured("a $ref must point to a subschema", way)
        self._links[id(schema)] = id(target)
        self._waiting.append((target, ("$ref",)))


def _unsupported(keyword: str) -> str:
    if keyword in KEYWORDS or keyword in NEVER_HONOURED:
        return f"the keyword {keyword} is not supported on this model"
    return "there is a keyword that JSON Schema does not define"


def _subschemas(keyword: str, value: object, way: Way) -> Iterator[tuple[object, Way]]:
    if keyword in ONE_SCHEMA:
        yield value, way
    elif keyword in MANY_SCHEMAS or keyword in NAMED_SCHEMAS:
        for below in _held(value):
            yield below, (*way, "*")


def _compiles(pattern: str) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):  # "possible nested set": right today, and nothing to print
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _is_anchored(pattern: str) -> bool:
    body = pattern.removesuffix("$")
    escapes = len(body) - len(body.rstrip("\\"))  # an odd number: the last $ is a character
    return pattern.startswith("^") and pattern.endswith("$") and escapes % 2 == 0


def _resolve(root: object, reference: str) -> object:
    """What a JSON pointer in a fragment points to (RFC 6901 6), or None."""
    value = root
    for token in unquote(reference).split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and ARRAY_INDEX.fullmatch(name):
            value = value[int(name)] if int(name) < len(value) else None
        else:
            return None
    return value


def _has_cycle(links: dict[int, int]) -> bool:
    done: set[int] = set()
    for start in links:
        trail: set[int] = set()
        node = start
        while node in links and node not in done:
            if node in trail:
                return True
            trail.add(node)
            node = links[node]
        done |= trail
    return False
