"""The processes of a bench: each on its core, each watched from outside.

With two cores or more, what is measured has the first to itself; load and scripted engine share the second.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.load import Address, BenchFailed

REPOSITORY = Path(__file__).parent.parent
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = (CORES[0], CORES[1]) if len(CORES) > 1 else (CORES[0], CORES[0])
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
ENDS_WITHIN_S = 30


@dataclass(frozen=True)
class Target:
    """A running server and how to reach it. `key`: its API key, where it wants one. `home`: its state directory."""

    name: str
    pid: int
    address: Address
    key: str | None = None
    home: Path | None = None

    def cpu_s(self) -> float:
        """User and system time of all its threads so far, ended ones too, in seconds."""
        # What clock_getcpuclockid(3) makes of a process id: nanoseconds, where /proc/PID/stat counts hundredths.
        return time.clock_gettime((~self.pid << 3) | 2)

    def rss_bytes(self) -> int:
        """Resident memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE_BYTES


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """This process, and what it starts meanwhile, on one core."""
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


@contextlib.contextmanager
def child(module: str, *arguments: str, core: int) -> Iterator[tuple[int, dict[str, str | int]]]:
    """`python -m module` on `core`: its process id and the JSON object of its first line. Ended on exit."""
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert process.stdout is not None
    os.sched_setaffinity(process.pid, {core})
    try:
        line = process.stdout.readline()
        if not line:
            raise BenchFailed(f"{module} ended with status {process.wait()} before it was ready")
        yield process.pid, json.loads(line)
    finally:
        process.terminate()
        process.wait(ENDS_WITHIN_S)
        process.stdout.close()


@dataclass(frozen=True)
class Stage:
    """A place for sockets and state, with the scripted engine on it."""

    directory: Path
    engine: Address

    @contextlib.contextmanager
    def floor(self) -> Iterator[Target]:
        """The raw relay."""
        with child("bench.floor", str(self.engine), core=SERVER_CORE) as (pid, line):
            yield Target("floor", pid, int(line["port"]))

    @contextlib.contextmanager
    def service(self) -> Iterator[Target]:
        """The gateway, with a fresh state directory."""
        home = Path(tempfile.mkdtemp(dir=self.directory))
        with child("bench.service", str(self.engine), str(home), core=SERVER_CORE) as (pid, line):
            yield Target("service", pid, int(line["port"]), str(line["key"]), home)


@contextlib.contextmanager
def stage(*, interval_s: float = 0.2) -> Iterator[Stage]:
    """A scripted engine whose paced scene has a token each `interval_s`; this process moves to its core."""
    with tempfile.TemporaryDirectory(prefix="confide-bench-") as name, pinned(LOAD_CORE):
        path = str(Path(name) / "engine.sock")
        with child("bench.engine", path, str(interval_s), core=LOAD_CORE):
            yield Stage(Path(name), path)
