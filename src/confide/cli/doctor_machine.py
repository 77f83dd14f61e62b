"""What `confide doctor` asks of the machine, whatever the configuration says. Nothing here writes to the disk."""

import ctypes
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from confide.attester import simulated_tsm
from confide.attester.dstack_agent import ENDPOINT_VARIABLE, SOCKETS
from confide.attester.gpu_sources import GpuFailed, Nvml, confidential_mode, gpu_devices, load_nvml
from confide.attester.selection import SNP_DEVICES, TDX_DEVICES, TSM, Kind, may_write, usable
from confide.cli.finding import Finding, fail, ok, warn
from confide.engine.supervisor import worker_environment
from confide.errors import ConfigError

PYTHON_LEAST = (3, 11)
MACHINES = {"x86_64", "amd64", "aarch64", "arm64"}  # what the engine's wheels are built for
EARLIEST_S, LATEST_S = 1_767_225_600, 2_366_841_600  # 2026-01-01 and 2045-01-01, UTC, in Unix seconds
IMPORT_TIMEOUT_S = 60

# tee-evidence 2.1, 2.2. The ioctl of /dev/sev-guest is not used, but it tells what the machine is.
TEE_SIGNS = {
    "TDX guest device": TDX_DEVICES,
    "SEV-SNP guest device": SNP_DEVICES,
    "configfs-tsm": (TSM,),
    "dstack agent": SOCKETS,
}
NVML_REMEDY = "Install NVIDIA's driver in this guest, and Confide with its extra: pip install 'confide[gpu]'."
SIMULATED = "SIMULATED TEE: no hardware protection"
TAKES = {"dstack": "dstack's guest agent", "tsm": "configfs-tsm", "simulated": f"the {SIMULATED}"}


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    found = ".".join(map(str, version))
    if version < PYTHON_LEAST:
        return fail("Python", found, "Install Python 3.11 or newer.")
    return ok("Python", found)


def libc(system: str = sys.platform, machine: str | None = None, name: str | None = None) -> Finding:
    """Whether there is a wheel of the engine for this platform. `name`: the C library, "" for one that is not glibc."""
    machine = platform.machine() if machine is None else machine
    name = " ".join(platform.libc_ver()).strip() if name is None else name
    found = f"{system} {machine}" + (f", {name or 'not glibc (musl?)'}" if system == "linux" else "")
    if machine.lower() not in MACHINES:
        return fail("platform", found, "The engine is built for x86-64 and ARM64 only.")
    if system == "linux" and not name.startswith("glibc"):
        return fail("platform", found, "The engine has no build for musl: use an image based on Debian, not Alpine.")
    return ok("platform", found)


def libgomp(system: str = sys.platform, library: str = "libgomp.so.1") -> Finding:
    """The one system library that the engine's wheel does not bring."""
    if system != "linux":
        return ok("libgomp", "not needed here")
    try:
        ctypes.CDLL(library)
    except OSError:
        return fail("libgomp", f"{library} cannot be loaded", "Install it: apt-get install libgomp1")
    return ok("libgomp", library)


def engine(module: str = "xllamacpp") -> Finding:
    """Import the engine in a process of its own: it may end the process that tries."""
    command = (sys.executable, "-P", "-c", f"import {module}")
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command line
            command, env=worker_environment(), capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return fail("engine", f"{module} did not load within {IMPORT_TIMEOUT_S} s", "Try again on an idle machine.")
    if done.returncode == -signal.SIGILL:
        return fail("engine", f"{module} needs instructions this CPU lacks", "Use a machine whose CPU has AVX2.")
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return fail("engine", f"{module} does not load: {reason[0]}", "Install Confide again in a fresh environment.")
    return ok("engine", f"{module} {importlib.metadata.version(module)} loads")


def clock(now_s: float, monotonic_s: tuple[float, float]) -> Finding:
    """`now_s`: Unix seconds. `monotonic_s`: two readings of the monotonic clock, in the order they were made."""
    remedy = "Set the clock (NTP): certificates, reports and proofs carry times, and verifiers compare them."
    if not EARLIEST_S <= now_s < LATEST_S:
        return fail("clock", f"Unix time {now_s:.0f} is not between 2026 and 2045", remedy)
    if monotonic_s[1] < monotonic_s[0]:
        return fail("clock", "the monotonic clock went backwards", "This machine's virtual clock is broken: move.")
    return ok("clock", f"Unix time {now_s:.0f}")


def tee(
    kind: Kind,
    root: Path = Path("/"),
    environ: Mapping[str, str] = os.environ,
    *,
    may_write: Callable[[Path], bool] = may_write,
) -> Finding:
    """Which signs of a TEE there are, what they lack, and what `[attester] kind` takes here (tee-evidence 2)."""
    signs = {name: any(os.path.lexists(root / path) for path in paths) for name, paths in TEE_SIGNS.items()}
    signs["dstack agent"] |= bool(environ.get(ENDPOINT_VARIABLE))
    signs["configfs-tsm"] |= simulated_tsm.find_simulated_tsm(environ) is not None
    groups = {
        "found": [name for name in signs if signs[name]],
        "not found": [name for name in signs if not signs[name]],
    }
    found = "; ".join(f"{word}: {', '.join(names)}" for word, names in groups.items() if names)
    try:
        chosen = usable(kind, root, environ, may_write=may_write)
    except ConfigError as error:
        return fail("TEE", f"{found}; {error.message}", error.remedy or "")
    if chosen == "simulated":
        return warn("TEE", f"{found}; {TAKES[chosen]}")
    if environ.get(ENDPOINT_VARIABLE) and chosen == "dstack":
        return warn("TEE", f"{found}; {ENDPOINT_VARIABLE} names the agent, which counts as a {SIMULATED}")
    if simulated_tsm.find_simulated_tsm(environ) is not None and chosen == "tsm":
        return warn("TEE", f"{found}; {simulated_tsm.ENDPOINT_VARIABLE} names configfs-tsm, which is a {SIMULATED}")
    return ok("TEE", f"{found}; takes {TAKES[chosen]}")


def gpu(source: str, root: Path = Path("/"), load: Callable[[], Nvml] = load_nvml) -> Finding:
    """Which NVIDIA GPUs there are, whether they are in confidential mode, and whether `[attester] gpu` shows them."""
    devices = gpu_devices(root)
    if not devices:
        if source in ("none", "simulated"):
            return ok("GPU", "none found" + (f"; a {SIMULATED} is shown" if source == "simulated" else ""))
        return warn(
            "GPU", f'none found, and [attester] gpu = "{source}"', "See that /dev/nvidia0 is in this container."
        )
    found = f"{len(devices)} found"
    try:
        is_confidential = confidential_mode(load())
    except GpuFailed as error:
        return (fail if source == "nvml" else warn)(
            "GPU", f"{found}; whether in confidential mode is not known: {error}", NVML_REMEDY
        )
    if not is_confidential:
        return (warn if source == "none" else fail)(
            "GPU",
            f"{found}, not in confidential mode",
            "Prompts leave the TEE for such a GPU: have the host set CC mode.",
        )
    if source == "none":
        return warn("GPU", f"{found} in confidential mode, not shown", 'Set [attester] gpu = "nvml" to attest them.')
    return ok("GPU", f'{found} in confidential mode, shown by gpu = "{source}"')
