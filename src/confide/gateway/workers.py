"""A service of several processes: one that has what there is once, and workers that serve with the same keys.

    parent        state lock, bound socket, engine, verification of upstreams, signals; serves nobody and has no keys
    fork server   what workers are born with (`gateway/forkserver.py`)
    workers       each the whole prompt path over the one socket (`gateway/worker.py`, `gateway/accepting.py`)

    lock, socket, engine plans -> fork server -> store -> workers open -> engine loads -> workers listen -> ready
    SIGTERM -> workers drain, and end -> engine, store, lock released

A worker that ends is started again, with back-off while it does not last; what it held, slots of the engine and its
place at the socket, is free at once, and the others go on. One that hangs is ended (`gateway/turning.py`). The service
ends when workers cannot start at all.
"""

import asyncio
import contextlib
import functools
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec

from confide import config as configuration
from confide.config import Config
from confide.engine.slot_service import EngineStands, SlotService
from confide.engine.supervisor import Supervisor, remove_socket
from confide.engine.worker import keep_no_core
from confide.errors import CannotTell, ConfideError
from confide.gateway.accepting import ConnectionCounts
from confide.gateway.auth import Authenticator
from confide.gateway.control import HasOpened
from confide.gateway.crew import Crew, any_of
from confide.gateway.engines import engine_plan, slots_of, supervised
from confide.gateway.forkserver import ForkServer, fork_server
from confide.gateway.listening import bound_socket, on_hangup, on_signals, url_of
from confide.gateway.reload import (
    Reread,
    Result,
    changes_between,
    done,
    failed,
    read_again,
    require_reloadable,
    watch_hangups,
)
from confide.gateway.service import Announce, Service, now_s, require_key, simulated_root, watching
from confide.gateway.turning import Turns
from confide.gateway.upstreams import Upstreams, open_upstreams
from confide.gateway.worker import Shared, prepare
from confide.store.lock import lock_state
from confide.store.sqlite import open_store
from confide.telemetry.logs import Log
from confide.upstream.verified import SessionUpstream


def serve(
    config: Config, home: Path, *, announce: Announce, log: Log | None = None, reread: Reread | None = None
) -> None:
    """As `gateway.service.serve`, in `[server] workers` processes. For a process that has one thread and no loop."""
    import uvloop

    keep_no_core()
    with lock_state(home), bound_socket(config) as listener, contextlib.ExitStack() as closing:
        shared = Shared(
            config=config,
            home=home,
            listener=listener,
            plans=tuple(engine_plan(model, config, home) for model in config.model if config.is_embedded(model)),
            counts=ConnectionCounts(config.server.workers),
            turns=Turns(config.server.workers),
        )
        for plan in shared.plans:
            closing.callback(remove_socket, Path(plan.settings.socket_path))  # where the engine was never started
        with fork_server(functools.partial(prepare, shared)) as control:
            uvloop.run(lead(shared, control, announce, log or Log(), reread or (lambda: config)))


