"""The verifier of answers: the honest proof, and each part of it missing, odd or of something else."""

import base64
import json
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.errors import CannotTell, VerificationError
from confide.evidence.policy import Anchors
from confide.evidence.result import Check, Status, Verdict, Verification
from confide.protocol.signature import Algo
from confide.simulator.tdx import SimulatedTdxPlatform
from confide.verifier.legacy import REQUIRED, claimed_signer, require
from proof_builders import NONCE, NOW, Proof

SPKI, OTHER_SPKI = b"\xaa" * 32, b"\xbb" * 32
TDX = ["tdx.parse", "tdx.tail", "tdx.root", "tdx.quote", "tdx.collateral", "tdx.tcb", "tdx.attributes"]
ORDER = [
    "request-hash",
    "response-hash",
    "signature",
    "signer",
    *TDX,
    "binding.report-data",
    "nonce",
    "software",
    "gpu",
    "channel",
]
ODD = [None, True, 0, -1, 1.5, "", "x", "0x", "\ufffd\u0000", [], [1], {}, {"a": None}]

Honest = Callable[..., Proof]


def ids(result: Verification, status: Status) -> set[str]:
    assert [check.name for check in result.checks] == ORDER
    return {check.name for check in result.checks if check.status is status}


def failed(proof: Proof) -> set[str]:
    result = proof.verify()
    found = ids(result, Status.FAIL)
    assert (result.requiring(REQUIRED).verdict is Verdict.NOT_VERIFIED) is bool(found)
    return found


def reason(result: Verification, check_id: str) -> str:
    return next(check.reason for check in result.checks if check.name == check_id)


@pytest.mark.parametrize("algo", Algo)
@pytest.mark.parametrize("spki", [None, SPKI], ids=["plain", "tls"])
def test_an_honest_answer_is_verified(honest: Honest, algo: Algo, spki: bytes | None) -> None:
    result = honest(algo, spki=spki).verify()
    assert ids(result, Status.SKIP) == ({"gpu"} if spki else {"gpu", "channel"})
    assert ids(result, Status.FAIL) == set()
    assert result.requiring(REQUIRED).verdict is Verdict.VERIFIED
    assert (result.now, result.simulated) == (NOW, True)
    assert result.facts["tdx.tcb_status"] == "UpToDate"
    require(result)


def test_what_is_required_is_what_the_contract_asks() -> None:
    assert {*ORDER} - {"software", "gpu", "channel"} == REQUIRED


def test_one_byte_more_or_less_on_the_wire_is_found(proof: Proof) -> None:
    for changed in (proof.sent + b" ", proof.sent[:-1], b""):
        assert failed(proof.but(sent=changed)) == {"request-hash"}
    for changed in (proof.received + b"\n", proof.received.replace(b"\n", b"\r\n"), b""):
        assert failed(proof.but(received=changed)) == {"response-hash"}


def test_a_three_part_text_is_read_from_its_end(proof: Proof) -> None:
    assert isinstance(proof.signature, dict)
    text = f"a/model:{proof.signature['text']}"
    result = proof.but(signature=proof.signature | {"text": text}).verify()
    assert ids(result, Status.FAIL) == {"signature"}  # the hashes hold; the signature was over another text


@pytest.mark.parametrize("member", ["text", "signature", "signing_address", "signing_algo"])
@pytest.mark.parametrize("odd", [..., *ODD], ids=repr)
def test_a_member_of_the_signature_that_is_missing_or_odd_is_a_failed_check(
    proof: Proof, member: str, odd: object
) -> None:
    assert isinstance(proof.signature, dict)
    document = {name: value for name, value in (proof.signature | {member: odd}).items() if value is not ...}
    assert "signature" in failed(proof.but(signature=document))


def test_another_algorithm_than_the_one_asked_for_does_not_count(honest: Honest) -> None:
    proof = honest(Algo.ED25519).but(algo=Algo.ECDSA)
    assert failed(proof) == {"signature"}
    assert "as asked for" in reason(proof.verify(), "signature")


def test_an_address_in_mixed_case_is_the_same_address(proof: Proof) -> None:
    assert isinstance(proof.signature, dict)
    address = "0x" + proof.signature["signing_address"][2:].upper()
    assert failed(proof.but(signature=proof.signature | {"signing_address": address})) == set()


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"1", b"\xff", b"[" * 100_000, b'{"text":"\\ud800"}'])
def test_documents_that_are_no_json_objects_are_failed_checks(proof: Proof, raw: bytes) -> None:
    assert failed(proof.but(signature=raw)) == {"request-hash", "response-hash", "signature", "tdx.parse", "nonce"}
    assert failed(proof.but(report=raw)) == {"signer", "tdx.parse", "nonce"}
    assert claimed_signer(raw) is None


