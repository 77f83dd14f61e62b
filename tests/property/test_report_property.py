"""A report binds one keyset to one nonce; a keyset that was changed anywhere is refused or is another keyset."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aci_documents import NONCE, Document, Way, keyset, keyset_document, report
from aci_strategies import changes, edited_bytes, json_values
from confide.protocol.canonical import DocumentError
from confide.protocol.keyset import Keyset, parse_keyset
from confide.protocol.report import Report, binds, parse_report

BOUND = ("workload_keyset", "workload_keyset_digest", "report_data", "quote_report_data")
nonces = st.none() | st.binary(min_size=32, max_size=32).map(bytes.hex)


def read(raw: bytes) -> Report | None:
    """None when it was refused. Any other exception fails the test."""
    try:
        return parse_report(raw)
    except DocumentError:
        return None


def read_keyset(document: object) -> tuple[Keyset, str] | None:
    try:
        return parse_keyset(document)
    except DocumentError:
        return None


@given(changes(keyset_document()))
def test_a_changed_keyset_is_refused_or_has_another_digest(change: tuple[Way, Document]) -> None:
    got = read_keyset(change[1])
    assert got is None or got[1] != keyset().digest()


@given(json_values | st.dictionaries(st.sampled_from(sorted(keyset_document())), json_values))
def test_any_value_is_no_keyset(value: Any) -> None:
    assert read_keyset(value) is None


@given(st.dictionaries(st.sampled_from(sorted(keyset_document())), json_values, max_size=2), st.text(max_size=4))
def test_any_member_of_a_keyset_can_be_asked_about(members: Document, host: str) -> None:
    got = read_keyset({**keyset_document(), **members})
    if got is not None:
        assert all(len(pin) == 32 for pin in got[0].tls_pins(host))
        assert any(got[0].receipt_key(key.key_id) for key in got[0].receipt_signing_keys)


@given(nonces, nonces)
def test_a_report_binds_its_own_nonce_and_no_other(asked: str | None, given_nonce: str | None) -> None:
    got = parse_report(json.dumps(report(given_nonce)).encode())
    assert binds(got, given_nonce) is None
    assert (binds(got, asked) is None) is (asked == given_nonce)


@given(changes(report()))
def test_a_changed_report_is_refused_or_binds_the_same_keyset(change: tuple[Way, Document]) -> None:
    way, changed = change
    got = read(json.dumps(changed).encode())
    if got is not None and binds(got, NONCE) is None:
        assert got.keyset_digest == keyset().digest()
        assert not set(BOUND) & set(way) or way[-1] == "quote_report_data"


@given(edited_bytes(json.dumps(report()).encode()))
def test_a_report_with_other_bytes_is_refused_or_binds_the_same_keyset(raw: bytes) -> None:
    got = read(raw)
    if got is not None and binds(got, NONCE) is None:
        assert got.keyset_digest == keyset().digest()


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused(raw: bytes) -> None:
    assert read(raw) is None
