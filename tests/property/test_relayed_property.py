"""Whatever a client writes, everything that is not ours to change arrives as it was written."""

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import InvalidRequest
from confide.protocol.chat_relayed import parse_relayed, relayed_body
from confide.protocol.splice import members_of, spliced, without
from confide.protocol.sse import Cutter, Framer

texts = st.text(st.characters(codec="utf-8"), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)
spaces = st.text(" \t\n\r", max_size=3)
OURS = {"model", "provider", "priority", "cache_salt", "stream"}
others = st.dictionaries(texts.filter(lambda name: name not in OURS), values, max_size=5)


@st.composite
def objects(draw: st.DrawFn, members: dict[str, Any]) -> bytes:
    """The object as some program might write it: any spaces, any escapes."""
    parts = []
    for name, value in members.items():
        encoded_name = json.dumps(name, ensure_ascii=draw(st.booleans()))
        encoded_value = json.dumps(value, ensure_ascii=draw(st.booleans()))
        before, after = draw(spaces), draw(spaces)
        parts.append(f"{before}{encoded_name}{draw(spaces)}:{draw(spaces)}{encoded_value}{after}")
    inside = ",".join(parts) or draw(spaces)
    return f"{draw(spaces)}{{{inside}}}{draw(spaces)}".encode()


@given(st.data())
def test_members_are_found_where_they_stand(data: st.DataObject) -> None:
    members = data.draw(st.dictionaries(texts, values, max_size=6))
    document = data.draw(objects(members))
    found = members_of(document)
    assert list(found) == list(members)
    assert {name: json.loads(member.of(document)) for name, member in found.items()} == json.loads(document)


@given(st.data())
def test_taking_members_out_leaves_the_bytes_of_the_others(data: st.DataObject) -> None:
    members = data.draw(st.dictionaries(texts, values, min_size=1, max_size=6))
    document = data.draw(objects(members))
    gone = set(data.draw(st.lists(st.sampled_from(list(members)))))
    found = members_of(document)
    left = spliced(document, without(found, gone))
    assert json.loads(left) == {name: value for name, value in json.loads(document).items() if name not in gone}
    kept = members_of(left)
    assert {name: member.of(left) for name, member in kept.items()} == {
        name: member.of(document) for name, member in found.items() if name not in gone
    }
    if not gone:
        assert left is document


@given(st.data())
def test_only_what_is_ours_is_changed_in_a_prompt(data: st.DataObject) -> None:
    rest = data.draw(others)
    members: dict[str, Any] = {**rest, "model": "client/name"}
    for name, value in data.draw(
        st.lists(st.sampled_from([("priority", 3), ("cache_salt", "theirs"), ("stream", True)]))
    ):
        members[name] = value
    provider = data.draw(
        st.none() | st.dictionaries(texts.filter(lambda name: not name.startswith("aci_")), values, max_size=3)
    )
    constrained = provider is not None and data.draw(st.booleans())
    if provider is not None:
        members["provider"] = {**provider, **({"aci_verified": True} if constrained else {})}
    order = data.draw(st.permutations(list(members)))
    document = data.draw(objects({name: members[name] for name in order}))
    model = data.draw(st.sampled_from(["client/name", "engine-name"]))
    salt = data.draw(st.none() | st.just("ours"))

    request = parse_relayed(document)
    sent = relayed_body(document, request, model=model, drop_constraints=constrained, cache_salt=salt)

    expected = json.loads(document) | {"model": model}
    expected.pop("priority", None)
    if salt is not None:
        expected["cache_salt"] = salt
    if constrained:
        expected["provider"] = {name: value for name, value in expected["provider"].items() if name != "aci_verified"}
        if not expected["provider"]:
            del expected["provider"]
    assert json.loads(sent) == expected
    before, after = members_of(document), members_of(sent)
    for name in rest:
        assert after[name].of(sent) == before[name].of(document)
    if json.loads(document) == expected:
        assert sent is document


@given(st.data())
def test_a_name_that_stands_twice_is_refused_wherever_it_stands(data: st.DataObject) -> None:
    members = data.draw(st.dictionaries(texts, values, min_size=1, max_size=4))
    twice = data.draw(st.sampled_from(list(members)))
    other = data.draw(values)
    pairs = [*members.items(), (twice, other)]
    order = data.draw(st.permutations(pairs))
    inside = ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in order)
    with pytest.raises(InvalidRequest):
        parse_relayed(f'{{{inside}, "model2": "x"}}'.encode())


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_are_refused(body: bytes) -> None:
    try:
        request = parse_relayed(body)
    except InvalidRequest:
        return
    assert msgspec.json.decode(body)["model"] == request.model


lines = st.sampled_from(
    [b"data: x", b"data:y", b"data", b": comment", b"event: e", b"id: 1", b"", b'data: {"a":1}', "data: é".encode()]
)
ends = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(lines, ends), max_size=16), st.lists(st.integers(0, 200), max_size=8), st.booleans())
def test_a_stream_is_cut_into_the_same_events_however_it_is_split(
    written: list[tuple[bytes, bytes]], cuts: list[int], has_mark: bool
) -> None:
    stream = (b"\xef\xbb\xbf" if has_mark else b"") + b"".join(line + end for line, end in written)
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    cutter, framer = Cutter(), Framer()
    raw, data, expected = b"", [], []
    for start, end in pairwise(places):
        pieces = cutter.feed(stream[start:end])
        raw += b"".join(piece.raw for piece in pieces)
        data += [piece.data for piece in pieces if piece.data is not None]
        expected += [event.data for event in framer.feed(stream[start:end])]
    assert raw + cutter.tail == stream
    assert data == expected
