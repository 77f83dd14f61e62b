"""Whole chains as processes: `confide simulate` before `confide serve` before `confide verify`, each with two GPUs.

Nothing here shares a process with what it verifies. A chain is started once and kept while this file runs; a fault of
evidence is set on the running machine, one that a service meets at its start or keeps (keys, collateral) has a service
of its own. What each knob does is in the tables; `test_no_knob_is_left_out` holds them against the simulator.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from confide.simulator import dstack, tsm
from confide.simulator.fault_names import KDS_FAULTS, PCCS_FAULTS
from running import CONFIDE, Running, home_with_weights, running
from simulated_machine import Machine, Verified, simulating, verify

ATTESTED = '[server]\ntls = "attested"\n'
MONTH_S = 30 * 24 * 60 * 60
OTHER_KMS = "02" + "11" * 32
HANGS_S = 110

CHAINS = {
    "dstack-v4": ("dstack", "--quote", "v4"),
    "dstack-v5": ("dstack", "--quote", "v5"),
    "dstack-v5-td15": ("dstack", "--quote", "v5-td15"),
    "tdx-v4": ("tsm", "--tee", "tdx", "--quote", "v4"),
    "tdx-v5": ("tsm", "--tee", "tdx", "--quote", "v5"),
    "tdx-v5-td15": ("tsm", "--tee", "tdx", "--quote", "v5-td15"),
    "snp": ("tsm", "--tee", "snp"),
}

# What has to pass on an honest machine.
TDX = {"id-1", "id-2", "id-3", "id-6", "tdx.root", "tdx.quote", "tdx.collateral", "tdx.tcb", "tdx.attributes"}
DSTACK = TDX | {"id-4", "id-5", "custody.receipt", "dstack.replay", "dstack.events", "dstack.compose"}
SNP = {
    "id-1",
    "id-2",
    "id-3",
    "id-6",
    "snp.root",
    "snp.chain",
    "snp.crl",
    "snp.signature",
    "snp.vcek",
    "snp.policy",
    "snp.tcb",
}
GPUS = {f"gpu.{place}.{name}" for place in (0, 1) for name in ("chain", "signature", "nonce", "fwid")} | {"gpu.policy"}
PASSED = {"dstack": DSTACK | GPUS, "tdx": TDX | GPUS, "snp": SNP | GPUS}

# Faults of evidence, each with exactly the checks that fail.
ATTRIBUTES, QUOTE = {"id-1", "tdx.attributes", "tdx.quote"}, {"id-1", "tdx.quote"}
TDX_EVIDENCE = {
    "debug": ATTRIBUTES,
    "sept-ve": ATTRIBUTES,
    "reserved-attribute": ATTRIBUTES,
    "migratable": ATTRIBUTES,
    "perfmon": {"id-1", "tdx.attributes"},
    "service-td": ATTRIBUTES,
    "module-signer": ATTRIBUTES,
    "vendor": QUOTE,
    "signature": QUOTE,
    "attestation-key": QUOTE,
    "qe-report": QUOTE,
    "qe-too-old": QUOTE,
    "qe-debug": QUOTE,
    "qe-signer": QUOTE,
    "certification-type": {"id-1", "tdx.parse"},
    "appended": {"id-1", "tdx.tail"},
}
SNP_EVIDENCE = {
    "debug": {"id-1", "snp.policy"},
    "migratable": {"id-1", "snp.policy"},
    "vmpl": {"id-1", "snp.policy"},
    "masked": {"id-1", "snp.policy"},
    "vlek": {"id-1", "snp.policy"},
    "other-chip": {"id-1", "snp.vcek"},
    "other-tcb": {"id-1", "snp.vcek"},
    "tcb-behind": {"id-1", "snp.tcb"},
    "expired": {"id-1", "snp.chain"},
}
GPU_EVIDENCE = {
    "gpu-foreign-root": {"gpu.1.chain"},
    "gpu-expired": {"gpu.1.chain"},
    "gpu-leaf-as-issuer": {"gpu.1.chain"},
    "gpu-mislabelled": {"gpu.1.chain"},
    "gpu-signature": {"gpu.1.signature"},
    "gpu-cut": {"gpu.1.signature"},
    "gpu-fwid": {"gpu.1.fwid"},
    "gpus-missing": {"gpu.policy"},
}

# Faults with which a service refuses to start, in these words; one that runs gives no report then.
GPUS_REFUSED = {
    "gpu-other-nonce": "the report of device 1 was asked for with another nonce",
    "gpus-failing": "the URL answered with status 500",
    "gpus-malformed": "what came is no payload",
    "gpus-none": "the payload holds the evidence of no device",
}
DSTACK_REFUSED = {"report-data": "the platform quoted other report data than it was given"}
KERNEL_REFUSED = {
    "report-data": "the platform quoted other report data than it was given",
    "malformed": "the platform quoted other report data than it was given",
    "busy": "EBUSY",
    "interference": "the generation went from 0 to 2, expected 1",
    "oversized": "EFBIG",
    "read-only": "EROFS",
    "not-permitted": "EACCES",
    "absent": "there is no configfs-tsm",
    "no-platform": "no platform is registered with the kernel",
}
HANGING = {"gpus-hung", "hung"}

# Faults of what a service keeps: the checks that fail, or none where nobody can tell.
NOBODY_CAN_TELL: Set[str] = frozenset()
TDX_KEPT: dict[str, Set[str]] = {
    "revoked": QUOTE,
    "outdated": {"id-1", "tdx.tcb"},
    "pck-ca-revoked": QUOTE,
    "tcb-signer-revoked": QUOTE,
    "other-crl": QUOTE,
    "no-level": QUOTE,
    "tcb-info": QUOTE,
    "qe-identity": QUOTE,
    **dict.fromkeys(
        ("empty-crl", "root-crl-expired", "expired", "future", "fmspc", "tcb-signer", *PCCS_FAULTS), NOBODY_CAN_TELL
    ),
}
DSTACK_KEPT = TDX_KEPT | {"custody": {"custody.receipt", "id-5"}}
SNP_KEPT = dict.fromkeys(KDS_FAULTS, NOBODY_CAN_TELL) | {"revoked": {"id-1", "snp.crl"}}

# What the commands' policy accepts. A report of a GPU need not name its firmware; certificates that the host did not
# give are AMD's to give; and no option of the commands asks for the latest TCB recovery.
ACCEPTED = {"gpu-no-fwid", "no-certificates"}
ACCEPTED_KEPT = {"evaluation"}

LONG = pytest.mark.long
pytestmark = pytest.mark.engine


@dataclass(frozen=True)
class Chain:
    """A machine and the service in it, which run."""

    machine: Machine
    service: Running

    def verified(self, *options: str) -> Verified:
        """What somebody else finds who trusts what the machine says to trust."""
        return verify(self.service.url, *self.machine.trust, *options)


Started = Callable[[str], Chain]


@pytest.fixture(scope="module")
def chain(engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """Chains by name, each started when it is first asked for and ended with this file."""
    with ExitStack() as running_chains:
        started: dict[str, Chain] = {}

        def start(name: str) -> Chain:
            base = tmp_path_factory.mktemp(name)
            machine = running_chains.enter_context(simulating(base / "machine", *CHAINS[name], "--gpus", "2"))
            home = home_with_weights(base, engine_home)
            service = running_chains.enter_context(running(home, config=ATTESTED, environ=machine.environ))
            return Chain(machine, service)

        def get(name: str) -> Chain:
            if name not in started:
                started[name] = start(name)
            return started[name]

        yield get


@pytest.fixture
def fresh_home(tmp_path: Path, engine_home: Path) -> Path:
    """A state directory of a service that never ran, with weights."""
    return home_with_weights(tmp_path, engine_home)


def kind_of(name: str) -> str:
    return name.partition("-")[0]


# Honest machines.


@pytest.mark.parametrize(
    "name",
    [
        "dstack-v4",
        "dstack-v5",
        pytest.param("dstack-v5-td15", marks=LONG),
        pytest.param("tdx-v4", marks=LONG),
        "tdx-v5",
        pytest.param("tdx-v5-td15", marks=LONG),
        "snp",
    ],
)
def test_an_honest_machine_with_two_gpus_is_verified_by_whoever_pins_its_roots(chain: Started, name: str) -> None:
    found = chain(name).verified()
    assert (found.status, found.document["verdict"]) == (0, "VERIFIED"), found.document
    assert found.named("fail") == set()
    assert PASSED[kind_of(name)] <= found.named("pass")
    assert found.document["simulated"] is True
    assert [anchor["simulated"] for anchor in found.document["anchors"]] == [True, True]  # the CPU's and the GPUs'
    require_labelled(chain(name).service)
    if name != "snp":  # whose host gave the certificates
        kept = (chain(name).service.home / "collateral").iterdir()
        assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}


def require_labelled(service: Running) -> None:
    """Nothing that it says of itself may be taken for hardware's protection."""
    assert "SIMULATED" in service.output()
    models = httpx2.get(f"{service.url}/v1/models", verify=False, trust_env=False).json()["data"]
    assert [model["metadata"]["tee"] for model in models] == [False]