async def lead(shared: Shared, control: socket.socket, announce: Announce, log: Log, reread: Reread) -> None:
    """Be the parent until a signal. `control`: of the fork server. Raises as `gateway.service.serve`."""
    config, home = shared.config, shared.home
    async with contextlib.AsyncExitStack() as closing:
        hangups, ending = asyncio.Event(), asyncio.Event()
        closing.enter_context(on_hangup(hangups))
        forks = ForkServer(control)
        forks.watch()
        closing.callback(forks.close)
        store = open_store(config.store.url, home, config.store, sharing=shared.sharing(tidies=True))
        closing.push_async_callback(store.close)
        authenticator = Authenticator(store)
        await authenticator.refresh()
        require_key(authenticator, config)
        upstreams = await closing.enter_async_context(
            open_upstreams(verified_here(config), store=store, now=now_s, log=log)
        )
        slots = {name: each for plan in shared.plans for name, each in slots_of(plan, config).items()}
        services = {name: SlotService(name, each) for name, each in slots.items()}
        crew = Crew(config, forks, services, shared.counts, shared.turns, log)
        closing.push_async_callback(crew.kill)
        lead_upstreams(upstreams, crew)
        opened = await crew.open_all()
        if shared.plans:
            lead_engine(await closing.enter_async_context(supervised(shared.plans, log)), crew)
        with on_signals((signal.SIGTERM, signal.SIGINT), ending):
            await crew.listen_all()
            announce(service_of(shared, opened[0], is_open=authenticator.is_open))
            reload = ReloadAll(config, reread, upstreams, crew, log)
            async with watching(watch_hangups(hangups, reload, home), "reload"):
                await any_of(ending, crew.hopeless)
            await crew.drain(config.server.drain_s)
        if crew.hopeless.is_set():
            raise CannotTell("the workers ended, and could not be started again", remedy="The log says what they met.")


def service_of(shared: Shared, opened: HasOpened, *, is_open: bool) -> Service:
    """What to tell the one who started the service, from what a worker said."""
    return Service(
        config=shared.config,
        url=url_of(shared.config, shared.listener),
        platform=opened.platform,
        models=opened.models,
        store_path=shared.config.store.url or str(shared.home / "confide.db"),
        is_open=is_open,
        keyset_digest=opened.keyset_digest,
        simulated_root=simulated_root(opened.platform.kind, shared.home),
    )


def verified_here(config: Config) -> Config:
    """The upstreams that this process verifies for all. Whether they answer, each worker sees for itself."""
    attested = [each for each in config.upstream if each.kind in configuration.ATTESTED_KINDS]
    return msgspec.structs.replace(
        config, upstream=tuple(msgspec.structs.replace(each, probe="none") for each in attested)
    )


def lead_upstreams(upstreams: Upstreams, crew: Crew) -> None:
    """Have the workers told of every change of a session, from the first on."""
    led = {
        name: opened.upstream
        for name, opened in upstreams.opened.items()
        if isinstance(opened.upstream, SessionUpstream)
    }
    for upstream in led.values():
        upstream.on_change = functools.partial(crew.tell_session, upstream)
    crew.led = led


def lead_engine(supervisor: Supervisor, crew: Crew) -> None:
    """Have the workers told whether the embedded models are served, from now on."""

    def tell() -> None:
        crew.tell_engine(EngineStands(supervisor.is_ready, max(0.0, supervisor.wait_s)))

    supervisor.on_change = tell
    tell()


class ReloadAll:
    """Applies a new configuration to all workers or to none: looked at here, staged by each, then taken by all."""

    def __init__(self, config: Config, reread: Reread, upstreams: Upstreams, crew: Crew, log: Log) -> None:
        self._config = config
        self._reread = reread
        self._upstreams = upstreams
        self._crew = crew
        self._log = log

    async def __call__(self) -> Result:
        """See Reloading."""
        try:
            new = await asyncio.to_thread(read_again, self._reread)
            changes = await self._apply(new)
        except ConfideError as error:
            return failed(error, self._log)
        return done(changes, self._log)

    async def _apply(self, new: Config) -> Sequence[str]:
        """Raises ConfigError, and then nothing has changed."""
        require_reloadable(self._config, new)
        changes = changes_between(self._config, new)
        async with self._crew.changing:  # nobody opens by the one while others are told of the other
            staged = self._upstreams.stage(verified_here(new))
            await self._crew.stage(new)
            # In one breath: what is told of the new upstreams' sessions reaches every worker after this.
            self._crew.commit(new)
            self._upstreams.take(staged, drain_s=new.server.drain_s)
            lead_upstreams(self._upstreams, self._crew)
            for upstream in self._crew.led.values():
                self._crew.tell_session(upstream)  # a worker may have opened anew what is the same here
            self._config = new
        return changes
