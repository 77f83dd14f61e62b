"""GPU evidence: from whatever source, over the nonce of the request, or none at all."""

import asyncio
import base64
import hashlib
import http.server
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from confide import config
from confide.attester import gpu_sources as sources
from confide.attester.base import MAX_WAITING
from confide.attester.gpu_sources import GpuFailed, from_command, from_file, from_nvml, from_url
from confide.attester.nvidia import GpuCollector, open_gpu
from confide.attester.simulated import SimulatedAttester
from confide.errors import ConfigError, InternalError, NotReady
from confide.evidence.nvidia import verify_gpu_payload
from confide.evidence.policy import Anchors, GpuPolicy
from confide.evidence.result import Status
from confide.simulator.gpu import GpuFault, SimulatedGpu, gpu_payload

NOW = 1_800_000_000
NONCE = bytes(range(32))
OTHER = bytes(32)
SEED = b"\x22" * 32
DEVICES = (SimulatedGpu(SEED), SimulatedGpu(SEED, number=1))


def statuses(payload: str, root_der: bytes, nonce: bytes = NONCE) -> dict[str, Status]:
    """The verifier's view of it, under this root."""
    anchors = Anchors.default().with_simulated(root_der)
    verified = verify_gpu_payload(payload, nonce=nonce, anchors=anchors, policy=GpuPolicy(), now=NOW)
    return {check.name: check.status for check in verified.checks}


async def test_a_payload_verifies_for_its_nonce_and_no_other() -> None:
    payload = await GpuCollector(lambda nonce: gpu_payload(DEVICES, nonce)).payload(NONCE)
    for place in range(2):
        for check in ("chain", "signature", "nonce", "fwid"):
            assert statuses(payload, DEVICES[0].root_der)[f"gpu.{place}.{check}"] is Status.PASS
    assert statuses(payload, DEVICES[0].root_der, OTHER)["gpu.payload"] is Status.FAIL


def changed(**members: object) -> str:
    return json.dumps(json.loads(gpu_payload(DEVICES, NONCE)) | members)


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "null",
        "{",
        "[" * 100_000,
        gpu_payload(DEVICES, OTHER),
        gpu_payload((), NONCE),  # no GPU is no evidence
        changed(nonce=OTHER.hex()),
        changed(evidence_list=None),
        changed(evidence_list=[{"certificate": "", "evidence": "!", "arch": "HOPPER"}]),
        changed(evidence_list=[DEVICES[0].entry(NONCE), DEVICES[1].entry(OTHER)]),  # one of them for another nonce
        changed(evidence_list=[SimulatedGpu(SEED, fault=GpuFault.OTHER_NONCE).entry(NONCE)]),  # the canned report
        changed(evidence_list=[DEVICES[0].entry(NONCE)] * 65),
    ],
)
async def test_what_is_not_about_this_nonce_is_never_served(payload: str) -> None:
    with pytest.raises(InternalError, match="gave no evidence for this nonce"):
        await GpuCollector(lambda _: payload).payload(NONCE)


@pytest.mark.parametrize("length", [0, 31, 33])
async def test_a_nonce_has_32_bytes(length: int) -> None:
    with pytest.raises(ValueError, match=f"got {length}"):
        await GpuCollector(lambda nonce: gpu_payload(DEVICES, nonce)).payload(bytes(length))


@pytest.mark.parametrize(("allowed", "options"), [(MAX_WAITING, {}), (2, {"max_waiting": 2})])
async def test_one_collection_at_a_time_and_only_so_many_waiting(allowed: int, options: dict[str, int]) -> None:
    inside, most = 0, 0

    def slow(nonce: bytes) -> str:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.001)
        inside -= 1
        return gpu_payload(DEVICES[:1], nonce)

    collector = GpuCollector(slow, **options)
    nonces = [number.to_bytes(32, "big") for number in range(allowed + 3)]
    answers = await asyncio.gather(*map(collector.payload, nonces), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, NotReady)]
    assert (len(refused), most) == (3, 1)
    assert all(each.retry_after_s for each in refused)
    for nonce, answer in zip(nonces, answers, strict=True):
        assert isinstance(answer, NotReady) or json.loads(str(answer))["nonce"] == nonce.hex()


async def test_a_source_that_is_away_or_slow_is_told_apart_from_one_that_fails() -> None:
    def away(_: bytes) -> str:
        raise GpuFailed("SECRET-PATH", temporary=True)

    def broken(_: bytes) -> str:
        raise GpuFailed("SECRET-PATH")

    def slow(_: bytes) -> str:
        time.sleep(0.2)
        return ""

    with pytest.raises(NotReady, match="at present") as caught:
        await GpuCollector(away).payload(NONCE)
    assert "SECRET" not in str(caught.value)
    with pytest.raises(InternalError) as failed:
        await GpuCollector(broken).payload(NONCE)
    assert "SECRET" not in str(failed.value)
    with pytest.raises(NotReady, match=r"within 0\.01 s"):
        await GpuCollector(slow, deadline_s=0.01).payload(NONCE)


