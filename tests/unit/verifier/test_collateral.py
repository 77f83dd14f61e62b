"""What a report lacks is got elsewhere: from a file, from the vendors, or not at all; and is checked like the rest."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from aci_service import NONCE, AciService, appraised, named
from confide.client.auditing import audit
from confide.collateral.bundle import bundle_of, read_bundle, write_bundle
from confide.collateral.tdx import TdxCollateral
from confide.errors import ConfigError, VerificationError
from confide.evidence.policy import GpuPolicy, SnpPolicy
from confide.evidence.result import Status, Verdict
from confide.protocol.bundle import FORMAT, Bundle
from confide.protocol.statement import aci_report_data
from confide.simulator.gpu import gpu_payload
from confide.simulator.nras import NrasFault, SimulatedNras
from confide.simulator.pccs import PccsFault, SimulatedPccs
from confide.verifier.appraisal import ServiceVerification
from confide.verifier.collateral import NOTHING, NOTHING_HELD, Collateral, HeldCollateral, Supplied
from confide.verifier.policy import Policy
from gpu_builders import SEED as GPU_SEED
from gpu_builders import gpus
from proof_builders import NOW
from snp_builders import platform as snp_platform
from vendors import Vendors, serving

HOUR_S = 60 * 60


@pytest.fixture
def bare(service: AciService) -> AciService:
    """A service that sends its quote alone."""
    return service.but(evidence={"collateral": ...})


@pytest.fixture
def start(service: AciService) -> Iterator[Callable[..., Vendors]]:
    """Start the vendors of the simulated platforms, with these knobs."""
    honest: dict[str, Any] = {
        "platform": service.platform,
        "now": NOW - HOUR_S,
        "snp": snp_platform(),
        "nras": SimulatedNras(GPU_SEED),
    }
    with ExitStack() as stack:
        yield lambda **knobs: stack.enter_context(serving(SimulatedPccs(**(honest | knobs))))


@pytest.fixture
def asking(tmp_path: Path) -> Callable[..., Collateral]:
    """A source that asks these vendors, and keeps what they say in a directory of the test's."""

    def opened(vendors: Vendors | None = None, **options: Any) -> Collateral:
        url = "http://127.0.0.1:1" if vendors is None else vendors.url
        addresses = {"pccs_url": url, "kds_url": url, "nras_url": url}
        return Collateral(cache=tmp_path / "cache", **(addresses | options))

    return opened


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("socket.socket", refused)
    monkeypatch.setattr("socket.create_connection", refused)


@pytest.fixture
def trusting_snp(tmp_path: Path) -> Callable[..., Policy]:
    root = tmp_path / "snp-root.pem"
    root.write_text(snp_platform().root_pem)
    return lambda **asked: Policy(trust_roots=(root,), **asked)


@pytest.fixture
def trusting_gpu(tmp_path: Path, trusting: Callable[..., Policy]) -> Callable[..., Policy]:
    """A policy that demands NVIDIA's verdict on the GPUs."""
    root = tmp_path / "gpu-root.pem"
    root.write_text(gpus()[0].root_pem)
    demanding = GpuPolicy(require_nras=True)
    return lambda **asked: Policy(trust_roots=(*trusting().trust_roots, root), gpu=demanding, **asked)


def judged(service: AciService, policy: Policy, collateral: HeldCollateral, now: int = NOW) -> ServiceVerification:
    """What a relying party makes of the service's report and what it gets besides."""
    raw = service.report()
    return appraised(raw, policy, now=now, supplied=collateral.supply(raw, policy, now))


def audited(verified: ServiceVerification, policy: Policy, files: HeldCollateral = NOTHING_HELD) -> Verdict:
    """What an auditor makes of the bundle, later and offline."""
    assert verified.proof is not None
    bundle = Bundle(format=FORMAT, service=verified.proof)
    return audit(bundle, policy, at=None, now=NOW + HOUR_S, collateral=files).verdict


def snp_service(service: AciService, *without: str) -> AciService:
    machine = snp_platform()
    evidence = {
        "quote": ...,
        "snp_report": machine.report(aci_report_data(service.digest, NONCE), bytes(32)).hex(),
        "vcek": machine.vcek_pem,
        "cert_chain": machine.chain_pem,
        "simulated": True,
    }
    return service.but(tee_type="sev_snp", evidence=evidence | dict.fromkeys(without, ...))


