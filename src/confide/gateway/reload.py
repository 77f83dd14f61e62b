"""A new configuration for a running service: all of it or nothing (what-users-ask 22).

Upstreams and the models that they serve can change while prompts are served; what was bound, loaded or sealed at the
start cannot. A file that changes anything else is refused with the name of what it changes, so that the service always
runs by one whole file.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from confide import config as configuration
from confide.config import Config, Model
from confide.errors import ConfideError, ConfigError
from confide.gateway.models import ModelTable
from confide.gateway.opened import Opened
from confide.gateway.upstreams import Upstreams, served_models
from confide.telemetry.logs import Log
from confide.upstream.base import Upstream

RESULT_NAME = "reload.json"
RESTART = "Restart the service to change that."
FIXED = ("server", "attester", "source", "store", "limits", "engine")
ENGINE_KEYS = ("kind", "weights", "projector", "modalities")

Reread = Callable[[], Config]


class Result(msgspec.Struct, frozen=True):
    """How a reload ended. `at_ns`: nanoseconds of the clock. `changes`: for people, empty when nothing changed."""

    at_ns: int
    changes: tuple[str, ...] = ()
    error: str | None = None
    remedy: str | None = None


class Staged(NamedTuple):
    """A configuration that could be run by, and its upstreams, opened and not used yet."""

    config: Config
    upstreams: Mapping[str, Opened]


class Reloading(Protocol):
    """Reads the configuration again, and has the service run by it or changes nothing."""

    async def __call__(self) -> Result: ...


async def watch_hangups(hangups: asyncio.Event, reload: Reloading, home: Path) -> None:
    """Reload on each of them, and leave word of how that ended; until cancelled."""
    while True:
        await hangups.wait()
        hangups.clear()
        result = await reload()
        await asyncio.to_thread(write_result, home, result)


class Running:
    """What of a running service can be another: its upstreams and models. `engines`: by the id of their model."""

    def __init__(
        self,
        config: Config,
        upstreams: Upstreams,
        models: ModelTable,
        engines: Mapping[str, Upstream],
        *,
        simulated: bool,
    ) -> None:
        self._drain_s = config.server.drain_s
        self._upstreams = upstreams
        self._models = models
        self._engines = engines
        self._simulated = simulated

    def stage(self, new: Config) -> Staged:
        """What it takes to run by `new`; nothing has changed so far. Raises ConfigError."""
        return Staged(new, self._upstreams.stage(new))

    def take(self, staged: Staged) -> None:
        """Run by it."""
        new = staged.config
        self._upstreams.take(staged.upstreams, drain_s=self._drain_s)
        self._models.replace(
            served_models(new, self._upstreams, self._engines, simulated=self._simulated, created=int(time.time()))
        )


class Reload:
    """Applies new configurations to what is running in this process."""

    def __init__(
        self,
        config: Config,
        reread: Reread,
        home: Path,
        upstreams: Upstreams,
        models: ModelTable,
        engines: Mapping[str, Upstream],
        *,
        simulated: bool,
        log: Log,
    ) -> None:
        """`reread`: gives the configuration anew, or raises ConfigError. `engines`: by the id of their model."""
        self._config = config
        self._reread = reread
        self._running = Running(config, upstreams, models, engines, simulated=simulated)
        self._log = log

    async def __call__(self) -> Result:
        """Read the configuration again and run by it, or change nothing."""
        try:
            new = await asyncio.to_thread(read_again, self._reread)
            changes = self._apply(new)
        except ConfideError as error:
            return failed(error, self._log)
        return done(changes, self._log)

    def _apply(self, new: Config) -> list[str]:
        """Raises ConfigError, and then nothing has changed."""
        require_reloadable(self._config, new)
        changes = changes_between(self._config, new)
        self._running.take(self._running.stage(new))
        self._config = new
        return changes


def read_again(reread: Reread) -> Config:
    """The configuration, its files looked at. Raises ConfigError."""
    new = reread()
    configuration.check_files(new)
    return new


def failed(error: ConfideError, log: Log) -> Result:
    """The result of a reload that changed nothing, logged."""
    log.write("reload", error=type(error).__name__)
    return Result(time.time_ns(), error=error.message, remedy=error.remedy)


def done(changes: Sequence[str], log: Log) -> Result:
    """The result of a reload that was carried out, logged."""
    log.write("reload", changes=len(changes))
    return Result(time.time_ns(), changes=tuple(changes))


def require_reloadable(old: Config, new: Config) -> None:
    """Raise ConfigError for a change that a running service cannot make."""
    for section in FIXED:
        if getattr(old, section) != getattr(new, section):
            raise ConfigError(f"[{section}] has changed, and a running service cannot change it", remedy=RESTART)
    if old.serving != new.serving:
        raise ConfigError(
            f"the service would serve as {new.serving}, and its attestation says {old.serving}", remedy=RESTART
        )
    loaded = {model.id: model for model in old.model if old.is_embedded(model)}
    wanted = {model.id: model for model in new.model if new.is_embedded(model)}
    for model_id in sorted(loaded.keys() | wanted.keys()):
        if engine_keys(loaded.get(model_id)) != engine_keys(wanted.get(model_id)):
            raise ConfigError(
                f"[[model]] {model_id}: a running service neither loads nor unloads models of its own", remedy=RESTART
            )


def engine_keys(model: Model | None) -> tuple[object, ...]:
    """What of a model its engine was started with."""
    return () if model is None else tuple(getattr(model, name) for name in ENGINE_KEYS)


def changes_between(old: Config, new: Config) -> list[str]:
    """In words: which upstreams and models come, go, and are others than before."""
    upstreams = ({each.name: each for each in old.upstream}, {each.name: each for each in new.upstream})
    models = ({each.id: each for each in old.model}, {each.id: each for each in new.model})
    return [*described("upstream", *upstreams), *described("model", *models)]


def described(what: str, old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    added = [f"{what} {name}: added" for name in new if name not in old]
    removed = [f"{what} {name}: removed" for name in old if name not in new]
    changed = [f"{what} {name}: changed" for name in new if name in old and old[name] != new[name]]
    return [*added, *removed, *changed]


def write_result(home: Path, result: Result) -> None:
    """Leave it for `confide reload`, whole or not at all. Where that fails, the log has said how it ended."""
    part = home / f".{RESULT_NAME}"
    with contextlib.suppress(OSError):
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(result))
        part.replace(home / RESULT_NAME)


def read_result(home: Path) -> Result | None:
    """The result of the last reload, None where there is none that can be read."""
    try:
        return msgspec.json.decode((home / RESULT_NAME).read_bytes(), type=Result)
    except (OSError, msgspec.DecodeError):
        return None
