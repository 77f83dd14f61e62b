"""`confide simulate dstack` and `tsm` as processes of their own, and `confide verify` by somebody else."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from running import CONFIDE

EXPORT, CONTROL, TRUST = "export ", "change what is wrong: ", "verify with: "


@dataclass(frozen=True)
class Machine:
    """One that runs. `environ`: what it says to export; `trust`: what it says to verify with; `control`: where what is
    wrong with it is set.
    """

    process: "subprocess.Popen[str]"
    environ: dict[str, str]
    trust: tuple[str, ...]
    control: str

    @contextlib.contextmanager
    def wrong(self, fault: str) -> Iterator[None]:
        """The machine has this fault while the block runs."""
        self._set(fault)
        try:
            yield
        finally:
            self._set("")

    def _set(self, fault: str) -> None:
        answer = httpx2.put(self.control, content=fault.encode(), trust_env=False)
        assert answer.status_code == 200, answer.text

    def terminate(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)


@contextlib.contextmanager
def simulating(home: Path, kind: str, *options: str) -> Iterator[Machine]:
    """`confide simulate KIND`, ready. Its standard output is read as a person would read it."""
    home.mkdir(mode=0o700, exist_ok=True)
    socket = home / "guest.sock"
    command: list[str | Path] = [CONFIDE, "simulate", kind, "--socket", socket, *options]
    environ = {**os.environ, "CONFIDE_HOME": str(home)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        try:
            lines = read_until_trust(process)
            assert lines[0] == f"confide: simulated {kind} ready on {socket}"
            assert lines[1].startswith("SIMULATED")
            exports = (shlex.split(line.removeprefix(EXPORT))[0] for line in lines if line.startswith(EXPORT))
            control = next(line for line in lines if line.startswith(CONTROL))
            trust = shlex.split(lines[-1].removeprefix(TRUST))
            yield Machine(process, dict(each.split("=", 1) for each in exports), tuple(trust), control.split()[-1])
        finally:
            process.kill()


def read_until_trust(process: "subprocess.Popen[str]") -> list[str]:
    """The lines up to the last one, which says what to verify with."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if line.startswith(TRUST):
            return lines
    raise AssertionError(f"the simulator ended: {lines}")


@dataclass(frozen=True)
class Verified:
    """How `confide verify --json` ended. `document`: empty where there was nothing to check."""

    status: int
    document: dict[str, Any]
    stderr: str

    @property
    def checks(self) -> dict[str, str]:
        """The status of each check by its name."""
        return {check["name"]: check["status"] for check in self.document.get("checks", ())}

    def named(self, status: str) -> set[str]:
        """The checks that ended so."""
        return {name for name, found in self.checks.items() if found == status}


def verify(url: str, *options: str) -> Verified:
    """`confide verify URL --json` with nobody's state directory."""
    command: list[str | Path] = [CONFIDE, "verify", url, *options, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={"CONFIDE_HOME": "/nowhere"})
    return Verified(done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr)
