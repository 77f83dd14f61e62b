"""The real program as a child process: `confide serve` with the embedded model, on a free port.

with running(home) as service:
    httpx2.get(service.url + "/health")
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

CONFIDE = Path(sys.executable).parent / "confide"
READY = "confide: ready on "
READY_WITHIN_S = 60.0


@dataclass
class Running:
    """A started service. `output()` is everything it wrote so far, both streams."""

    url: str
    home: Path
    process: "subprocess.Popen[bytes]"
    stdout: Path
    stderr: Path

    def output(self) -> str:
        return self.stdout.read_text() + self.stderr.read_text()

    def terminate(self, timeout_s: float = 40) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(10)


def home_with_weights(base: Path, engine_home: Path) -> Path:
    """A fresh state directory that shares the weights of `engine_home`."""
    home = base / "home"
    home.mkdir(mode=0o700)
    (home / "models").symlink_to(engine_home / "models")
    return home


@contextlib.contextmanager
def running(
    home: Path, *arguments: str, config: str | None = None, environ: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """`confide serve` on a free port, ready. `config`: the text of a configuration file. Stopped on exit."""
    if config is not None:
        (home / "confide.toml").write_text(config)
        arguments = ("--config", str(home / "confide.toml"), *arguments)
    stdout, stderr = home / "stdout.txt", home / "stderr.txt"
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(
            [CONFIDE, "serve", "--port", "0", *arguments],
            stdout=out,
            stderr=err,
            env={**os.environ, "CONFIDE_HOME": str(home), **(environ or {})},
        )
    try:
        yield Running(wait_ready(process, stdout, stderr), home, process, stdout, stderr)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def wait_ready(process: "subprocess.Popen[bytes]", stdout: Path, stderr: Path) -> str:
    """The address from the ready line; fails with what the program wrote when it ends or takes too long."""
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until and process.poll() is None:
        for line in stdout.read_text().splitlines():
            if line.startswith(READY):
                return line.removeprefix(READY)
        time.sleep(0.02)
    raise AssertionError(f"not ready, exit status {process.poll()}:\n{stderr.read_text()}")
