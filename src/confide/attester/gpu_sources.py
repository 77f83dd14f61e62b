"""Where `nvidia_payload` comes from: NVML, a command, a URL, a file, or the SIMULATED GPU (tee-evidence 2.5).

A source is a function from 32 bytes of nonce to JSON text (wire contract 6.4). It blocks, is bounded in size and time,
and raises GpuFailed. Whether the text is about this nonce is checked by `attester.nvidia`.
"""

import base64
import hmac
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import httpx2
import msgspec

from confide import config
from confide.attester.seed import load_seed
from confide.attester.simulated import write_root
from confide.simulator.gpu import SimulatedGpu, gpu_payload

DEADLINE_S = 30.0  # for a command or a URL; a GPU takes hundreds of milliseconds
MAX_PAYLOAD_BYTES = 1024 * 1024  # a device needs 12 kB
NONCE = config.NONCE  # in the command, URL or path: 64 lower-case hex digits take its place
ARCHITECTURES = {9: "HOPPER", 10: "BLACKWELL"}  # NVML_DEVICE_ARCH_…

Source = Callable[[bytes], str]


class GpuFailed(Exception):
    """No evidence came. The text is for the operator. `temporary`: it may come later."""

    def __init__(self, reason: str, *, temporary: bool = False) -> None:
        super().__init__(reason)
        self.temporary = temporary


class Nvml(Protocol):
    """The calls of `pynvml` (nvidia-ml-py 13) that are made here."""

    @property
    def NVMLError(self) -> type[Exception]: ...  # noqa: N802 - the library's own names

    def nvmlInit(self) -> object: ...  # noqa: N802
    def nvmlShutdown(self) -> object: ...  # noqa: N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...  # noqa: N802
    def nvmlDeviceGetArchitecture(self, handle: Any) -> int: ...  # noqa: N802
    def nvmlSystemGetConfComputeState(self) -> Any: ...  # noqa: N802
    def nvmlDeviceGetConfComputeGpuCertificate(self, handle: Any) -> Any: ...  # noqa: N802
    def nvmlDeviceGetConfComputeGpuAttestationReport(self, handle: Any, nonce: bytes) -> Any: ...  # noqa: N802


def source_of(settings: config.Attester, home: Path) -> Source:
    """What the settings name. Raises GpuFailed where NVML is not installed."""
    match settings.gpu:
        case "nvml":
            library = load_nvml()
            return lambda nonce: from_nvml(library, nonce)
        case "command":
            return lambda nonce: from_command(settings.gpu_command, nonce)
        case "url":
            return lambda nonce: from_url(str(settings.gpu_url), nonce)
        case "file":
            return lambda nonce: from_file(str(settings.gpu_file), nonce)
        case _:
            return simulated_source(home)


def load_nvml() -> Nvml:
    """NVIDIA's management library, which is an extra. Raises GpuFailed."""
    try:
        import pynvml  # optional, and it takes a while
    except ImportError as error:
        raise GpuFailed("nvidia-ml-py is not installed: pip install 'confide[gpu]'") from error
    library: Nvml = pynvml
    return library


def from_nvml(library: Nvml, nonce: bytes) -> str:
    """All GPUs of this machine."""
    try:
        library.nvmlInit()
        try:
            if not library.nvmlSystemGetConfComputeState().ccFeature:
                raise GpuFailed("the GPUs are not in confidential mode")
            devices = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
            entries = [nvml_entry(library, device, nonce) for device in devices]
        finally:
            library.nvmlShutdown()
    except library.NVMLError as error:
        raise GpuFailed(f"NVML: {error}") from error
    if not entries:
        raise GpuFailed("NVML finds no GPU")
    return msgspec.json.encode({"nonce": nonce.hex(), "evidence_list": entries, "arch": entries[0]["arch"]}).decode()


def nvml_entry(library: Nvml, device: object, nonce: bytes) -> dict[str, str]:
    """One entry of `evidence_list`."""
    number = library.nvmlDeviceGetArchitecture(device)
    if number not in ARCHITECTURES:
        raise GpuFailed(f"architecture {number} of NVML, expected one of {', '.join(ARCHITECTURES.values())}")
    report = library.nvmlDeviceGetConfComputeGpuAttestationReport(device, nonce)
    certificate = library.nvmlDeviceGetConfComputeGpuCertificate(device)
    chain = bytes(certificate.attestationCertChain[: certificate.attestationCertChainSize]).rstrip(b"\x00")
    return {
        "certificate": base64.b64encode(chain).decode(),
        "evidence": base64.b64encode(bytes(report.attestationReport[: report.attestationReportSize])).decode(),
        "arch": ARCHITECTURES[number],
    }


