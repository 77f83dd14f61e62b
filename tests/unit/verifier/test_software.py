"""Which application was measured: from mr_config_id, or from the event log behind RTMR3."""

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from confide.evidence.event_log import LogError, read_event_log
from confide.evidence.quote import TdxQuote, parse_quote
from confide.evidence.result import Check, Status
from confide.verifier.software import app_compose, check_compose, compared, logged_compose_hash
from dstack_builders import judged, replayed, runtime
from proof_builders import Proof
from shared_data import TEE

SAMPLES = TEE / "dstack"

Document = dict[str, Any]
Register = Callable[..., TdxQuote]


def software(proof: Proof) -> Check:
    return next(check for check in proof.verify().checks if check.name == "software")


def sample(name: str) -> Document:
    path = SAMPLES / name
    if not path.exists():
        pytest.skip("the shared TEE samples are not beside this checkout")
    document: Document = json.loads(path.read_text())
    return document


COMPOSE = "the application"
COMPOSE_HASH = sha256(COMPOSE.encode()).digest()
BOOT = [runtime("system-preparing"), runtime("compose-hash", COMPOSE_HASH), runtime("system-ready")]


@pytest.fixture
def with_log(proof: Proof) -> Callable[[object, bytes], Check]:
    """The check for an event log and an RTMR3, in a quote whose mr_config_id is not used."""
    quote = parse_quote(bytes.fromhex(proof.entry["intel_quote"]))

    def check(log: object, rtmr3: bytes) -> Check:
        measured = replace(quote, mr_config_id=bytes(48), rtmr3=rtmr3)
        events = None if log is None else read_event_log(log)
        return compared("software", COMPOSE_HASH, measured, events)

    return check


def test_the_shown_application_is_the_one_in_mr_config_id(proof: Proof) -> None:
    found = software(proof)
    assert found.status is Status.PASS
    assert "mr_config_id" in found.reason


def test_another_application_is_found(proof: Proof) -> None:
    info = proof.entry["info"]
    tcb_info = json.loads(info["tcb_info"])
    for changed in (tcb_info["app_compose"] + " ", ""):
        forged = proof.with_entry(info=info | {"tcb_info": tcb_info | {"app_compose": changed}})
        assert software(forged).status is Status.FAIL


def test_tcb_info_may_be_an_object_or_its_text(proof: Proof) -> None:
    info = proof.entry["info"]
    parsed = info | {"tcb_info": json.loads(info["tcb_info"])}
    assert software(proof.with_entry(info=parsed)).status is Status.PASS


@pytest.mark.parametrize("info", [..., None, {}, {"tcb_info": None}, {"tcb_info": {}}, {"tcb_info": "{}"}], ids=repr)
def test_without_app_compose_nothing_can_be_said(proof: Proof, info: object) -> None:
    found = software(proof.with_entry(info=info))
    assert (found.status, found.reason) == (Status.SKIP, "the report shows no app_compose")


@pytest.mark.parametrize(
    "info", [5, [], "text", {"tcb_info": 5}, {"tcb_info": "{"}, {"tcb_info": "[]"}, {"tcb_info": {"app_compose": 5}}]
)
def test_odd_types_fail(proof: Proof, info: object) -> None:
    assert software(proof.with_entry(info=info)).status is Status.FAIL


def test_a_quote_that_did_not_verify_measures_nothing(proof: Proof) -> None:
    assert software(proof.with_entry(collateral=...)).status is Status.SKIP


@pytest.mark.parametrize("as_text", [True, False])
def test_the_event_log_serves_where_mr_config_id_does_not(
    with_log: Callable[[object, bytes], Check], as_text: bool
) -> None:
    found = with_log(json.dumps(BOOT) if as_text else BOOT, replayed(BOOT))
    assert found.status is Status.PASS
    assert "RTMR3" in found.reason


def test_without_either_nothing_can_be_said(with_log: Callable[[object, bytes], Check]) -> None:
    assert with_log(None, bytes(48)).status is Status.SKIP


def test_another_application_in_the_log_is_found(with_log: Callable[[object, bytes], Check]) -> None:
    other = [BOOT[0], runtime("compose-hash", bytes(32)), BOOT[2]]
    assert with_log(other, replayed(other)).status is Status.FAIL


def refused(log: list[Document], rtmr3: bytes) -> str:
    with pytest.raises(LogError) as caught:
        logged_compose_hash(read_event_log(log), rtmr3)
    return str(caught.value)


def test_a_log_that_is_not_the_registers_is_refused() -> None:
    assert "replays to" in refused(BOOT, bytes(48))
    assert "replays to" in refused([*BOOT, runtime("later")], replayed(BOOT))


def test_the_one_compose_hash_before_system_ready_counts() -> None:
    later = [BOOT[0], BOOT[2], BOOT[1]]
    assert "no compose-hash" in refused(later, replayed(later))
    twice = [*BOOT[:2], BOOT[1], BOOT[2]]
    assert "compose-hash stands 2 times" in refused(twice, replayed(twice))
    assert "system-ready" in refused(BOOT[:2], replayed(BOOT[:2]))


@pytest.mark.parametrize("log", ["{", "5", '[{"imr":3}]'], ids=repr)
def test_an_odd_log_fails(proof: Proof, log: str) -> None:
    assert software(proof.with_entry(event_log=log)).status is Status.FAIL
    tdx = judged(parse_quote(bytes.fromhex(proof.entry["intel_quote"])))
    assert check_compose("name", COMPOSE, log, tdx).status is Status.FAIL


def test_a_text_without_bytes_is_no_application(proof: Proof) -> None:
    tdx = judged(parse_quote(bytes.fromhex(proof.entry["intel_quote"])))
    assert check_compose("name", "\ud800", None, tdx).status is Status.FAIL


def test_a_real_guests_log_leads_to_its_real_application() -> None:
    quoted, info = sample("vllm-proxy_dstack_quote.json"), sample("vllm-proxy_dstack_info.json")
    quote = parse_quote(bytes.fromhex(quoted["quote"]))
    entry = {"event_log": quoted["event_log"], "info": info}
    compose = app_compose(entry)
    assert compose is not None
    digest = sha256(compose.encode()).digest()
    assert digest.hex() == info["compose_hash"]
    events = read_event_log(entry["event_log"])
    assert compared("software", digest, quote, events).status is Status.PASS
    assert compared("software", digest, quote, None).status is Status.PASS
    assert compared("software", digest, replace(quote, mr_config_id=bytes(48)), events).status is Status.PASS
    assert compared("software", bytes(32), quote, events).status is Status.FAIL


@pytest.mark.parametrize("name", ["verifier_quote-report.json", "verifier_tdx-lite-getquote.json"])
def test_other_real_logs_replay(name: str) -> None:
    quoted = sample(name)
    events = read_event_log(quoted["event_log"])
    assert len(logged_compose_hash(events, parse_quote(bytes.fromhex(quoted["quote"])).rtmr3)) == 32