# TDX


def test_a_whole_report_needs_nobody(service: AciService, trusting: Callable[..., Policy]) -> None:
    raw, policy = service.report(), trusting()
    assert not Collateral(offline=True).is_wanted(raw, policy)
    assert not Collateral(offline=True).is_wanted(b"no report", policy)
    assert Collateral(offline=True).supply(raw, policy, NOW) == NOTHING
    assert NOTHING.bundle_text(created_at=NOW) is None


def test_a_bare_quote_is_verified_with_what_the_vendor_says_and_asked_about_once(
    bare: AciService, trusting: Callable[..., Policy], start: Callable[..., Vendors], asking: Callable[..., Collateral]
) -> None:
    vendors = start()
    without = judged(bare, trusting(), NOTHING_HELD)
    assert named(without.checks, "id-1").status is Status.SKIP
    assert not without.ok
    for _ in range(2):
        verified = judged(bare, trusting(), asking(vendors))
        assert (verified.verdict, verified.lacking) == (Verdict.VERIFIED, ())
    assert len(vendors.asked) == 4
    vendors.services.fault = PccsFault.FAILING
    assert judged(bare, trusting(), asking(vendors, offline=True)).ok  # what was kept still counts


@pytest.mark.usefixtures("no_sockets")
def test_offline_nobody_is_asked_and_what_is_lacking_is_named(
    bare: AciService, trusting: Callable[..., Policy], asking: Callable[..., Collateral]
) -> None:
    verified = judged(bare, trusting(), asking(offline=True))
    assert not verified.ok
    [lacking] = verified.lacking
    assert "not kept on this machine" in lacking.message
    assert named(verified.checks, "tdx.collateral").status is Status.SKIP


def test_a_vendor_that_is_away_is_no_failure_of_the_service(
    bare: AciService, trusting: Callable[..., Policy], asking: Callable[..., Collateral]
) -> None:
    verified = judged(bare, trusting(), asking())
    assert (verified.verdict, verified.rejected) == (Verdict.PARTIAL, False)
    assert "cannot be asked" in verified.lacking[0].message


def test_what_a_false_vendor_says_is_refused(
    bare: AciService, trusting: Callable[..., Policy], start: Callable[..., Vendors], asking: Callable[..., Collateral]
) -> None:
    vendors = start(fault=PccsFault.WRONG_CHAIN)
    verified = judged(bare, trusting(), asking(vendors))
    assert not verified.ok
    assert verified.lacking  # another root's is not even kept


@pytest.mark.usefixtures("no_sockets")
@pytest.mark.parametrize("is_bundle", [True, False], ids=["bundle", "one-platforms"])
def test_a_file_will_do(bare: AciService, trusting: Callable[..., Policy], tmp_path: Path, is_bundle: bool) -> None:
    text = json.dumps(bare.platform.collateral(NOW - HOUR_S))
    bundle = bundle_of(created_at=NOW, tdx=(TdxCollateral.parse(text),))
    file = tmp_path / "collateral.json"
    file.write_bytes(write_bundle(bundle) if is_bundle else text.encode())
    verified = judged(bare, trusting(), Collateral(offline=True, file=file))
    assert verified.verdict is Verdict.VERIFIED
    later = judged(bare, trusting(), Collateral(offline=True, file=file), now=NOW + 90 * 24 * HOUR_S)
    assert not later.ok


def test_what_was_got_travels_with_the_proof(
    bare: AciService, trusting: Callable[..., Policy], start: Callable[..., Vendors], asking: Callable[..., Collateral]
) -> None:
    verified = judged(bare, trusting(), asking(start()))
    assert verified.proof is not None
    assert verified.proof.collateral is not None
    assert read_bundle(verified.proof.collateral.encode()).created_at == NOW
    assert audited(verified, trusting()) is Verdict.VERIFIED
    without = Bundle(format=FORMAT, service=type(verified.proof)(**{**members(verified.proof), "collateral": None}))
    assert not audit(without, trusting(), at=None, now=NOW).ok
    broken = Bundle(format=FORMAT, service=type(verified.proof)(**{**members(verified.proof), "collateral": "{"}))
    with pytest.raises(VerificationError, match=r"service\.collateral"):
        audit(broken, trusting(), at=None, now=NOW)