def from_command(command: Sequence[str], nonce: bytes, *, deadline_s: float = DEADLINE_S) -> str:
    """What the command writes to standard output. It gets a clean environment, and no shell stands between."""
    arguments = [argument.replace(NONCE, nonce.hex()) for argument in command]
    environ = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG") if name in os.environ}
    try:
        process = subprocess.Popen(  # noqa: S603 - the operator's own command line
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environ,
            start_new_session=True,
        )
    except OSError as error:
        raise GpuFailed(f"the command cannot be run: {error.strerror}") from error
    until_s = time.monotonic() + deadline_s
    with process:
        try:
            output = read_bounded(process, until_s)
            await_end(process, until_s)
        except subprocess.TimeoutExpired as error:
            raise GpuFailed(f"the command took longer than {deadline_s:g} s", temporary=True) from error
        finally:
            kill_group(process)
    if process.returncode:
        raise GpuFailed(f"the command ended with status {process.returncode}", temporary=True)
    return decoded(output)


def read_bounded(process: "subprocess.Popen[bytes]", until_s: float) -> bytes:
    """Standard output to its end. Raises GpuFailed for too much, subprocess.TimeoutExpired at `until_s`."""
    assert process.stdout is not None
    output = bytearray()
    descriptor = process.stdout.fileno()
    while True:
        left_s = until_s - time.monotonic()
        if left_s <= 0 or not select.select([descriptor], [], [], left_s)[0]:
            raise subprocess.TimeoutExpired(process.args, left_s)
        part = os.read(descriptor, 65536)
        if not part:
            return bytes(output)
        output += part
        if len(output) > MAX_PAYLOAD_BYTES:
            raise GpuFailed(f"more than {MAX_PAYLOAD_BYTES} bytes")


def await_end(process: "subprocess.Popen[bytes]", until_s: float) -> None:
    """Return once it has ended, without taking its status. Raises subprocess.TimeoutExpired at `until_s`."""
    descriptor = os.pidfd_open(process.pid)
    try:
        left_s = until_s - time.monotonic()
        if not select.select([descriptor], [], [], max(0.0, left_s))[0]:
            raise subprocess.TimeoutExpired(process.args, left_s)
    finally:
        os.close(descriptor)


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """End the command and what it left behind. Its status was not taken yet, so that the number is still its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def from_url(url: str, nonce: bytes, *, deadline_s: float = DEADLINE_S) -> str:
    """What a GET gives. No proxies, no redirects."""
    until_s = time.monotonic() + deadline_s
    body = bytearray()
    try:
        with (
            httpx2.Client(timeout=deadline_s, trust_env=False, follow_redirects=False) as client,
            client.stream("GET", url.replace(NONCE, nonce.hex()), headers={"accept-encoding": "identity"}) as response,
        ):
            if response.status_code != 200:
                raise GpuFailed(f"the URL answered with status {response.status_code}", temporary=True)
            for part in response.iter_raw():
                body += part
                if len(body) > MAX_PAYLOAD_BYTES:
                    raise GpuFailed(f"more than {MAX_PAYLOAD_BYTES} bytes")
                if time.monotonic() > until_s:
                    raise GpuFailed(f"the URL took longer than {deadline_s:g} s", temporary=True)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:  # ValueError: a redirect to nowhere
        raise GpuFailed(f"the URL cannot be read: {type(error).__name__}", temporary=True) from error
    return decoded(bytes(body))


def from_file(path: str, nonce: bytes) -> str:
    """What stands in the file of this nonce."""
    try:
        with Path(path.replace(NONCE, nonce.hex())).open("rb") as file:
            content = file.read(MAX_PAYLOAD_BYTES + 1)
    except OSError as error:
        raise GpuFailed(f"the file cannot be read: {error.strerror}", temporary=True) from error
    if len(content) > MAX_PAYLOAD_BYTES:
        raise GpuFailed(f"more than {MAX_PAYLOAD_BYTES} bytes")
    return decoded(content)


def simulated_source(home: Path) -> Source:
    """One SIMULATED GPU under a root of its own, which is published as `<home>/simulator/gpu-root.pem` to be pinned."""
    directory = home / "simulator"
    # A seed of its own: what derives from it is a foreign module's affair, and must not meet the keys.
    device = SimulatedGpu(hmac.digest(load_seed(directory), b"confide simulated gpu", "sha256"))
    write_root(directory / "gpu-root.pem", device.root_pem)
    return lambda nonce: gpu_payload([device], nonce)


def decoded(content: bytes) -> str:
    try:
        return content.decode().strip()
    except UnicodeDecodeError as error:
        raise GpuFailed("what came is not UTF-8") from error


def confidential_mode(library: Nvml) -> bool:
    """Whether NVML says that this machine's GPUs are in confidential mode. Raises GpuFailed."""
    try:
        library.nvmlInit()
        try:
            return bool(library.nvmlSystemGetConfComputeState().ccFeature)
        finally:
            library.nvmlShutdown()
    except library.NVMLError as error:
        raise GpuFailed(f"NVML: {error}") from error


def gpu_devices(root: Path = Path("/")) -> tuple[str, ...]:
    """The device files of NVIDIA's GPUs, by path below `root`."""
    return tuple(sorted(str(path) for path in (root / "dev").glob("nvidia[0-9]*")))
