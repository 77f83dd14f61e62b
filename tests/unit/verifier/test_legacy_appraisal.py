"""A legacy report by itself, of a service that is to be sent prompts: what it must bind, and what changes do to it."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from confide.attester.simulated import SimulatedAttester
from confide.evidence.result import Status
from confide.protocol.legacy_report import attestation, legacy_report
from confide.protocol.signature import Algo
from confide.protocol.statement import legacy_report_data
from confide.verifier.legacy_report import LegacyVerification, verify_legacy_report
from confide.verifier.policy import Policy

NONCE, SPKI = bytes(range(32)), bytes.fromhex("5d" * 32)
Document = dict[str, Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attester")


@pytest.fixture(scope="module")
def attester(home: Path) -> SimulatedAttester:
    return SimulatedAttester(home, lambda: int(time.time()))


@pytest.fixture(scope="module")
def policy(attester: SimulatedAttester, home: Path) -> Policy:
    assert attester.simulated
    return Policy(trust_roots=(home / "simulator" / "root.pem",))


def report(attester: SimulatedAttester, *, nonce: bytes = NONCE, spki: bytes | None = SPKI) -> Document:
    data = legacy_report_data(attester.keys.identity(Algo.ECDSA), nonce, spki_sha256=spki)
    evidence = asyncio.run(attester.attest(data))
    entry = attestation(
        signing_address=attester.keys.address(Algo.ECDSA),
        signing_algo=Algo.ECDSA,
        signing_public_key=attester.keys.public_key_hex(Algo.ECDSA),
        nonce=nonce,
        quote=evidence.quote,
        report_data=data,
        event_log=evidence.event_log or "[]",
        vm_config=evidence.vm_config or "{}",
        info=evidence.info,
        simulated=True,
        collateral=evidence.collateral,
        spki_sha256=spki,
    )
    document: Document = json.loads(json.dumps(legacy_report(entry, model_name="vendor/model")))
    return document


def verified(document: object, policy: Policy, *, nonce: bytes = NONCE, spki: bytes = SPKI) -> LegacyVerification:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return verify_legacy_report(raw, nonce=nonce, policy=policy, now=int(time.time()), spki_sha256=spki)


def failing(result: LegacyVerification) -> set[str]:
    return {check.name for check in result.checks if check.status is Status.FAIL}


def test_an_honest_report_holds(attester: SimulatedAttester, policy: Policy) -> None:
    result = verified(report(attester), policy)
    assert result.ok, result.checks
    assert result.signing_address == attester.keys.address(Algo.ECDSA)
    assert result.claims["tee_attested"]


def test_another_nonce_or_another_tls_key_does_not(attester: SimulatedAttester, policy: Policy) -> None:
    assert "binding.report-data" in failing(verified(report(attester), policy, nonce=bytes(32)))
    assert "binding.report-data" in failing(verified(report(attester), policy, spki=bytes(32)))
    assert "channel" in failing(verified(report(attester), policy, spki=bytes(32)))


def test_version_1_binds_no_channel(attester: SimulatedAttester, policy: Policy) -> None:
    assert not verified(report(attester, spki=None), policy).ok


def test_a_fingerprint_that_is_only_written_beside_the_quote_is_not_enough(
    attester: SimulatedAttester, policy: Policy
) -> None:
    document = report(attester, spki=None)
    for entry in (document, *document["all_attestations"], *document["model_attestations"]):
        entry["tls_cert_fingerprint"] = SPKI.hex()
    assert not verified(document, policy).ok


ALTERED: dict[str, Callable[[Document], object]] = {
    "another address": lambda entry: entry.update(signing_address="0x" + "11" * 20),
    "no address": lambda entry: entry.pop("signing_address"),
    "another algorithm": lambda entry: entry.update(signing_algo="ed25519"),
    "no algorithm that exists": lambda entry: entry.update(signing_algo="rot13"),
    "another nonce": lambda entry: entry.update(request_nonce="00" * 32),
    "no quote": lambda entry: (entry.pop("intel_quote"), entry.pop("quote")),
    "a quote that is none": lambda entry: entry.update(intel_quote="zz", quote="zz"),
    "a bit of the quote": lambda entry: entry.update(intel_quote=flipped(entry["intel_quote"])),
    "no collateral": lambda entry: entry.pop("collateral"),
}


def flipped(quote: str) -> str:
    """The quote with a bit of its report data changed."""
    raw = bytearray.fromhex(quote)
    raw[570] ^= 1
    return raw.hex()


@pytest.mark.parametrize("alter", list(ALTERED.values()), ids=list(ALTERED))
def test_whatever_is_altered_it_does_not_hold(
    attester: SimulatedAttester, policy: Policy, alter: Callable[[Document], object]
) -> None:
    document = report(attester)
    for entry in (
        document,
        *document["all_attestations"],
        document["gateway_attestation"],
        *document["model_attestations"],
    ):
        alter(entry)
    assert not verified(document, policy).ok


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"{}", b'{"all_attestations":7}', b'{"signing_address":7}', b"\xff"])
def test_what_is_no_report_is_a_check_that_failed(policy: Policy, raw: bytes) -> None:
    assert not verified(raw, policy).ok


def test_the_application_has_to_be_on_the_list(attester: SimulatedAttester, policy: Policy) -> None:
    listed = Policy(trust_roots=tuple(policy.trust_roots), compose_hashes=("00" * 32,))
    assert "policy-compose" in failing(verified(report(attester), listed))


def test_a_root_that_nobody_trusts_is_not_enough(attester: SimulatedAttester) -> None:
    assert not verified(report(attester), Policy()).ok
