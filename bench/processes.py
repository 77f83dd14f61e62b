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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.answers import MODEL
from bench.load import Address, BenchFailed

REPOSITORY = Path(__file__).parent.parent
CORES = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else [0]
SERVER_CORE, LOAD_CORE = (CORES[0], CORES[1]) if len(CORES) > 1 else (CORES[0], CORES[0])
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
ENDS_WITHIN_S = 30

CONFIDE = (sys.executable, "-c", "from confide.cli.main import main; main()")
READY = "confide: ready on "
CONFIGURATION = """
[[upstream]]
name = "scripted"
kind = "local"
base_url = "http://127.0.0.1:{port}/v1"

[[model]]
id = "{model}"
upstream = "scripted"
"""


@dataclass(frozen=True)
class Target:
    """A running server and how to reach it. `key`: its API key, where it wants one. `headers`: more that it wants.

    `home`: its state directory. `rewrites`: it answers in other bytes than the engine's.
    """

    name: str
    pid: int
    address: Address
    key: str | None = None
    home: Path | None = None
    headers: tuple[str, ...] = ()
    rewrites: bool = False

    def cpu_s(self) -> float:
        """User and system time of all its threads so far, ended ones too, and of its workers, in seconds."""
        # What clock_getcpuclockid(3) makes of a process id: nanoseconds, where /proc/PID/stat counts hundredths.
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in (self.pid, *descendants(self.pid)))

    def rss_bytes(self) -> int:
        """Resident memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE_BYTES


def descendants(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [each for child in children for each in (child, *descendants(child))]


@contextlib.contextmanager
def pinned(*cores: int) -> Iterator[None]:
    """This process, and what it starts meanwhile, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def started(
    command: Sequence[str],
    *,
    core: int | Sequence[int],
    environment: Mapping[str, str] | None = None,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process on `core`, or on several, all its threads from the first on. Ended on exit."""
    with pinned(*([core] if isinstance(core, int) else core)):
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=stdout, stderr=stderr, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(ENDS_WITHIN_S)
        if process.stdout is not None:
            process.stdout.close()


def first_line(process: "subprocess.Popen[bytes]") -> str:
    """What a server says when it is ready. Raises BenchFailed when it ends instead."""
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    if not line:
        raise BenchFailed(f"{process.args!r} ended with status {process.wait()} before it was ready")
    return line


@contextlib.contextmanager
def child(module: str, *arguments: str, core: int | Sequence[int]) -> Iterator[tuple[int, dict[str, str | int]]]:
    """`python -m module` on `core`: its process id and the JSON object of its first line."""
    with started([sys.executable, "-m", module, *arguments], core=core) as process:
        yield process.pid, json.loads(first_line(process))


def confide_environment(home: Path) -> dict[str, str]:
    """For `confide` with this state directory and nothing else from outside."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CONFIDE_")}
    return {**kept, "CONFIDE_HOME": str(home)}


@dataclass(frozen=True)
class Stage:
    """A place for sockets and state, with the scripted engine on it: its socket, and the port of its OpenAI API."""

    directory: Path
    engine: str
    port: int
    pid: int

    @contextlib.contextmanager
    def relay(self, name: str, address: Address, module: str = "bench.floor") -> Iterator[Target]:
        """A floor in front of the scripted engine."""
        with child(module, str(address), core=SERVER_CORE) as (pid, line):
            yield Target(name, pid, int(line["port"]))

    @contextlib.contextmanager
    def service(self) -> Iterator[Target]:
        """The gateway on the path of the embedded engine, with a fresh state directory."""
        home = self.fresh()
        with child("bench.service", self.engine, str(home), core=SERVER_CORE) as (pid, line):
            yield Target("service", pid, int(line["port"]), str(line["key"]), home, rewrites=True)

    @contextlib.contextmanager
    def local(self, *options: str, name: str = "Confide", core: int | Sequence[int] = SERVER_CORE) -> Iterator[Target]:
        """`confide serve` in front of an upstream of kind `local`, with a fresh state directory."""
        home = self.fresh()
        (configuration := home / "confide.toml").write_text(CONFIGURATION.format(port=self.port, model=MODEL))
        environment = confide_environment(home)
        made = subprocess.run(
            [*CONFIDE, "keys", "create", "bench"], env=environment, capture_output=True, check=True, text=True
        )
        command = [*CONFIDE, "serve", "--port", "0", "--config", str(configuration), *options]
        with started(command, core=core, environment=environment, stderr=subprocess.DEVNULL) as process:
            address = int(first_line(process).removeprefix(READY).rsplit(":", 1)[1])
            yield Target(name, process.pid, address, made.stdout.strip(), home)

    def fresh(self) -> Path:
        """A new directory."""
        return Path(tempfile.mkdtemp(dir=self.directory))


@contextlib.contextmanager
def stage(*, interval_s: float = 0.2, core: int | Sequence[int] = LOAD_CORE) -> Iterator[Stage]:
    """A scripted engine whose paced scene has a token each `interval_s`; this process moves to its core, or cores."""
    cores = [core] if isinstance(core, int) else core
    with tempfile.TemporaryDirectory(prefix="confide-bench-") as name, pinned(*cores):
        path = str(Path(name) / "engine.sock")
        with child("bench.engine", path, str(interval_s), core=core) as (pid, line):
            yield Stage(Path(name), path, int(line["port"]), pid)