# NVML.


class NvmlError(Exception):
    pass


class FakeNvml:
    """The calls of pynvml before simulated devices, with its arrays of fixed size and its numbers."""

    NVMLError = NvmlError

    def __init__(self, devices: tuple[SimulatedGpu, ...] = DEVICES, *, cc: int = 1, arch: int = 9) -> None:
        self.devices = devices
        self.cc = cc
        self.arch = arch
        self.open = 0
        self.failing = False

    def nvmlInit(self) -> None:
        if self.failing:
            raise NvmlError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> SimulatedGpu:
        return self.devices[index]

    def nvmlDeviceGetArchitecture(self, handle: SimulatedGpu) -> int:
        return self.arch

    def nvmlSystemGetConfComputeState(self) -> Any:
        return SimpleNamespace(environment=0, ccFeature=self.cc, devToolsMode=0)

    def nvmlDeviceGetConfComputeGpuCertificate(self, handle: SimulatedGpu) -> Any:
        chain = handle.chain_pem.encode() + b"\x00"
        room = list(chain.ljust(0x1400, b"\xaa"))
        return SimpleNamespace(attestationCertChain=room, attestationCertChainSize=len(chain))

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, handle: SimulatedGpu, nonce: bytes) -> Any:
        report = handle.report(nonce)
        room = list(report.ljust(0x2000, b"\xaa"))
        return SimpleNamespace(attestationReport=room, attestationReportSize=len(report))


@pytest.mark.parametrize(("number", "arch"), [(9, "HOPPER"), (10, "BLACKWELL")])
def test_nvml_gives_every_gpu_and_what_it_gives_verifies(number: int, arch: str) -> None:
    devices = tuple(SimulatedGpu(SEED, number=each, arch=arch) for each in range(2))
    library = FakeNvml(devices, arch=number)
    payload = from_nvml(library, NONCE)
    assert library.open == 0
    assert [entry["arch"] for entry in json.loads(payload)["evidence_list"]] == [arch, arch]
    assert json.loads(payload)["arch"] == arch
    chain = base64.b64decode(json.loads(payload)["evidence_list"][0]["certificate"])
    assert chain.decode() == devices[0].chain_pem
    assert statuses(payload, devices[0].root_der)["gpu.1.signature"] is Status.PASS


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        (FakeNvml(cc=0), "not in confidential mode"),
        (FakeNvml(()), "finds no GPU"),
        (FakeNvml(arch=8), "architecture 8"),
    ],
)
def test_nvml_without_a_confidential_gpu_gives_nothing(library: FakeNvml, reason: str) -> None:
    with pytest.raises(GpuFailed, match=reason):
        from_nvml(library, NONCE)
    assert library.open == 0


def test_an_error_of_nvml_is_named() -> None:
    library = FakeNvml()
    library.failing = True
    with pytest.raises(GpuFailed, match="Driver Not Loaded"):
        from_nvml(library, NONCE)


def test_nvml_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(GpuFailed, match=r"confide\[gpu\]"):
        sources.load_nvml()


# Command, URL, file.


def python(program: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program, *arguments)


def test_a_command_gets_the_nonce_and_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIDE_API_KEY", "SECRET")
    program = "import os, sys; print(sys.argv[1], sorted(os.environ), sys.stdin.read())"
    told = from_command(python(program, "--nonce=${nonce}"), NONCE)
    assert told.startswith(f"--nonce={NONCE.hex()} ")
    assert "CONFIDE" not in told


