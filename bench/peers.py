"""Other gateways on the same work, in the same table: LiteLLM's proxy and the Portkey gateway. They prove nothing.

Each is installed into build/peers, by this bench alone, in releases pinned here, with what they need as it was on one
day; no build script runs. One that cannot be installed or run, or gives a wrong answer, is skipped, with the reason.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvloop

from bench import local
from bench.answers import MODEL
from bench.figures import Figure, Size, Skipped
from bench.load import BenchFailed
from bench.local import CONFIDE, Samples
from bench.open_streams import held
from bench.overhead import Case
from bench.processes import REPOSITORY, SERVER_CORE, Stage, Target, stage, started
from bench.report import progress
from confide.errors import CannotTell

SCRATCH = REPOSITORY / "build" / "peers"
AS_OF = "2026-11-19"
INSTALLED_WITHIN_S = 900
STARTED_WITHIN_S = 120
ROUNDS = 3
KEY = "sk-bench"


@dataclass(frozen=True)
class Peer:
    """A gateway: how it is installed into a directory, and how it is run in front of the scripted engine."""

    name: str
    installation: Callable[[Path], Sequence[Sequence[str]]]
    command: Callable[[Path, int, int], Sequence[str]]  # directory, its port, the engine's port
    variables: Mapping[str, str]
    headers: Callable[[int], tuple[str, ...]]  # of a request, for the engine's port
    key: str | None = None
    share: int = 1  # it gets one of so many requests: a slow one is not given all
    scratch: Path = SCRATCH

    def cases(self, cases: Sequence[Case]) -> list[Case]:
        """Those that it gets through: of a slow one no long streams on many connections."""
        return [case for case in cases if self.share == 1 or case.weight == 1 or case.connections == 1]

    @property
    def directory(self) -> Path:
        """Its own, one a release."""
        return self.scratch / self.name.lower().replace(" ", "-")

    def install(self) -> None:
        """Once; kept. Raises CannotTell."""
        done = self.directory / ".installed"
        if done.exists():
            return
        progress(f"peers: installing {self.name}")
        self.directory.mkdir(parents=True, exist_ok=True)
        for command in self.installation(self.directory):
            run(command)
        done.touch()

    @contextlib.contextmanager
    def serve(self, scripted: Stage) -> Iterator[Target]:
        """One process on the core of what is measured. Raises CannotTell when it does not listen."""
        port = free_port()
        environment = {**os.environ, **self.variables}
        with (
            (self.directory / "log.txt").open("wb") as log,
            started(
                self.command(self.directory, port, scripted.port),
                core=SERVER_CORE,
                environment=environment,
                stdout=log,
                stderr=log,
            ) as process,
        ):
            await_listening(process, port, Path(log.name))
            yield Target(self.name, process.pid, port, self.key, None, self.headers(scripted.port), rewrites=True)


def litellm_installation(directory: Path) -> list[list[str]]:
    """A virtual environment of its own; wheels only."""
    uv = str(Path(sys.executable).with_name("uv"))
    python = str(directory / "bin" / "python")
    pip = [uv, "pip", "install", "--quiet", "--only-binary", ":all:", "--exclude-newer", AS_OF, "--python", python]
    return [
        [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(directory)],
        [*pip, "litellm[proxy]==1.106.11"],
    ]


def litellm_command(directory: Path, port: int, engine_port: int) -> list[str]:
    """One worker, with a key, as few extras as it has."""
    served = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{engine_port}/v1", "api_key": "none"}
    configuration = {
        "model_list": [{"model_name": MODEL, "litellm_params": served}],
        "general_settings": {"master_key": KEY},
    }
    (written := directory / "bench.yaml").write_text(json.dumps(configuration))  # JSON is YAML
    program = str(directory / "bin" / "litellm")
    return [program, "--config", str(written), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


def portkey_installation(directory: Path) -> list[list[str]]:
    """With the last server library under which its streams do not fail (Portkey-AI/gateway#1389)."""
    package = {
        "private": True,
        "dependencies": {"@portkey-ai/gateway": "1.15.2"},
        "overrides": {"@hono/node-server": "1.14.1"},
    }
    (directory / "package.json").write_text(json.dumps(package))
    command = ["npm", "install", "--prefix", str(directory), "--before", AS_OF, "--ignore-scripts"]
    return [[*command, "--no-audit", "--no-fund"]]


def portkey_command(directory: Path, port: int, _: int) -> list[str]:
    """It has no keys of its own, and is told by each request where to send it."""
    program = directory / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    return ["node", str(program), f"--port={port}", "--headless"]


def portkey_headers(engine_port: int) -> tuple[str, ...]:
    """Where to send a request."""
    return ("x-portkey-provider: openai", f"x-portkey-custom-host: http://127.0.0.1:{engine_port}/v1")


PEERS = (
    Peer(
        "LiteLLM 1.106.11",
        litellm_installation,
        litellm_command,
        {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "LITELLM_LOG": "ERROR"},
        lambda _: (),
        KEY,
        share=24,
    ),
    Peer(
        "Portkey 1.15.2",
        portkey_installation,
        portkey_command,
        {"NODE_ENV": "production"},
        portkey_headers,
        KEY,
    ),
)


def run(command: Sequence[str]) -> None:
    """Raises CannotTell with the last that the command said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALLED_WITHIN_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotTell(f"{command[0]}: {error}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-400:]
        raise CannotTell(f"{Path(command[0]).name} ended with status {done.returncode}: {said}")


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def await_listening(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    """Wait until the port takes connections. Raises CannotTell with the last of the log."""
    until = time.monotonic() + STARTED_WITHIN_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.2)
    raise CannotTell(f"it does not listen (status {process.poll()}): {log.read_text(errors='replace').strip()[-400:]}")


def measure(size: Size) -> list[Figure | Skipped]:
    """Each peer that runs here, taken in turns with Confide and both floors."""
    skipped: list[Figure | Skipped] = []
    samples: Samples = defaultdict(list)
    with ExitStack() as closing:
        scripted = closing.enter_context(stage())
        own = local.opened(scripted, closing)
        peers: list[tuple[Peer, Target]] = []
        for peer in PEERS:
            try:
                peer.install()
                peers.append((peer, closing.enter_context(peer.serve(scripted))))
            except CannotTell as error:
                skipped.append(Skipped(peer.name, str(error)))
        cases = local.cases_of(size)
        for number in range(min(size.rounds, ROUNDS)):
            progress(f"peers: round {number + 1} of {min(size.rounds, ROUNDS)}")
            local.take_round(samples, cases, own, scripted, size.requests)
            for peer, target in tuple(peers):
                try:
                    local.take_round(samples, peer.cases(cases), [target], scripted, size.requests // peer.share)
                except BenchFailed as error:
                    peers.remove((peer, target))
                    skipped.append(Skipped(peer.name, str(error)))
    running = [peer for peer, _ in peers]
    return [*compared(cases, samples, [peer.name for peer in running]), *skipped, *memory(size, running)]


def compared(cases: Sequence[Case], samples: Samples, names: Sequence[str]) -> list[Figure]:
    """What Confide and the floors took, then each peer, and its CPU over Confide's."""
    found: list[Figure] = []
    for case in cases:
        found += local.figures(case, samples)
        for name in names:
            if theirs := samples[case, name]:
                what = f"CPU a request, {name} (proves nothing) / Confide: {case}"
                found.append(local.ratio(what, theirs, samples[case, CONFIDE]))
                found += local.described(case, name, theirs)
    return found


def memory(size: Size, peers: Sequence[Peer]) -> list[Figure | Skipped]:
    """What an open stream keeps in memory, each in a fresh process."""
    found: list[Figure | Skipped] = []
    with stage() as scripted:
        serving: list[tuple[str, Callable[[], AbstractContextManager[Target]]]] = [(CONFIDE, scripted.local)]
        serving += [(peer.name, partial(peer.serve, scripted)) for peer in peers]
        for name, serve in serving:
            progress(f"peers: {size.open_streams} streams held by {name}")
            try:
                with serve() as target:
                    kib = uvloop.run(held(target, scripted.engine, size.open_streams)) / 1024
            except (BenchFailed, CannotTell) as error:
                found.append(Skipped(f"{name}, open streams", str(error)))
                continue
            found.append(Figure.of(f"memory an open stream ({size.open_streams} open)", [kib], "KiB", target=name))
    return found