@pytest.mark.parametrize("name", ["dstack-v4", "dstack-v5", "tdx-v5"])
def test_the_quotes_are_of_the_version_that_was_asked_for(chain: Started, name: str) -> None:
    service = chain(name).service
    report = httpx2.get(f"{service.url}/v1/aci/attestation", verify=False, trust_env=False).json()
    version = int.from_bytes(bytes.fromhex(report["attestation"]["evidence"]["quote"])[:2], "little")
    assert version == int(name[-1])


@LONG
@pytest.mark.parametrize("name", ["dstack-v4", "tdx-v5", "snp"])
def test_an_answer_is_proven_over_the_whole_chain(chain: Started, tmp_path: Path, name: str) -> None:
    machine, service = chain(name).machine, chain(name).service
    command: list[str | Path] = [
        CONFIDE,
        "ask",
        "Say hello.",
        "--base-url",
        service.url,
        *machine.trust,
        "--max-tokens",
        "5",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={"CONFIDE_HOME": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "VERIFIED (SIMULATED ROOT" in done.stdout + done.stderr


# What a verifier asks for that is not there.


@pytest.mark.parametrize(
    ("name", "options", "check"),
    [
        ("dstack-v4", ("--kms-root", OTHER_KMS), "id-5"),
        ("dstack-v4", ("--require-gpus", "3"), "gpu.policy"),
        pytest.param("dstack-v4", ("--compose-hash", "11" * 32), "policy-compose", marks=LONG),
        pytest.param("tdx-v5", ("--kms-root", OTHER_KMS), "id-5", marks=LONG),
        pytest.param("snp", ("--require-gpus", "3"), "gpu.policy", marks=LONG),
    ],
)
def test_what_is_demanded_and_not_shown_is_missed(
    chain: Started, name: str, options: tuple[str, str], check: str
) -> None:
    machine, service = chain(name).machine, chain(name).service
    found = verify(service.url, *but(machine.trust, *options))
    assert (found.status, found.document["ok"]) == (1, False), found.document
    assert f"not verified: {check}: " in found.stderr


def but(trust: tuple[str, ...], option: str, value: str) -> tuple[str, ...]:
    """The same options, with this value for one of them."""
    places = [place for place, given in enumerate(trust) if given == option]
    kept = [given for place, given in enumerate(trust) if not {place, place - 1} & set(places)]
    return (*kept, option, value)


@pytest.mark.parametrize("name", ["dstack-v4", pytest.param("tdx-v5", marks=LONG), pytest.param("snp", marks=LONG)])
def test_nobody_trusts_a_simulator_who_did_not_say_so(chain: Started, name: str) -> None:
    found = verify(chain(name).service.url)
    assert (found.status, found.document["verdict"]) == (1, "NOT VERIFIED")
    assert {"id-1", "snp.root" if name == "snp" else "tdx.root"} <= found.named("fail")


@pytest.mark.parametrize("name", ["dstack-v4", pytest.param("tdx-v5", marks=LONG)])
def test_collateral_is_good_for_its_month_and_not_longer(chain: Started, name: str) -> None:
    found = chain(name).verified("--at", str(int(time.time()) + MONTH_S))
    assert (found.status, found.document["verdict"]) == (1, "NOT VERIFIED")
    assert found.named("fail") >= QUOTE


# Faults of evidence, on machines that run.

SHORT_EVIDENCE = {
    ("dstack-v4", "debug"),
    ("dstack-v4", "gpu-signature"),
    ("tdx-v5", "signature"),
    ("snp", "other-chip"),
    ("snp", "expired"),
}
EVIDENCE = [
    (name, fault, checks)
    for name, table in {
        "dstack-v4": TDX_EVIDENCE | GPU_EVIDENCE,
        "tdx-v5": TDX_EVIDENCE | GPU_EVIDENCE,
        "snp": SNP_EVIDENCE | GPU_EVIDENCE,
    }.items()
    for fault, checks in table.items()
]


@pytest.mark.parametrize(
    ("name", "fault", "checks"),
    [pytest.param(*case, marks=[] if case[:2] in SHORT_EVIDENCE else LONG, id="-".join(case[:2])) for case in EVIDENCE],
)
def test_each_fault_of_evidence_is_refused_by_the_checks_that_it_concerns(
    chain: Started, name: str, fault: str, checks: Set[str]
) -> None:
    with chain(name).machine.wrong(fault):
        found = chain(name).verified()
    assert (found.status, found.document["verdict"]) == (1, "NOT VERIFIED"), found.document
    assert found.named("fail") == checks


@pytest.mark.parametrize(
    ("name", "fault"), [pytest.param("dstack-v4", "gpu-no-fwid", marks=LONG), ("snp", "no-certificates")]
)
def test_what_the_policy_accepts_is_no_failure(chain: Started, name: str, fault: str) -> None:
    with chain(name).machine.wrong(fault):
        found = chain(name).verified()
    assert (found.status, found.document["verdict"]) == (0, "VERIFIED"), found.document
    assert (found.checks["gpu.1.fwid"] == "skip") == (fault == "gpu-no-fwid")


# Machines whose evidence cannot be had.

REFUSED = [
    (name, fault, words)
    for name, table in {
        "dstack-v4": DSTACK_REFUSED | GPUS_REFUSED,
        "tdx-v5": KERNEL_REFUSED,
        "snp": KERNEL_REFUSED | GPUS_REFUSED,
    }.items()
    for fault, words in table.items()
]
SHORT_REFUSED = {("dstack-v4", "gpu-other-nonce"), ("snp", "interference")}
REFUSED_CASES = [
    pytest.param(*case, marks=[] if case[:2] in SHORT_REFUSED else LONG, id="-".join(case[:2])) for case in REFUSED
]


@pytest.mark.parametrize(("name", "fault", "words"), REFUSED_CASES)
def test_a_service_refuses_to_start_without_evidence(
    chain: Started, fresh_home: Path, name: str, fault: str, words: str
) -> None:
    machine = chain(name).machine
    (fresh_home / "confide.toml").write_text(ATTESTED)
    with machine.wrong(fault):
        done = subprocess.run(
            [CONFIDE, "serve", "--port", "0", "--config", fresh_home / "confide.toml"],
            capture_output=True,
            text=True,
            env={**os.environ, **machine.environ, "CONFIDE_HOME": str(fresh_home)},
        )
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param(name, fault, marks=[] if (name, fault) == ("tdx-v5", "interference") else LONG)
        for name, fault, _ in REFUSED
    ],
)
def test_a_service_that_gets_no_evidence_any_more_gives_no_report(chain: Started, name: str, fault: str) -> None:
    with chain(name).machine.wrong(fault):
        found = chain(name).verified()
    assert (found.status, found.document) == (3, {})
    assert "when it was asked for its attestation report" in found.stderr
    assert chain(name).verified().status == 0, "it recovers with its machine"


