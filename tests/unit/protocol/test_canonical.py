"""Documents are read in one way or not at all, and hashed over one form or not at all (wire contract 0.2)."""

import json
from hashlib import sha256
from typing import Any

import pytest
import rfc8785

from confide.protocol.canonical import (
    MAX_DEPTH,
    MAX_INTEGER,
    DocumentError,
    canonical,
    digest_of,
    digest_text,
    of_known_types,
    parse_document,
    typed,
    unbase64,
)
from confide.protocol.keyset import PublicKey


def nested(depth: int, core: Any = 1) -> Any:
    """`core` inside this many arrays."""
    for _ in range(depth):
        core = [core]
    return core


def refused(value: object) -> str:
    with pytest.raises(DocumentError) as caught:
        canonical(value)
    return str(caught.value)


def unread(raw: bytes, **options: int) -> str:
    with pytest.raises(DocumentError) as caught:
        parse_document(raw, what="the paper", **options)
    return str(caught.value)


def test_members_are_sorted_at_every_level_and_texts_are_utf8() -> None:
    value: dict[str, Any] = {"b": [1, {"d": None, "c": True}], "a": 'é"\\\n\x1f\x7f\u2028/', "B": -0, "": "😀"}
    expected = '{"":"😀","B":0,"a":"é\\"\\\\\\n\\u001f\x7f\u2028/","b":[1,{"c":true,"d":null}]}'
    assert canonical(value) == rfc8785.dumps(value) == expected.encode()


def test_a_tuple_has_the_form_of_an_array() -> None:
    assert canonical(((), {"a": (1,)})) == b'[[],{"a":[1]}]'


@pytest.mark.parametrize("integer", [MAX_INTEGER, -MAX_INTEGER, 0])
def test_integers_have_53_bits(integer: int) -> None:
    assert canonical([integer]) == b"[%d]" % integer


@pytest.mark.parametrize("integer", [MAX_INTEGER + 1, -MAX_INTEGER - 1, 2**64, 10**400])
def test_an_integer_that_others_would_round_is_refused(integer: int) -> None:
    assert refused({"a": [integer]}) == "a[0]: an integer beyond 2^53-1 cannot be hashed"
    assert refused(integer).startswith("the value: an integer")


@pytest.mark.parametrize("value", [2.5, 2.0, float("nan"), b"a", bytearray(b"a"), memoryview(b"a"), range(2), {1, 2}])
def test_what_json_parsing_does_not_give_or_others_would_round_is_refused(value: object) -> None:
    assert refused({"a": {"b": value}}).startswith(f"a.b: {type(value).__name__} cannot be hashed")
    assert refused(value).startswith("the value: ")


@pytest.mark.parametrize("name", ["é", "\ud800", 1, None])
def test_a_member_name_is_ascii(name: object) -> None:
    assert refused({name: 1}) == "the document: a member name is not ASCII"
    assert refused({"a": {name: 1}}) == "a: a member name is not ASCII"


def test_half_of_a_surrogate_pair_has_no_form() -> None:
    assert "half of a surrogate pair" in refused({"a": ["\ud83d"]})


@pytest.mark.parametrize("core", [1, "é", None])
def test_a_hundred_levels_below_the_root_are_hashed_and_no_more(core: object) -> None:
    assert canonical(nested(MAX_DEPTH + 1, core)) == rfc8785.dumps(nested(MAX_DEPTH + 1, core))
    assert "nested deeper than 100" in refused(nested(MAX_DEPTH + 2, core))
    assert "nested deeper than 100" in refused(nested(100_000, core))


@pytest.mark.parametrize("name", ["\x1b[2J", "a b", "a" * 65, ""])
def test_a_name_that_could_steer_a_terminal_is_not_repeated(name: str) -> None:
    assert refused({name: {"b": 0.5}}).startswith("….b: float cannot be hashed")


def test_a_digest_string_names_its_hash() -> None:
    digest = sha256(b"a")
    assert digest_of(b"a") == digest_text(digest.digest()) == f"sha256:{digest.hexdigest()}"
    assert digest_of(b"a") != digest_of(b"b")


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_digest_has_32_bytes(length: int) -> None:
    with pytest.raises(ValueError, match=f"32 bytes expected, got {length}"):
        digest_text(bytes(length))


