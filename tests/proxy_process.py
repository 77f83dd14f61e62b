"""`confide proxy` as a child process, on a free port.

with started(service.url, tmp_path) as proxy:
    OpenAI(base_url=proxy.url + "/v1", ...)
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from running import CONFIDE

READY = "confide: proxy ready on "


@dataclass
class Started:
    """`confide proxy` as a process."""

    url: str
    process: "subprocess.Popen[str]"
    stderr: Path

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@contextlib.contextmanager
def started(root: str, home: Path, *arguments: str, simulated: bool = True, **variables: str) -> Iterator[Started]:
    """The program on a free port, ready. `simulated`: it accepts the simulated TEE of `home`."""
    stderr = home / "proxy-stderr.txt"
    accepting = ["--allow-simulated"] if simulated else []
    command = [str(CONFIDE), "proxy", root, "--port", "0", *accepting, *arguments]
    environ = {**os.environ, "CONFIDE_HOME": str(home), **variables}
    with stderr.open("w") as err:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True, env=environ)
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith(READY), stderr.read_text()
        assert first.endswith(f" for {root}\n")
        yield Started(first.removeprefix(READY).split()[0], process, stderr)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(20)
        assert process.stdout is not None
        assert process.stdout.read() == ""
        process.stdout.close()
