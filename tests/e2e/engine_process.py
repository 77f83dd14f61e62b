"""The engine's process of a running service, as the operating system shows it. Linux only: it is found in /proc."""

import os
from pathlib import Path

import pytest

from running import Running

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the engine's process in /proc")


def engines_of(service: Running) -> list[int]:
    """The process ids of the service's engines."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command, parent = (entry / "cmdline").read_bytes(), int(stat(entry)[1])
        except OSError:
            continue  # it ended while we looked
        if b"confide.engine.worker" in command and parent == service.process.pid:
            found.append(int(entry.name))
    return found


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has used, in steps of a clock tick (10 ms)."""
    fields = stat(Path("/proc") / str(pid))
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stat(entry: Path) -> list[str]:
    """The fields of /proc/PID/stat from the third one, the state, on: a name before it may hold spaces."""
    return (entry / "stat").read_text().rpartition(")")[2].split()
