"""A log that replays, and still says something else than was measured.

The attacker runs an application of their own on a genuine dstack machine, and wants to be taken for another one. The
machine, its firmware and its quote are honest. The attacker's application may extend RTMR3 once it runs (images up to
0.5), and whoever relays the log may write it as they like, as long as it replays to the registers.
"""

import json

import pytest

from confide.evidence.dstack import DstackEvidence, DstackResult, verify_dstack
from confide.evidence.policy import DstackPolicy
from confide.evidence.result import Status
from confide.verifier.software import check_compose
from dstack_builders import COMPOSE, COMPOSE_HASH, Document, boot_log, judged, quote_of, runtime

ATTACKERS_HASH = bytes(32)
MEASURED = boot_log(compose_hash=ATTACKERS_HASH)
POLICY = DstackPolicy(compose_hashes=frozenset({COMPOSE_HASH.hex()}))


def verdict(measured: list[Document], shown: list[Document]) -> DstackResult:
    """What a relying party finds, who pinned the honest application and is shown its text."""
    evidence = DstackEvidence(event_log=shown, app_compose=COMPOSE)
    return verify_dstack(judged(quote_of(measured)), evidence, POLICY)


def older_check(measured: list[Document], shown: list[Document]) -> Status:
    """The same for reports that are checked for their application alone."""
    return check_compose("software", COMPOSE, json.dumps(shown), judged(quote_of(measured))).status


def test_the_honest_application_passes() -> None:
    honest = boot_log()
    assert verdict(honest, honest).ok
    assert older_check(honest, honest) is Status.PASS


def test_the_end_of_the_boot_is_not_hidden_by_another_event_type() -> None:
    """The true events become boot entries, which carry a digest and no meaning; the forged ones come first then."""
    forged = [runtime("app-id", bytes(20)), runtime("compose-hash", COMPOSE_HASH), runtime("system-ready")]
    measured = [*MEASURED, *forged]
    shown = [event | {"event_type": 6} if event["imr"] == 3 else event for event in MEASURED] + forged
    assert verdict(measured, measured).rejected  # as it was measured, the attacker's application stands there
    assert verdict(measured, shown).rejected
    assert older_check(measured, shown) is Status.FAIL


@pytest.mark.parametrize("hidden", ["compose-hash", "system-ready"])
def test_a_single_event_is_not_hidden_by_another_type_either(hidden: str) -> None:
    forged = [runtime("compose-hash", COMPOSE_HASH), runtime("system-ready")]
    shown = [event | {"event_type": 6} if event["event"] == hidden else event for event in MEASURED] + forged
    assert verdict([*MEASURED, *forged], shown).rejected
    assert older_check([*MEASURED, *forged], shown) is Status.FAIL


def test_an_event_is_not_moved_to_another_register() -> None:
    forged = [runtime("compose-hash", COMPOSE_HASH), runtime("system-ready")]
    shown = [event | {"imr": 2} if event["event"] == "compose-hash" else event for event in MEASURED] + forged
    assert verdict([*MEASURED, *forged], shown).rejected


def test_a_name_is_not_cut_elsewhere() -> None:
    """Name and payload are joined by a colon before they are hashed, so a payload with a colon has two readings."""
    measured = boot_log(key_provider=b'{"name":"none","id":""}')
    shown = [
        runtime('key-provider:{"name"', b'"none","id":""}') if event["event"] == "key-provider" else event
        for event in measured
    ]
    assert [event["digest"] for event in shown] == [event["digest"] for event in measured]
    result = verdict(measured, shown)
    assert result.rejected
    assert result.boot is None


def test_a_digest_does_not_speak_for_a_payload() -> None:
    shown = [
        event | {"event_payload": COMPOSE_HASH.hex()} if event["event"] == "compose-hash" else event
        for event in MEASURED
    ]
    assert verdict(MEASURED, shown).rejected
    assert older_check(MEASURED, shown) is Status.FAIL
