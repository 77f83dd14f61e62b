"""Change members of a JSON object and keep every other byte (what-users-ask 8).

A body that is relayed is not decoded and written again: its receiver gets the numbers, escapes and spaces that the
sender chose. So a member is found by where it stands in the text, and what replaces it is put there.

An object that names a member twice is refused: of two readers one may take the first and the other the last.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import msgspec

SPACE = rb"[ \t\n\r]*+"
OPENING = re.compile(SPACE + rb"\{")
NAME = re.compile(SPACE + rb'("(?:[^"\\]|\\.)*+")' + SPACE + rb":" + SPACE, re.DOTALL)
SEPARATOR = re.compile(SPACE + rb"([,}])")

decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
decode_text = msgspec.json.Decoder(str).decode


class NamedTwice(ValueError):
    """The object has a member twice. The text does not repeat the name."""


class Member(NamedTuple):
    """Where a member stands in its document: from the first byte of its name, its value from `value` to `end`."""

    name: str
    start: int
    value: int
    end: int

    def of(self, document: bytes) -> bytes:
        """The bytes of its value."""
        return document[self.value : self.end]


class Edit(NamedTuple):
    """The bytes from `start` to `end` give way to `text`."""

    start: int
    end: int
    text: bytes


def members_of(document: bytes) -> dict[str, Member]:
    """The members of the JSON object in `document`, in order. Values are not decoded.

    Raises msgspec.DecodeError (UnicodeDecodeError, RecursionError) where it is no such object, NamedTwice.
    """
    values = decode_members(document)
    found: dict[str, Member] = {}
    at = opening_end(document)
    closing = b"}"
    for _ in values:
        member, at, closing = next_member(document, at, values)
        if member.name in found:
            raise NamedTwice("a member stands in the object twice")
        found[member.name] = member
    if closing != b"}":
        raise NamedTwice("a member stands in the object twice")
    return found


def opening_end(document: bytes) -> int:
    opening = OPENING.match(document)
    assert opening is not None, "it was decoded as an object"
    return opening.end()


def next_member(document: bytes, at: int, values: Mapping[str, msgspec.Raw]) -> tuple[Member, int, bytes]:
    """The member whose name comes at `at`, where it is over, and what separates it from the rest.

    Of a name that stands twice, `values` has the last value. The length of a value is taken from there, so the bytes
    are compared: a JSON value cannot begin with another one, but for a number, which its separator tells.
    """
    name_found = NAME.match(document, at)
    assert name_found is not None, "it was decoded as a member"
    quoted = name_found[1]
    name = decode_text(quoted) if b"\\" in quoted else quoted[1:-1].decode()
    raw = bytes(memoryview(values[name]))
    value, end = name_found.end(), name_found.end() + len(raw)
    separator = SEPARATOR.match(document, end)
    if separator is None or document[value:end] != raw:
        raise NamedTwice("a member stands in the object twice")
    return Member(name, name_found.start(1), value, end), separator.end(), separator[1]


def without(members: dict[str, Member], names: Collection[str]) -> list[Edit]:
    """The edits that take these members out, each with the separator that it leaves over."""
    edits: list[Edit] = []
    kept_end: int | None = None
    going: Member | None = None  # the first of those that go in a row
    for member in members.values():
        if member.name in names:
            going = going or member
            continue
        if going is not None:
            edits.append(Edit(going.start, member.start, b""))
            going = None
        kept_end = member.end
    if going is not None:
        last = members[next(reversed(members))]
        edits.append(Edit(going.start if kept_end is None else kept_end, last.end, b""))
    return edits


def spliced(document: bytes, edits: Iterable[Edit]) -> bytes:
    """The document with these edits, none of which overlap; itself where there are none."""
    parts: list[bytes] = []
    at = 0
    for edit in sorted(edits):
        parts += document[at : edit.start], edit.text
        at = edit.end
    return b"".join((*parts, document[at:])) if parts else document
