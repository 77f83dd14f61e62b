"""The attacker has a receipt key that was once attested, from an image, a backup, a machine that was thrown away.

Keysets expire so that such a key becomes worthless. The attacker relays plain HTTP, sets no clock of the client's, and
signs receipts that claim to be from before the end. They are refused: at `not_after` everything under a keyset is over.
The twins: a second before the end the same documents hold.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attested_service import ANSWER, AttestedService, Reply, Seen, serving
from callers import EVERY, Kind, asking, assert_refused
from confide import verify_service
from confide.evidence.result import Status
from confide.protocol.keyset import ED25519, PublicKey
from confide.verifier.policy import LONGEST_KEYSET_S

HOUR_S = 3600


@pytest.fixture
def service(tmp_path: Path) -> Iterator[AttestedService]:
    with serving(tmp_path) as service:
        yield service


class Clock:
    """A client's clock, set by the test."""

    def __init__(self) -> None:
        self.now = int(time.time())

    def __call__(self) -> int:
        return self.now


@pytest.mark.parametrize("kind", EVERY)
def test_an_expired_keyset_gets_no_prompt(service: AttestedService, kind: Kind) -> None:
    clock = Clock()
    service.keyset = service.attested_keyset(not_after=clock.now)
    with asking(service, kind, now=clock) as caller:
        error = assert_refused(caller, service, "id-3", prompts=0)
        assert f"got not_after {clock.now}" in error.message
        assert "expected later than" in error.message
        caller.reset()
        clock.now -= 1  # the twin: a second earlier it stands
        service.receipt_members = {"served_at": clock.now}
        assert caller.ask() == ANSWER


@pytest.mark.parametrize("not_after", [0, -1, -(2**53) + 1, 1])
def test_a_keyset_from_long_ago_gets_no_prompt(service: AttestedService, not_after: int) -> None:
    service.keyset = service.attested_keyset(not_after=not_after)
    with asking(service) as caller:
        assert_refused(caller, service, "id-3", prompts=0)


@pytest.mark.parametrize("kind", EVERY)
def test_a_keyset_that_never_expires_gets_no_prompt(service: AttestedService, kind: Kind) -> None:
    service.keyset = service.attested_keyset(not_after=2**53 - 1)
    with asking(service, kind) as caller:
        error = assert_refused(caller, service, "policy-keyset-age", prompts=0)
    assert f"expected at most {LONGEST_KEYSET_S} s" in error.message


@pytest.mark.parametrize("not_after", [2**53, 2**63, 2**64 - 1, 10**30])
def test_a_not_after_beyond_what_can_be_hashed_is_refused(service: AttestedService, not_after: int) -> None:
    service.alter["report"] = lambda reply, _: reply.replacing(
        b'"not_after": %d' % service.keyset.not_after, b'"not_after": %d' % not_after
    )
    with asking(service) as caller:
        assert_refused(caller, service, "id-1", prompts=0)


def test_the_longest_life_is_a_line_of_the_policy(service: AttestedService) -> None:
    clock = Clock()
    service.keyset = service.attested_keyset(not_after=clock.now + HOUR_S)
    assert verify_service(service.url, service.policy(max_keyset_age_s=HOUR_S), now=clock).ok
    result = verify_service(service.url, service.policy(max_keyset_age_s=HOUR_S - 1), now=clock)
    assert [check.name for check in result.checks if check.status is Status.FAIL] == ["policy-keyset-age"]


@pytest.mark.parametrize("kind", EVERY)
def test_a_receipt_from_after_the_keysets_end_is_refused(service: AttestedService, kind: Kind) -> None:
    not_after = service.keyset.not_after
    with asking(service, kind) as caller:
        service.receipt_members = {"served_at": not_after}
        error = assert_refused(caller, service, "receipt-2")
        assert f"got served_at {not_after}" in error.message
        assert f"before not_after {not_after}" in error.message


@pytest.mark.parametrize("kind", EVERY)
def test_a_keyset_that_expires_before_the_receipt_comes_proves_nothing_more(
    service: AttestedService, kind: Kind
) -> None:
    """The stolen key signs with a time from before the end: what counts is the client's own clock."""
    clock = Clock()
    served_at = clock.now
    with asking(service, kind, now=clock) as caller:
        assert caller.ask() == ANSWER
        service.receipt_members = {"served_at": served_at}

        def end(reply: Reply, _: Seen) -> Reply:
            clock.now = service.keyset.not_after
            return reply

        service.alter["receipt"] = end
        error = assert_refused(caller, service, "receipt-2")
        assert service.keyset.digest() in error.message


@pytest.mark.parametrize("kind", EVERY)
def test_a_remembered_keyset_that_has_expired_proves_nothing(service: AttestedService, kind: Kind) -> None:
    """The client verified the old keyset once, and the new one since; the old key answers again, backdated."""
    clock = Clock()
    begin = clock.now
    old, old_signer = service.attested_keyset(not_after=begin + HOUR_S), service.signer
    service.keyset = old
    with asking(service, kind, now=clock) as caller:
        assert caller.ask() == ANSWER
        clock.now = begin + HOUR_S
        service.now = clock
        new_signer = service.attester.workload_keys.receipt(2)
        signing = PublicKey(new_signer.key_id, ED25519, new_signer.public_key_hex)
        service.keyset = service.attested_keyset(receipt_signing_keys=(signing,))
        service.signer = new_signer
        assert caller.ask() == ANSWER
        service.signer = old_signer
        service.receipt_members = {"served_at": begin + HOUR_S - 1, "keyset_digest": old.digest()}
        assert_refused(caller, service, "receipt-2")
        # The twin: a receipt of that time, while the old keyset stands.
        caller.reset()
        clock.now = begin + HOUR_S - 1
        service.receipt_members["served_at"] = clock.now
        assert caller.ask() == ANSWER


def test_the_service_is_verified_anew_before_its_keyset_ends(service: AttestedService) -> None:
    clock = Clock()
    service.keyset = service.attested_keyset(not_after=clock.now + HOUR_S)
    with asking(service, now=clock) as caller:
        assert caller.ask() == ANSWER
        clock.now += HOUR_S - 300
        service.alter["report"] = lambda reply, _: reply.but(b"{}")
        assert_refused(caller, service, "id-1", prompts=0)
