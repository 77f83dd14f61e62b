"""Members of a JSON object changed where they stand."""

import msgspec
import pytest

from confide.protocol.splice import Edit, NamedTwice, members_of, spliced, without

DOCUMENT = b' { "a" : 1 , "b\\u0062":[1.50, {"x":"}"}] ,"c":"\\"," }\n'


def test_members_are_found_with_their_bytes() -> None:
    found = members_of(DOCUMENT)
    assert {name: member.of(DOCUMENT) for name, member in found.items()} == {
        "a": b"1",
        "bb": b'[1.50, {"x":"}"}]',
        "c": b'"\\","',
    }
    assert members_of(b" {} ") == {}


@pytest.mark.parametrize(
    "document",
    [
        b'{"a":1,"a":1}',
        b'{"a":1,"a":1,"b":2}',
        b'{"a":1,"a":12}',
        b'{"a":12,"a":1}',
        b'{"a":{},"b":0,"a":[]}',
        b'{"a":"x","\\u0061":"x"}',
    ],
)
def test_a_member_that_stands_twice_is_refused(document: bytes) -> None:
    with pytest.raises(NamedTwice):
        members_of(document)


@pytest.mark.parametrize("document", [b"", b"[]", b'"a"', b'{"a"}', b'{"a":1} x'])
def test_what_is_no_object_is_no_document(document: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        members_of(document)


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (set(), b'{ "a":1 , "b":2, "c":3 }'),
        ({"a"}, b'{ "b":2, "c":3 }'),
        ({"b"}, b'{ "a":1 , "c":3 }'),
        ({"c"}, b'{ "a":1 , "b":2 }'),
        ({"a", "b"}, b'{ "c":3 }'),
        ({"b", "c"}, b'{ "a":1 }'),
        ({"a", "c"}, b'{ "b":2 }'),
        ({"a", "b", "c"}, b"{  }"),
        ({"other"}, b'{ "a":1 , "b":2, "c":3 }'),
    ],
)
def test_what_is_taken_out_leaves_no_separator_over(names: set[str], left: bytes) -> None:
    document = b'{ "a":1 , "b":2, "c":3 }'
    assert spliced(document, without(members_of(document), names)) == left


def test_edits_in_any_order_give_the_same_document() -> None:
    edits = [Edit(4, 5, b"E"), Edit(0, 1, b"A"), Edit(2, 2, b"-")]
    assert spliced(b"abcdef", edits) == b"Ab-cdEf"
    assert spliced(b"abcdef", []) == b"abcdef"