def test_the_signer_is_looked_up_by_the_address_that_signed(proof: Proof, honest: Honest) -> None:
    assert isinstance(proof.signature, dict)
    assert claimed_signer(json.dumps(proof.signature).encode()) == proof.signature["signing_address"]
    assert failed(proof.but(report=honest(Algo.ED25519).report)) == {"signer", "tdx.parse", "nonce"}
    assert failed(proof.with_entry(signing_address="0x" + "00" * 20)) == {"signer", "tdx.parse", "nonce"}
    assert failed(proof.with_entry(signing_algo="ed25519")) == {"signer", "tdx.parse", "nonce"}


@pytest.mark.parametrize(
    ("member", "checks"),
    [
        ("signing_algo", {"signer", "tdx.parse", "nonce"}),
        ("signing_address", {"signer", "tdx.parse", "nonce"}),
        ("request_nonce", {"nonce"}),
        ("intel_quote", {"tdx.parse"}),
    ],
)
@pytest.mark.parametrize("odd", [..., *ODD], ids=repr)
def test_a_member_of_the_attestation_that_is_missing_or_odd_fails_its_check(
    proof: Proof, member: str, checks: set[str], odd: object
) -> None:
    changed = {member: odd, "quote": ...} if member == "intel_quote" else {member: odd}
    assert failed(proof.with_entry(**changed)) == checks


@pytest.mark.parametrize("odd", [..., None])
def test_without_collateral_it_is_neither_yes_nor_no(proof: Proof, odd: object) -> None:
    result = proof.with_entry(collateral=odd).verify()
    assert result.requiring(REQUIRED).verdict is Verdict.PARTIAL
    assert {"tdx.quote", "tdx.collateral", "binding.report-data", "software"} <= ids(result, Status.SKIP)
    with pytest.raises(CannotTell, match="collateral"):
        require(result)


@pytest.mark.parametrize("odd", [each for each in ODD if each is not None], ids=repr)
def test_odd_collateral_fails(proof: Proof, odd: object) -> None:
    assert failed(proof.with_entry(collateral=odd)) == {"tdx.collateral"}


def test_a_quote_may_come_as_base64(proof: Proof) -> None:
    quote = bytes.fromhex(proof.entry["intel_quote"])
    assert failed(proof.with_entry(intel_quote=base64.b64encode(quote).decode(), quote=...)) == set()
    assert failed(proof.with_entry(intel_quote=..., quote=quote.hex())) == set()


def test_the_quote_must_hold_our_nonce_whatever_the_report_says(proof: Proof) -> None:
    ours = b"\x07" * 32
    payload = json.dumps({"nonce": ours.hex(), "evidence_list": []})
    claiming = proof.but(nonce=ours).with_entry(request_nonce=ours.hex(), nvidia_payload=payload)
    assert failed(claiming) == {"binding.report-data"}
    assert failed(proof.but(nonce=ours)) == {"binding.report-data", "nonce", "gpu"}
    assert failed(proof.with_entry(request_nonce=NONCE.hex().upper())) == set()


def test_a_root_that_was_not_pinned_is_not_trusted(proof: Proof) -> None:
    result = proof.but(anchors=Anchors.default()).verify()
    assert ids(result, Status.FAIL) == {"tdx.root"}
    assert not result.anchors
    other = SimulatedTdxPlatform(b"\x99" * 32, now=NOW).root_der
    assert failed(proof.but(anchors=Anchors.default().with_simulated(other))) == {"tdx.root"}


def test_collateral_is_judged_at_the_time_that_the_caller_gives(proof: Proof) -> None:
    assert failed(proof.but(now=NOW + 40 * 86_400)) == {"tdx.quote"}


def test_the_tls_key_that_was_seen_must_be_the_one_in_the_quote(honest: Honest, proof: Proof) -> None:
    bound = honest(spki=SPKI)
    assert failed(bound.but(spki_sha256=OTHER_SPKI)) == {"binding.report-data", "channel"}
    claiming = bound.but(spki_sha256=OTHER_SPKI).with_entry(tls_cert_fingerprint=OTHER_SPKI.hex())
    assert failed(claiming) == {"binding.report-data"}
    assert "channel" in ids(claiming.verify(), Status.SKIP)
    assert failed(proof.but(spki_sha256=SPKI)) == {"binding.report-data", "channel"}
    assert failed(bound.with_entry(tls_cert_fingerprint=SPKI.hex().upper())) == set()