@pytest.mark.parametrize("output", ["", " >/dev/null"], ids=["holding the pipe", "apart"])
def test_what_a_command_leaves_behind_is_ended_too(tmp_path: Path, output: str) -> None:
    left = tmp_path / "pid"
    command = ("sh", "-c", f"sleep 60{output} & echo $! > {left}; echo told")
    if output:
        assert from_command(command, NONCE) == "told"
    else:
        with pytest.raises(GpuFailed, match=r"longer than 0\.5 s"):
            from_command(command, NONCE, deadline_s=0.5)
    status = Path(f"/proc/{left.read_text().strip()}/status")
    until_s = time.monotonic() + 10
    while status.exists() and "Z (zombie)" not in status.read_text():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_a_command_that_fails_hangs_or_talks_too_much_is_ended(tmp_path: Path) -> None:
    with pytest.raises(GpuFailed, match="status 3"):
        from_command(python("import sys; print('x'); sys.exit(3)"), NONCE)
    with pytest.raises(GpuFailed, match="cannot be run"):
        from_command((str(tmp_path / "absent"),), NONCE)
    with pytest.raises(GpuFailed, match="more than 1048576 bytes"):
        from_command(python("while True: print('x' * 65536)"), NONCE)
    begun = time.monotonic()
    for program in ("import time; time.sleep(60)", "import os, time; os.close(1); time.sleep(60)"):
        with pytest.raises(GpuFailed, match=r"longer than 0\.3 s"):
            from_command(python(program), NONCE, deadline_s=0.3)
    assert time.monotonic() - begun < 10
    with pytest.raises(GpuFailed, match="not UTF-8"):
        from_command(python("import sys; sys.stdout.buffer.write(b'\\xff')"), NONCE)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/gpu/"):
            self.answer(200, gpu_payload(DEVICES, bytes.fromhex(self.path.removeprefix("/gpu/"))).encode())
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("location", "/gpu/" + NONCE.hex())
            self.end_headers()
        elif self.path == "/nowhere":
            self.send_response(302)
            self.send_header("location", "//:1")
            self.end_headers()
        elif self.path == "/much":
            self.answer(200, b"x" * (1024 * 1024 + 1))
        else:
            self.answer(404, b"")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_url_is_asked_for_the_nonce(url: str) -> None:
    assert json.loads(from_url(url + "/gpu/${nonce}", NONCE)) == json.loads(gpu_payload(DEVICES, NONCE))
    for path, reason in (("/none", "404"), ("/moved", "302"), ("/much", "more than 1048576")):
        with pytest.raises(GpuFailed, match=reason):
            from_url(url + path, NONCE)
    for address in ("http://127.0.0.1:1/${nonce}", url + "/nowhere"):
        with pytest.raises(GpuFailed, match="cannot be read"):
            from_url(address, NONCE)


def test_a_file_is_the_one_of_the_nonce(tmp_path: Path) -> None:
    (tmp_path / f"{NONCE.hex()}.json").write_text(gpu_payload(DEVICES, NONCE))
    assert from_file(f"{tmp_path}/${{nonce}}.json", NONCE) == gpu_payload(DEVICES, NONCE)
    with pytest.raises(GpuFailed, match="cannot be read"):
        from_file(f"{tmp_path}/${{nonce}}.json", OTHER)
    (tmp_path / "big").write_bytes(b"x" * (1024 * 1024 + 1))
    with pytest.raises(GpuFailed, match="more than"):
        from_file(str(tmp_path / "big"), NONCE)


# At the start.


@pytest.fixture
def attester(tmp_path: Path) -> SimulatedAttester:
    return SimulatedAttester(tmp_path, lambda: NOW)


async def test_none_is_none(tmp_path: Path, attester: SimulatedAttester) -> None:
    assert await open_gpu(config.Attester(), tmp_path, attester) is None
    assert not (tmp_path / "simulator" / "gpu-root.pem").exists()


async def test_the_simulated_gpu_has_a_root_to_pin_that_stays(tmp_path: Path, attester: SimulatedAttester) -> None:
    roots = set()
    for _ in range(2):
        collector = await open_gpu(config.Attester(gpu="simulated"), tmp_path, attester)
        assert collector is not None
        payload = await collector.payload(NONCE)
        pem = (tmp_path / "simulator" / "gpu-root.pem").read_text()
        roots.add(hashlib.sha256(pem.encode()).hexdigest())
        body = "".join(pem.splitlines()[1:-1])
        assert statuses(payload, base64.b64decode(body))["gpu.0.chain"] is Status.PASS
    assert len(roots) == 1


async def test_a_simulated_gpu_does_not_stand_beside_a_real_attester(
    tmp_path: Path, attester: SimulatedAttester
) -> None:
    attester.simulated = False
    attester.kind = "tsm"
    with pytest.raises(ConfigError, match="the attester is tsm, on real hardware"):
        await open_gpu(config.Attester(gpu="simulated"), tmp_path, attester)


async def test_a_source_that_does_not_work_is_refused_at_the_start(
    tmp_path: Path, attester: SimulatedAttester, monkeypatch: pytest.MonkeyPatch
) -> None:
    canned = python("import sys; print(sys.argv[2])", "${nonce}", gpu_payload(DEVICES, OTHER))
    cases = [
        (config.Attester(gpu="command", gpu_command=canned), "for another nonce"),
        (config.Attester(gpu="file", gpu_file=f"{tmp_path}/${{nonce}}"), "No such file"),
    ]
    for settings, reason in cases:
        with pytest.raises(ConfigError, match=reason) as caught:
            await open_gpu(settings, tmp_path, attester)
        assert f'[attester] gpu = "{settings.gpu}"' in caught.value.message
        assert caught.value.remedy
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(ConfigError, match=r"confide\[gpu\]"):
        await open_gpu(config.Attester(gpu="nvml"), tmp_path, attester)


async def test_nvml_is_used_where_it_is_installed(
    tmp_path: Path, attester: SimulatedAttester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    collector = await open_gpu(config.Attester(gpu="nvml"), tmp_path, attester)
    assert collector is not None
    assert statuses(await collector.payload(NONCE), DEVICES[0].root_der)["gpu.0.nonce"] is Status.PASS
