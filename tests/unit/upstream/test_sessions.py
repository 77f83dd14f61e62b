"""Attested sessions as an aggregator makes them (wire contract 7.8)."""

import json
from typing import Any

import pytest

from confide.protocol.session import parse_session
from confide.upstream.sessions import CLAIMS, AttestedSession, Shown, new_session

NOW = 1_780_000_000
PIN = bytes.fromhex("5d" * 32)


def session(*, used_s: int = 3600, answer_s: int = 900, **changes: Any) -> AttestedSession:
    members: dict[str, Any] = {
        "pins": frozenset({PIN}),
        "claims": {"tee_attested": "the quote verified"},
        "evidence": b'{"report": "as it came"}',
    }
    shown = Shown(**(members | changes))
    return new_session(
        shown,
        upstream_name="second",
        origin="https://upstream.example.com",
        verifier_id="test/1",
        now=NOW,
        used_s=used_s,
        answer_s=answer_s,
    )


def test_a_verifier_reads_the_document_under_its_id() -> None:
    made = session()
    read = parse_session(made.raw(), made.id)
    assert read.upstream_name == "second"
    assert [binding.spki_sha256 for binding in read.channel_binding] == [PIN.hex()]
    assert read.claims.tee_attested.status == "asserted"
    assert json.loads(made.raw())["claims"].keys() >= set(CLAIMS)


def test_what_was_not_looked_at_is_unknown_and_what_does_not_hold_is_refuted() -> None:
    made = session(refuted={"tcb_up_to_date": "OutOfDate"}, facts={"tcb_status": "OutOfDate"})
    claims = made.document["claims"]
    assert claims["tcb_up_to_date"]["status"] == "refuted"
    assert claims["gpu_attested"] == {"status": "unknown"}
    assert claims["extra"] == {"tcb_status": "OutOfDate"}


@pytest.mark.parametrize(
    ("left_s", "usable_s", "expires_s"), [(None, 3600, 4500), (10_000, 3600, 4500), (2000, 1100, 2000), (10, 5, 10)]
)
def test_an_answer_that_was_begun_ends_within_the_session(left_s: int | None, usable_s: int, expires_s: int) -> None:
    made = session(not_after=None if left_s is None else NOW + left_s)
    assert made.usable_until - NOW == usable_s
    assert made.expires_at - NOW == expires_s
    assert NOW < made.renew_at < made.usable_until


def test_other_evidence_is_another_session() -> None:
    assert session().id != session(evidence=b"{}").id