@LONG
@pytest.mark.timeout(HANGS_S + 60)
@pytest.mark.parametrize(("name", "fault"), [("dstack-v4", "gpus-hung"), ("tdx-v4", "hung"), ("snp", "hung")])
def test_what_hangs_is_waited_for_and_then_nobody_can_tell(
    chain: Started, fresh_home: Path, name: str, fault: str
) -> None:
    machine = chain(name).machine
    with running(fresh_home, config=ATTESTED, environ=machine.environ) as service:
        with machine.wrong(fault):
            found = verify(service.url, *machine.trust)
        assert (found.status, found.document) == (3, {})
        assert service.terminate() == 0


# Faults of what a service fetches at its start, or keeps.

KEPT = [
    (name, fault, checks)
    for name, table in {
        "dstack-v4": DSTACK_KEPT,
        "tdx-v5": {name: TDX_KEPT[name] for name in ("revoked", "outdated", "fmspc", "pccs-hung")},
        "snp": SNP_KEPT,
    }.items()
    for fault, checks in table.items()
]


@pytest.mark.parametrize(
    ("name", "fault", "checks"),
    [
        pytest.param(*case, marks=[] if case[:2] == ("dstack-v4", "revoked") else LONG, id="-".join(case[:2]))
        for case in KEPT
    ],
)
def test_each_fault_of_keys_and_collateral_is_found(
    chain: Started, fresh_home: Path, name: str, fault: str, checks: Set[str]
) -> None:
    machine = chain(name).machine
    with machine.wrong(fault), running(fresh_home, config=ATTESTED, environ=machine.environ) as service:
        found = verify(service.url, *machine.trust)
        logged = [json.loads(line) for line in service.output().splitlines() if '"event":"collateral"' in line]
    assert found.named("fail") == checks, found.document
    if checks:
        assert (found.status, found.document["verdict"]) == (1, "NOT VERIFIED")
        return
    assert (found.status, found.document["verdict"]) == (3, "PARTIAL")
    assert {"id-1", "snp.chain" if name == "snp" else "tdx.collateral"} <= found.named("skip")
    assert {line["outcome"] for line in logged} <= {"none"}
    assert logged or fault.endswith(("-slow", "-hung"))  # those are waited for still


