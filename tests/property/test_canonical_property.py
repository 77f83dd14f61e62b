"""There is one canonical form, the one of RFC 8785, or none; and only DocumentError says so."""

import json
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from aci_strategies import ascii_names, hashable_values, json_values, texts
from confide.protocol.canonical import MAX_DEPTH, MAX_INTEGER, DocumentError, canonical, parse_document

lone_surrogates = st.builds("".join, st.tuples(texts, st.characters(categories=["Cs"]), texts))
unhashable = (
    st.floats()
    | st.integers(min_value=MAX_INTEGER + 1)
    | st.integers(max_value=-MAX_INTEGER - 1)
    | lone_surrogates
    | st.binary()
    | st.dictionaries(st.text(st.characters(min_codepoint=128, codec="utf-8"), min_size=1), st.none(), min_size=1)
)


@st.composite
def with_one_of(draw: st.DrawFn, poison: st.SearchStrategy[Any]) -> Any:
    """A value that is fine but for one thing, somewhere in it."""
    value = draw(poison)
    for _ in range(draw(st.integers(0, 4))):
        beside = draw(hashable_values)
        value = draw(st.sampled_from([[value], [beside, value], {"a": beside, "b": value}]))
    return value


def nested(shape: list[bool], core: str) -> str:
    """JSON text of `core` inside arrays and objects."""
    opened = "".join('{"a":' if is_object else "[" for is_object in shape)
    return opened + core + "".join("}" if is_object else "]" for is_object in reversed(shape))


@given(hashable_values)
def test_the_form_is_that_of_rfc_8785_and_stable(value: Any) -> None:
    form = canonical(value)
    assert form == rfc8785.dumps(value)
    assert canonical(json.loads(form)) == form


@given(st.dictionaries(ascii_names, hashable_values), st.randoms())
def test_the_order_of_members_does_not_matter(members: dict[str, Any], random: Any) -> None:
    shuffled = list(members.items())
    random.shuffle(shuffled)
    assert canonical(dict(shuffled)) == canonical(members)


@given(hashable_values, hashable_values)
def test_different_values_have_different_forms(one: Any, other: Any) -> None:
    # Python takes True and 1 for equal; their JSON texts tell them apart.
    is_same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (canonical(one) == canonical(other)) is is_same


@given(with_one_of(unhashable))
def test_what_others_could_round_or_not_write_is_refused(value: Any) -> None:
    with pytest.raises(DocumentError):
        canonical(value)


@given(json_values)
def test_a_document_is_read_as_the_value_it_is_or_refused(value: Any) -> None:
    raw = json.dumps(value).encode()
    try:
        read = parse_document(raw, what="it")
    except DocumentError:
        assert not isinstance(value, dict) or any(word in raw for word in (b"\\ud", b"NaN", b"Infinity"))
        return
    assert json.dumps(read) == json.dumps(value)
    json.dumps(read, ensure_ascii=False).encode()


@given(st.binary() | st.binary().map(lambda data: b'{"a":"' + data + b'"}'))
def test_bytes_are_read_as_json_reads_them_or_refused(raw: bytes) -> None:
    try:
        read = parse_document(raw, what="it")
    except DocumentError:
        return
    assert read == json.loads(raw)


@given(st.dictionaries(texts, hashable_values, min_size=1), hashable_values, st.lists(st.booleans(), max_size=4))
def test_a_name_that_stands_twice_is_refused_anywhere(members: dict[str, Any], value: Any, shape: list[bool]) -> None:
    again = next(iter(members))
    text = json.dumps(members)[:-1] + f", {json.dumps(again)}: {json.dumps(value)}}}"
    with pytest.raises(DocumentError, match="stands twice"):
        parse_document(nested([True, *shape], text).encode(), what="it")


@given(st.integers(1, 2 * MAX_DEPTH) | st.integers(900, 100_000), st.sampled_from([[True], [False], [True, False]]))
def test_nesting_is_read_to_a_hundred_levels_below_the_root_and_never_exhausts_the_stack(
    depth: int, pattern: list[bool]
) -> None:
    shape = [True, *(pattern * depth)][:depth]
    try:
        read = parse_document(nested(shape, "1").encode(), what="it")
    except DocumentError:
        assert depth > MAX_DEPTH + 1
        return
    assert depth <= MAX_DEPTH + 1
    assert canonical(read) == nested(shape, "1").encode()
