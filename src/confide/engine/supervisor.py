"""Starts the engine's child process, waits until it serves, and starts it again with back-off when it dies.

On entry to `endpoint` the engine has answered that it is ready. While it is down, callers get NotReady (503) with the
seconds until the next try. What this does not do: requests. They go through upstream/channel.py to the models' sockets.
"""

import asyncio
import contextlib
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from confide.engine.worker import Settings
from confide.errors import ConfideError, ConfigError, NotReady
from confide.telemetry.logs import Log

LOAD_TIMEOUT_S = 180.0
BACKOFF_FIRST_S = 0.25
BACKOFF_MOST_S = 30.0
STEADY_S = 60.0  # an engine that lived this long starts again without back-off
SOCKET_PATH_MOST = 100  # bytes; sun_path holds 108 on Linux, 104 on macOS
# What Python and the engine's libraries read. Everything else stays with the parent, whose variables may hold keys.
KEPT_VARIABLES = frozenset(
    ["HOME", "LANG", "PATH", "PYTHONHOME", "PYTHONPATH", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"]
)
KEPT_PREFIXES = ("CUDA_", "GGML_", "GOMP_", "HIP_", "LC_", "OMP_", "ROCR_", "VK_")


class EngineLoadFailed(ConfigError):
    """The child process could not load its models."""


class Supervisor:
    """All models in one child process: when it dies they start again together."""

    def __init__(self, settings: Sequence[Settings], *, before_start: Callable[[], None], log: Log) -> None:
        """`settings`: of each model. `before_start` runs in a thread before each start and raises when the weights are
        not what was recorded.
        """
        self.settings = tuple(settings)
        self.restarts = 0
        self._before_start = before_start
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._ready = False
        self._next_try = 0.0
        self._stopping = False
        self._keeper: asyncio.Task[None] | None = None
        self.on_change: Callable[[], None] = lambda: None  # it serves from now on, or does not, or when it is tried

    @property
    def is_ready(self) -> bool:
        return self._ready

    @property
    def wait_s(self) -> float:
        """Seconds until the next start, while it is down."""
        return self._next_try - asyncio.get_running_loop().time()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._ready else None

    def check_ready(self) -> None:
        """Raise NotReady, with the seconds until the next start, unless the engine serves."""
        if not self._ready:
            raise loading(self.wait_s)

    async def start(self) -> None:
        """Load the model once; raises what `before_start` raises, or EngineLoadFailed. Then keep it alive."""
        await self._launch()
        self._keeper = asyncio.create_task(self._keep(), name="engine-keeper")

    async def stop(self) -> None:
        """End the child process; it is gone when this returns."""
        self._stopping = True
        self._ready = False
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self._end_process()
        for model in self.settings:
            remove_socket(Path(model.socket_path))

    async def _launch(self) -> None:
        await asyncio.to_thread(self._before_start)
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "confide.engine.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=worker_environment(),
            start_new_session=True,  # Ctrl-C on a terminal goes to a whole group; streams drain first
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(self.settings) + b"\n")
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                await process.stdin.drain()
                line = await process.stdout.readline()
        except (TimeoutError, ConnectionError):
            line = b""
        if line.strip() != b"ready":
            await self._end_process()
            raise EngineLoadFailed(
                f"the engine could not load the model: {line.decode(errors='replace').strip() or 'it ended at once'}",
                remedy="Run `confide doctor`; if the weights are whole, try less context or fewer slots in [engine].",
            )
        self._ready = True
        self.on_change()
        self._log.write("engine.ready", restarts=self.restarts)

    async def _keep(self) -> None:
        """Wait for the child's end, start it again; back off while it does not last."""
        loop = asyncio.get_running_loop()
        delay = BACKOFF_FIRST_S
        while not self._stopping:
            assert self._process is not None
            began = loop.time()
            status = await self._process.wait()
            self._ready = False
            self._log.write("engine.exited", exit_status=status)
            if loop.time() - began > STEADY_S:
                delay = BACKOFF_FIRST_S
            while not self._ready:
                self._next_try = loop.time() + delay
                self.on_change()
                await asyncio.sleep(delay)
                delay = min(delay * 2, BACKOFF_MOST_S)
                self.restarts += 1
                try:
                    await self._launch()
                except (ConfideError, OSError) as error:  # weights that changed are a VerificationError
                    self._log.write("engine.start_failed", error=type(error).__name__)

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()  # it holds nothing that must be written
        await process.wait()


def loading(wait_s: float) -> NotReady:
    """What a client is told while the engine is down. `wait_s`: until the next start."""
    return NotReady("the model is loading; try again shortly", retry_after_s=max(1, round(wait_s)))


def worker_environment() -> dict[str, str]:
    """The child gets no settings and no keys by environment, and its threads sleep instead of spinning."""
    kept = {
        name: value for name, value in os.environ.items() if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)
    }
    return {"OMP_WAIT_POLICY": "passive", **kept}


def socket_directory(home: Path) -> Path:
    """A directory 0700 for the engine's socket: below `home`, or a fresh temporary one where that path is too long.

    Raises ConfigError where every place is too long for a socket, or none can be written.
    """
    directory = home / "run"
    try:
        if fits_socket(directory):
            directory.mkdir(mode=0o700, exist_ok=True)
            directory.chmod(0o700)
            return directory
        for base in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - the directory made in it is private
            if fits_socket(Path(base, "confide-12345678")):
                return Path(tempfile.mkdtemp(prefix="confide-", dir=base))
    except OSError as error:
        raise ConfigError(f"no directory for the engine's socket: {error.strerror}: {error.filename}") from error
    raise ConfigError(
        f"{directory} is too long a path for a socket, and so is the temporary directory",
        remedy="Set CONFIDE_HOME or TMPDIR to a shorter path.",
    )


def fits_socket(directory: Path) -> bool:
    """Whether the path of a socket in `directory` fits what the system takes; its name has at most 24 bytes."""
    return len(os.fsencode(directory)) <= SOCKET_PATH_MOST - 24


def remove_socket(path: Path) -> None:
    """The socket, which a killed process leaves behind, and its directory unless another model's is in it."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def new_api_key() -> str:
    """The key between gateway and engine; lives as long as the service."""
    return secrets.token_urlsafe(32)


def default_threads(cores: int | None) -> int:
    """One core is left to the gateway: OpenMP's barriers collapse when every core is taken."""
    return max(1, (cores or 1) - 1)