@LONG
def test_a_tcb_recovery_that_nobody_asks_for_is_not_missed(chain: Started, fresh_home: Path) -> None:
    machine = chain("dstack-v4").machine
    with machine.wrong("evaluation"), running(fresh_home, config=ATTESTED, environ=machine.environ) as service:
        assert verify(service.url, *machine.trust).status == 0


# The simulator itself.


@pytest.mark.parametrize(
    ("knobs", "tables"),
    [
        (dstack.FAULTS, (TDX_EVIDENCE, GPU_EVIDENCE, GPUS_REFUSED, DSTACK_REFUSED, DSTACK_KEPT)),
        (tsm.TDX_GUEST_FAULTS, (TDX_EVIDENCE, GPU_EVIDENCE, GPUS_REFUSED, KERNEL_REFUSED, TDX_KEPT)),
        (tsm.SNP_GUEST_FAULTS, (SNP_EVIDENCE, GPU_EVIDENCE, GPUS_REFUSED, KERNEL_REFUSED, SNP_KEPT)),
    ],
    ids=["dstack", "tdx", "snp"],
)
def test_no_knob_is_left_out(knobs: tuple[str, ...], tables: tuple[Mapping[str, object], ...]) -> None:
    covered = [fault for table in tables for fault in table]
    others = (HANGING | ACCEPTED | ACCEPTED_KEPT) & set(knobs)
    assert sorted([*covered, *others]) == sorted(knobs)