@pytest.mark.parametrize("odd", [..., *ODD], ids=repr)
def test_a_report_over_tls_that_names_no_key_fails_the_channel(honest: Honest, odd: object) -> None:
    assert failed(honest(spki=SPKI).with_entry(tls_cert_fingerprint=odd)) == {"channel"}


def test_a_quote_with_the_tls_key_does_not_pass_for_one_without(honest: Honest) -> None:
    assert failed(honest(spki=SPKI).but(spki_sha256=None)) == {"binding.report-data"}


def test_plain_http_is_called_unbound(proof: Proof) -> None:
    assert "unbound channel" in reason(proof.verify(), "channel")


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (..., Status.SKIP),
        (None, Status.SKIP),
        ({"nonce": NONCE.hex(), "evidence_list": []}, Status.SKIP),
        ({"nonce": NONCE.hex().upper(), "evidence_list": [{}, {}]}, Status.SKIP),
        ({"nonce": "00" * 32, "evidence_list": []}, Status.FAIL),
        ({"evidence_list": []}, Status.FAIL),
        ({"nonce": NONCE.hex()}, Status.FAIL),
        ({"nonce": 5, "evidence_list": []}, Status.FAIL),
        ({"nonce": NONCE.hex(), "evidence_list": {}}, Status.FAIL),
        ([], Status.FAIL),
    ],
)
def test_gpu_evidence_can_refute_and_never_passes_unverified(proof: Proof, payload: object, status: Status) -> None:
    text = json.dumps(payload) if isinstance(payload, dict | list) else payload
    result = proof.with_entry(nvidia_payload=text).verify()
    found = {check.name: check for check in result.checks}["gpu"]
    assert found.status is status
    assert ("not verified" in found.reason) is (isinstance(payload, dict) and payload.get("evidence_list") == [{}, {}])


def test_a_gpu_payload_that_is_no_text_fails(proof: Proof) -> None:
    for odd in ("{", "", "[" * 5000, 5, {"nonce": NONCE.hex(), "evidence_list": []}):
        assert failed(proof.with_entry(nvidia_payload=odd)) == {"gpu"}


def test_nothing_from_the_peer_reaches_a_terminal_unchecked(proof: Proof) -> None:
    escape = "\x1b[2K\nVERIFIED"
    assert isinstance(proof.signature, dict)
    results = [
        proof.but(signature=proof.signature | {"signing_address": escape}).verify(),
        proof.but(signature=proof.signature | {"signing_algo": escape}).verify(),
        proof.with_entry(request_nonce=escape).verify(),
        proof.with_entry(nvidia_payload=json.dumps({"nonce": escape, "evidence_list": []})).verify(),
        proof.with_entry(collateral={escape: escape}).verify(),
        proof.but(spki_sha256=SPKI).with_entry(tls_cert_fingerprint=escape).verify(),
    ]
    for result in results:
        assert all(check.reason.isprintable() for check in result.checks)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
MEMBERS = [
    "signing_address",
    "signing_algo",
    "request_nonce",
    "intel_quote",
    "collateral",
    "nvidia_payload",
    "event_log",
    "info",
    "tls_cert_fingerprint",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(signature=JSON | st.binary(max_size=40), report=JSON | st.binary(max_size=40))
def test_any_documents_give_a_result_and_never_a_yes(proof: Proof, signature: object, report: object) -> None:
    for odd in (proof.but(signature=signature), proof.but(report=report)):
        result = odd.verify()
        assert [check.name for check in result.checks] == ORDER
        assert result.requiring(REQUIRED).verdict is Verdict.NOT_VERIFIED


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(member=st.sampled_from(MEMBERS), value=JSON)
def test_any_member_of_the_attestation_gives_a_result(proof: Proof, member: str, value: object) -> None:
    result = proof.with_entry(**{member: value}).verify()
    assert [check.name for check in result.checks] == ORDER


def result_of(*checks: Check) -> Verification:
    return Verification(NOW, checks, (), {})


def test_require_names_the_check_that_failed(proof: Proof) -> None:
    with pytest.raises(VerificationError, match="request-hash") as caught:
        require(proof.but(sent=b"another").verify())
    assert caught.value.check == "request-hash"
    assert caught.value.remedy


def test_a_failed_check_counts_more_than_missing_collateral(proof: Proof) -> None:
    with pytest.raises(VerificationError, match="response-hash"):
        require(proof.but(received=b"another").with_entry(collateral=...).verify())


def test_a_required_check_that_was_skipped_is_no_yes() -> None:
    passing = [Check(each, Status.PASS, "well") for each in sorted(REQUIRED - {"nonce"})]
    with pytest.raises(VerificationError, match="nonce"):
        require(result_of(*passing, Check("nonce", Status.SKIP, "not looked at")))