def test_a_document_is_read_as_any_json_reader_reads_it() -> None:
    raw = b' {"a": [1, -0, 2.5, 1e2, "\\u00e9\\ud83d\\ude00", null, true], "b": {"a": {}}}\r\n'
    assert parse_document(raw, what="the paper") == json.loads(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"{}{}",
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":01}',
        b'{"a":+1}',
        b'{"a":"\n"}',
        b"\xef\xbb\xbf{}",
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        '{"a":1}'.encode("utf-16"),
        b'{"a":' + b"1" * 5000 + b"}",
        b'{"a":' + b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_is_not_json_is_refused_and_not_repeated(raw: bytes) -> None:
    assert unread(raw) == "the paper is not JSON"


@pytest.mark.parametrize("raw", [b"[]", b"1", b'"a"', b"null", b"true"])
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    assert unread(raw) == "the paper is not a JSON object"


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"1" + b"0" * 400 + b".0"])
def test_a_number_that_reads_as_infinity_is_refused(number: bytes) -> None:
    assert unread(b'{"a":[%b]}' % number) == "the paper: a number is beyond what can be read"


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity"])
def test_numbers_that_json_has_not_are_refused(number: bytes) -> None:
    assert unread(b'{"a":%b}' % number) == "the paper: NaN and Infinity are not JSON"


@pytest.mark.parametrize("raw", [b'{"a":1,"a":1}', b'{"b":[{"a":1,"c":2,"a":3}]}', b'{"a":1,"\\u0061":2}'])
def test_a_name_that_stands_twice_is_refused(raw: bytes) -> None:
    assert unread(raw) == "the paper: a member name stands twice in one object"


@pytest.mark.parametrize(
    "raw", [b'{"a":"\\ud83d"}', b'{"a":["\\ude00\\ud83d"]}', b'{"\\uDC00":1}', b'{"a":"\xc3\xa9\\udfff"}']
)
def test_half_of_a_surrogate_pair_is_refused(raw: bytes) -> None:
    assert unread(raw) == "the paper: a text holds half of a surrogate pair"


def test_a_hundred_levels_below_the_root_are_read_and_no_more() -> None:
    deepest = json.dumps({"a": nested(MAX_DEPTH, "é")}).encode()
    assert parse_document(deepest, what="the paper") == {"a": nested(MAX_DEPTH, "é")}
    assert canonical(parse_document(deepest, what="the paper"))
    for core in (1, "é"):
        assert "nested deeper than 100" in unread(json.dumps({"a": nested(MAX_DEPTH + 1, core)}).encode())
    lone = b'{"a":' + b"[" * MAX_DEPTH + b'"\\ud800"' + b"]" * MAX_DEPTH + b"}"
    assert "half of a surrogate pair" in unread(lone)


def test_a_document_has_a_greatest_size() -> None:
    assert parse_document(b'{"a":1}', what="the paper", most_bytes=7) == {"a": 1}
    assert unread(b'{"a":1} ', most_bytes=7) == "the paper is larger than 7 bytes"
    assert unread(b" " * (4 * 1024 * 1024 + 1)) == "the paper is larger than 4194304 bytes"


def test_a_wrong_member_is_named() -> None:
    with pytest.raises(DocumentError) as caught:
        typed({"key_id": "a", "algo": 7, "public_key": "b"}, PublicKey, what="the key")
    assert str(caught.value) == "the key: Expected `str`, got `int` - at `$.algo`"


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [1]])
def test_only_an_integer_is_an_integer(value: object) -> None:
    with pytest.raises(DocumentError, match="Expected `int`"):
        typed(value, int, what="the number")


@pytest.mark.parametrize("kind", [int, bool, dict, int | None])
def test_half_of_a_surrogate_pair_is_no_member_of_another_type(kind: Any) -> None:
    with pytest.raises(DocumentError, match="half of a surrogate pair"):
        typed("\ud800", kind, what="the number")


@pytest.mark.parametrize("value", [1, 0, "true", None])
def test_only_a_boolean_is_a_boolean(value: object) -> None:
    with pytest.raises(DocumentError, match="Expected `bool`"):
        typed(value, bool, what="the flag")


def test_entries_of_other_types_keep_nothing_but_their_type() -> None:
    entries = [{"type": "a", "x": 1}, {"type": "b", "x": 1}, {"x": 1}, {"type": ["a"], "x": 1}, 7]
    kept = [{"type": "a", "x": 1}, {"type": "b"}, {"type": None}, {"type": ["a"]}, 7]
    assert of_known_types(entries, ("a", "c")) == kept
    assert of_known_types(None, ("a",)) is None


@pytest.mark.parametrize(("text", "data"), [("", b""), ("YQ==", b"a"), ("YWI=", b"ab"), ("+/+/", b"\xfb\xff\xbf")])
def test_base64_is_read(text: str, data: bytes) -> None:
    assert unbase64(text, what="the body") == data


@pytest.mark.parametrize(
    "text",
    ["YQ", "YQ=", "YQ===", "YQ==\n", " YQ==", "YR==", "YWJ=", "-_-_", "=", "====", "YQ==YQ==", "é", "\ud800", "٣٣٣٣"],
)
def test_what_is_not_the_one_base64_text_of_some_bytes_is_refused(text: str) -> None:
    with pytest.raises(DocumentError, match=r"^the body is not base64$"):
        unbase64(text, what="the body")