def members(proof: Any) -> dict[str, Any]:
    return {name: getattr(proof, name) for name in proof.__struct_fields__}


# SEV-SNP


@pytest.mark.parametrize("without", [("vcek",), ("cert_chain",), ("vcek", "cert_chain")])
def test_certificates_that_did_not_come_along_are_amds_to_give(
    service: AciService,
    trusting_snp: Callable[..., Policy],
    start: Callable[..., Vendors],
    asking: Callable[..., Collateral],
    without: tuple[str, ...],
) -> None:
    sent = snp_service(service, *without)
    assert not judged(sent, trusting_snp(), NOTHING_HELD).ok
    verified = judged(sent, trusting_snp(), asking(start()))
    assert verified.verdict is Verdict.VERIFIED
    assert named(verified.checks, "snp.crl").status is Status.PASS  # it came with the rest
    assert audited(verified, trusting_snp(snp=SnpPolicy(require_crl=True))) is Verdict.VERIFIED


def test_a_demanded_revocation_list_is_fetched_or_comes_along(
    service: AciService,
    trusting_snp: Callable[..., Policy],
    start: Callable[..., Vendors],
    asking: Callable[..., Collateral],
) -> None:
    demanding = trusting_snp(snp=SnpPolicy(require_crl=True))
    sent = snp_service(service)
    assert not Collateral(offline=True).is_wanted(sent.report(), trusting_snp())
    lacking = judged(sent, demanding, asking(offline=True))
    assert (lacking.ok, named(lacking.checks, "snp.crl").status) == (False, Status.SKIP)
    vendors = start()
    assert judged(sent, demanding, asking(vendors)).ok
    assert [each for each in vendors.asked if not each.endswith("/crl")] == []
    along = sent.but(evidence=sent.evidence | {"crl": snp_platform().crl(NOW - HOUR_S).hex()})
    assert judged(along, demanding, NOTHING_HELD).ok


@pytest.mark.parametrize("text", ["zz", "", "00", "é"])
def test_what_is_no_revocation_list_fails(service: AciService, trusting_snp: Callable[..., Policy], text: str) -> None:
    sent = snp_service(service)
    odd = sent.but(evidence=sent.evidence | {"crl": text})
    verified = judged(odd, trusting_snp(), NOTHING_HELD)
    assert named(verified.checks, "snp.crl").status is Status.FAIL
    assert not verified.ok


# NVIDIA's remote service


def with_gpus(service: AciService, number: int = 2) -> AciService:
    payload = gpu_payload(gpus(number), bytes.fromhex(NONCE))
    return service.but(evidence={"nvidia_payload": payload})


def test_a_demanded_verdict_is_asked_for_checked_and_travels_along(
    service: AciService,
    trusting_gpu: Callable[..., Policy],
    start: Callable[..., Vendors],
    asking: Callable[..., Collateral],
    tmp_path: Path,
) -> None:
    vendors, sent = start(now=NOW), with_gpus(service)
    verified = judged(sent, trusting_gpu(), asking(vendors))
    assert verified.verdict is Verdict.VERIFIED, [each for each in verified.checks if each.status is Status.FAIL]
    assert named(verified.checks, "nras.claims").reason == "the service found 2 GPUs as they should be, for our nonce"
    assert any(anchor.name.startswith("sim:") for anchor in verified.anchors)
    assert vendors.asked == ["/v3/attest/gpu", "/.well-known/jwks.json"]
    jwks = tmp_path / "jwks.json"
    jwks.write_bytes(SimulatedNras(GPU_SEED).jwks())
    assert audited(verified, trusting_gpu(), Collateral(offline=True, nras_jwks=jwks)) is Verdict.VERIFIED
    assert verified.proof is not None
    bundle = Bundle(format=FORMAT, service=verified.proof)
    alone = audit(bundle, trusting_gpu(), at=None, now=NOW)
    assert (alone.ok, named(alone.checks, "nras.signature").status) == (False, Status.SKIP)  # the keys never travel


