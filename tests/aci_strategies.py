"""What hypothesis draws for documents: values of every kind, and one change to an honest document."""

import json
from typing import Any

from hypothesis import strategies as st

from aci_documents import Document, Way, removed, replaced, ways
from confide.protocol.canonical import MAX_INTEGER

REMOVED = object()

ascii_names = st.text(st.characters(codec="ascii"), max_size=4)
texts = st.text(st.characters(codec="utf-8"), max_size=6)
hashable_scalars = st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | texts

hashable_values: st.SearchStrategy[Any] = st.recursive(
    hashable_scalars,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(ascii_names, below, max_size=3),
    max_leaves=10,
)

words = st.sampled_from(["", "ab" * 32, "AB" * 32, "sha256:" + "ab" * 32, "00" * 64, "ed25519", "aci/1", "YQ=="])
json_values: st.SearchStrategy[Any] = st.recursive(
    hashable_scalars | words | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=4),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(texts, below, max_size=3),
    max_leaves=6,
)


@st.composite
def changes(draw: st.DrawFn, document: Document) -> tuple[Way, Document]:
    """Where a document was changed, and the changed copy: one value replaced by another, taken away, or added."""
    way = draw(st.sampled_from(ways(document)))
    value = draw(json_values | st.just(REMOVED))
    if value is REMOVED:
        return way, removed(document, way)
    if isinstance(way[-1], str) and draw(st.booleans()):
        way = (*way[:-1], "added")
    changed = replaced(document, way, value)
    if json.dumps(changed) == json.dumps(document):
        changed = removed(document, way)
    return way, changed


@st.composite
def edited_bytes(draw: st.DrawFn, raw: bytes) -> bytes:
    """The bytes with some of them replaced."""
    start = draw(st.integers(0, len(raw)))
    return raw[:start] + draw(st.binary(max_size=4)) + raw[start + draw(st.integers(0, 8)) :]