def test_a_fault_may_be_changed_and_one_that_is_not_known_is_refused(chain: Started) -> None:
    control = chain("snp").machine.control
    refused = httpx2.put(control, content=b"custody", trust_env=False)
    assert refused.status_code == 400
    assert "expected one of debug, migratable," in refused.text
    assert httpx2.get(control, trust_env=False).text == "none\n"
    with chain("snp").machine.wrong("debug"):
        assert httpx2.get(control, trust_env=False).text == "debug\n"


@pytest.mark.parametrize("kind", ["dstack", "tsm"])
def test_a_rehearsal_ends_with_sigterm_and_leaves_no_socket(tmp_path: Path, kind: str) -> None:
    with simulating(tmp_path / "machine", kind, "--fault", "debug") as machine:
        assert httpx2.get(machine.control, trust_env=False).text == "debug\n"
        assert machine.terminate() == 0
    assert not (tmp_path / "machine" / "guest.sock").exists()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("dstack", ("--fault", "unheard-of")),
        ("dstack", ("--socket", "/nowhere/guest.sock")),
        ("dstack", ("--pccs-port", "65536")),
        ("dstack", ("--quote", "v3")),
        ("dstack", ("--gpus", "-1")),
        ("tsm", ("--fault", "custody")),
        ("tsm", ("--tee", "sgx")),
        ("tsm", ("--quote", "v5", "--tee", "snp")),
    ],
    ids=str,
)
def test_what_cannot_be_simulated_is_refused_in_words(tmp_path: Path, kind: str, options: tuple[str, ...]) -> None:
    environ = {**os.environ, "CONFIDE_HOME": str(tmp_path)}
    command: list[str | Path] = [CONFIDE, "simulate", kind, "--socket", tmp_path / "guest.sock", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=30)
    assert done.returncode == 2
    assert options[0] in done.stderr
    assert "Traceback" not in done.stderr