@pytest.mark.parametrize(
    ("fault", "check"), [(NrasFault.MEASUREMENTS, "nras.claims"), (NrasFault.OTHER_KEY, "nras.signature")]
)
def test_a_verdict_that_is_not_as_it_should_be_is_a_failure(
    service: AciService,
    trusting_gpu: Callable[..., Policy],
    start: Callable[..., Vendors],
    asking: Callable[..., Collateral],
    fault: NrasFault,
    check: str,
) -> None:
    vendors = start(now=NOW, nras=SimulatedNras(GPU_SEED, fault=fault))
    verified = judged(with_gpus(service), trusting_gpu(), asking(vendors))
    assert named(verified.checks, check).status is Status.FAIL
    assert not verified.ok


@pytest.mark.parametrize("answer", [b"{", b"{}", b"\xff", b"", b"[[]]", b'[["JWT","a.b.c"],{"GPU-0":1}]'])
def test_an_answer_that_cannot_be_read_is_a_failure_and_no_part_of_a_bundle(
    service: AciService, trusting_gpu: Callable[..., Policy], answer: bytes
) -> None:
    verified = appraised(with_gpus(service).report(), trusting_gpu(), supplied=Supplied(nras=answer))
    assert named(verified.checks, "nras.signature").status is Status.FAIL
    assert verified.proof is not None
    assert verified.proof.collateral is None


def test_the_verdict_on_other_evidence_is_none_on_this(
    service: AciService,
    trusting_gpu: Callable[..., Policy],
    start: Callable[..., Vendors],
    asking: Callable[..., Collateral],
) -> None:
    vendors = start(now=NOW)
    raw = with_gpus(service).report()
    supplied = asking(vendors).supply(raw, trusting_gpu(), NOW)
    one = with_gpus(service, 1)
    verified = appraised(one.report(), trusting_gpu(), supplied=supplied)
    assert named(verified.checks, "nras.claims").status is Status.FAIL
    other = bundle_of(created_at=NOW, nras_response=SimulatedNras(GPU_SEED).attest(other_payload(), now=NOW).encode())
    held = HeldCollateral((other,))
    assert held.supply(raw, trusting_gpu(), NOW).nras is None


def other_payload() -> str:
    return gpu_payload(gpus(2), bytes(32))


def test_without_gpus_or_without_the_verdict_nothing_is_verified(
    service: AciService, trusting_gpu: Callable[..., Policy], asking: Callable[..., Collateral]
) -> None:
    none = judged(service, trusting_gpu(), asking(offline=True))
    assert (none.ok, named(none.checks, "gpu.payload").status) == (False, Status.SKIP)
    unasked = judged(with_gpus(service), trusting_gpu(), asking(offline=True))
    assert (unasked.ok, named(unasked.checks, "nras.signature").status) == (False, Status.SKIP)
    assert "offline" in unasked.lacking[0].message


# Files and addresses that are wrong


@pytest.mark.parametrize("option", ["file", "nras_jwks"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b"\xff"])
def test_a_file_that_cannot_be_used_is_told(tmp_path: Path, option: str, content: bytes | None) -> None:
    file = tmp_path / "given"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        Collateral(**{option: file})  # type: ignore[arg-type]  # one of two options
    assert raised.value.remedy


@pytest.mark.parametrize("option", ["pccs_url", "kds_url", "nras_url"])
def test_an_address_that_is_neither_https_nor_here_is_told(option: str) -> None:
    with pytest.raises(ConfigError, match="https"):
        Collateral(**{option: "http://vendor.example"})  # type: ignore[arg-type]  # one of three options


def test_a_quote_that_cannot_be_read_is_asked_about_nobody(
    bare: AciService, trusting: Callable[..., Policy], start: Callable[..., Vendors], asking: Callable[..., Collateral]
) -> None:
    vendors = start()
    odd = bare.but(evidence={"collateral": ..., "quote": "00" * 700})
    supplied = asking(vendors).supply(odd.report(), trusting(), NOW)
    assert isinstance(supplied, Supplied)
    assert (len(supplied.lacking), vendors.asked) == (1, [])
