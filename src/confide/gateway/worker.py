"""One of several processes that serve: the service of `gateway/service.py`, but for what its parent has for all.

    forked -> Begin -> store, keys, attester, upstreams -> HasOpened -> Listen -> HTTP server -> Listens
    Drain, or SIGTERM to this process alone -> draining -> streams end -> ended

What it was born with: the configuration, the bound socket and the plans of the engines (`Shared`); the seed of keys
that no platform gives and the salt of cached prompts (`Secrets`). What its parent tells it: whether the engines serve,
who has their slots, the sessions of attested upstreams, another configuration. Without the parent it ends at once:
nobody would stop it.
"""

import asyncio
import contextlib
import functools
import gc
import itertools
import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import msgspec

from confide.attester.base import MAX_WAITING, Attester
from confide.attester.keys import DrawnSeed
from confide.attester.nvidia import open_gpu
from confide.config import Config
from confide.engine.slot_service import Denied, EngineStands, FollowedEngine, Granted, Room, SharedSlots
from confide.errors import ConfideError, ConfigError
from confide.gateway.accepting import ConnectionCounts, Door
from confide.gateway.control import (
    Abandon,
    Begin,
    Commit,
    Drain,
    HasFailed,
    HasOpened,
    HasStaged,
    Line,
    Listen,
    Listens,
    SessionStands,
    Stage,
    ToWorker,
    Verified,
    Verify,
    WrongKey,
)
from confide.gateway.engines import EnginePlan, reached, turns_of
from confide.gateway.forkserver import Start
from confide.gateway.listening import run_server
from confide.gateway.models import ModelTable
from confide.gateway.reload import Running, Staged
from confide.gateway.service import (
    attester_of,
    images_of,
    known_keys,
    now_s,
    offered,
    opened_gateway,
    platform_of,
    watching,
)
from confide.gateway.tls import attested_chain, attested_tls
from confide.gateway.turning import Turns, paced
from confide.gateway.upstreams import SALT_BYTES, Upstreams, open_upstreams, served_models
from confide.protocol.signature import Algo
from confide.store.sharing import Sharing
from confide.store.sqlite import open_store
from confide.telemetry.logs import Log
from confide.upstream.base import Upstream
from confide.upstream.followed import FollowedUpstream

ALONE_AFTER_S = 0.25


@dataclass(frozen=True)
class Shared:
    """What workers are born with, and their parent knows. `plans`: of the embedded engines. `counts`: see Door.
    `turns`: that their loops turn.
    """

    config: Config
    home: Path
    listener: socket.socket
    plans: tuple[EnginePlan, ...]
    counts: ConnectionCounts
    turns: Turns

    def sharing(self, *, tidies: bool) -> Sharing:
        """How one of the processes uses the store."""
        return Sharing(writers=self.config.server.workers, tidies=tidies)


class Secrets:
    """What workers are born with, and nobody else knows. `salt_key`: 32 bytes, for the cached prompts of engines."""

    def __init__(self) -> None:
        """Drawn now."""
        self.seed = DrawnSeed()
        self.salt_key = os.urandom(SALT_BYTES)


def prepare(shared: Shared) -> Start:
    """What workers do, for the process that they are forked from."""
    return functools.partial(work, shared, Secrets())


def work(shared: Shared, secrets: Secrets, number: int, end: socket.socket) -> int:
    """Be worker `number`, from 1, until told to end; the exit status. `end`: of the line to the parent."""
    import uvloop

    logging.basicConfig(format=f"worker {number}: %(message)s", level=logging.WARNING)
    return uvloop.run(Worker(shared, secrets, number).run(end))


class Worker:
    """The process, from its birth to its end."""

    def __init__(self, shared: Shared, secrets: Secrets, number: int) -> None:
        self._shared = shared
        self._secrets = secrets
        self._number = number
        self._log = Log(worker=number)
        limits = shared.config.limits
        self._engine = FollowedEngine()
        self._slots = {
            name: SharedSlots(name, count, queue=limits.queue, ask=lambda asked: self._line.send(asked))
            for plan in shared.plans
            for name, count in turns_of(plan, shared.config).items()
        }
        self._ending = asyncio.Event()
        self._is_service_ending = False
        self._sessions: dict[str, SessionStands] = {}
        self._upstreams: Upstreams | None = None
        self._verifying: dict[int, asyncio.Future[None]] = {}
        self._tickets = itertools.count()
        self._running: Running | None = None
        self._staged: Staged | None = None

    async def run(self, end: socket.socket) -> int:
        """The exit status."""
        loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[Begin] = loop.create_future()
        self._may_listen: asyncio.Future[Listen] = loop.create_future()
        self._line = await Line.open(end, ToWorker, self._received, lambda: os._exit(1))
        self._config = configured(self._shared.config, await self._begun)
        turning = paced(self._config.server.worker_timeout_s, lambda: self._shared.turns.turned(self._number - 1))
        try:
            async with watching(turning, "turning"), contextlib.AsyncExitStack() as closing:
                await self._serve(closing)
        except ConfideError as error:
            self._line.send(HasFailed(error.message, error.remedy))
            return 1
        return 0

    async def _serve(self, closing: contextlib.AsyncExitStack) -> None:
        config, home, log = self._config, self._shared.home, self._log
        store = open_store(config.store.url, home, config.store, sharing=self._shared.sharing(tidies=False))
        closing.push_async_callback(store.close)
        authenticator = await known_keys(store, config, closing)
        most = own_share(MAX_WAITING, self._number, config.server.workers)
        attester = await attester_of(config, home, log, self._secrets.seed, max_waiting=most)
        gpu = await open_gpu(config.attester, home, attester, max_waiting=most)
        chain = attested_chain(config, attester)
        attested_tls(config, attester, chain)  # now, rather than when everybody waits
        upstreams = await closing.enter_async_context(
            open_upstreams(config, store=store, now=now_s, log=log, salt_key=self._secrets.salt_key, lead=self)
        )
        self._follow(upstreams)
        engines = await self._reach_engines(closing)
        simulated = attester.simulated
        models = ModelTable(served_models(config, upstreams, engines, simulated=simulated, created=now_s()))
        self._running = Running(config, upstreams, models, engines, simulated=simulated)
        gateway = await opened_gateway(
            config,
            closing,
            attester=attester,
            authenticator=authenticator,
            models=models,
            store=store,
            log=log,
            gpu=gpu,
        )
        digest = gateway.keyset().epoch.digest
        self._line.send(HasOpened(platform_of(attester), identity_of(attester), offered(models), digest, chain))
        tls = attested_tls(config, attester, (await self._may_listen).chain)
        gc.collect()
        gc.freeze()
        door = Door(self._shared.listener, self._shared.counts, self._number - 1)
        await closing.enter_async_context(watching(self._close_when_alone(door), "door"))
        await run_server(
            gateway,
            config,
            self._shared.listener,
            gateway.lifecycle,
            lambda: self._line.send(Listens()),
            tls,
            ending=self._ending,
            door=door,
        )

    async def _reach_engines(self, closing: contextlib.AsyncExitStack) -> dict[str, Upstream]:
        """The upstreams of the embedded models, by the model's id."""
        images = images_of(self._config)
        return {
            plan.model.id: await closing.enter_async_context(
                reached(plan, self._config, images, engine=self._engine, slots=self._slots)
            )
            for plan in self._shared.plans
        }

    async def _close_when_alone(self, door: Door) -> None:
        """If this process alone ends, the others take all new connections from then on. If all do, they go on refusing
        prompts; the parent's word may come a moment after a signal that went to every process.
        """
        await self._ending.wait()
        await asyncio.sleep(ALONE_AFTER_S)
        if not self._is_service_ending:
            door.close()

    def _received(self, message: ToWorker) -> None:
        """Carry out what the parent says."""
        match message:
            case Granted() | Denied() | Room():
                self._slots[message.engine].received(message)
            case EngineStands():
                self._engine.stands(message)
            case SessionStands():
                self._stands(message)
            case Verified():
                self._verifying[message.ticket].set_result(None)
            case Begin():
                self._begun.set_result(message)
            case Listen():
                self._may_listen.set_result(message)
            case Drain():
                self._is_service_ending = True
                self._ending.set()
            case Stage():
                self._line.send(self._stage(message))
            case Commit() | Abandon():
                if isinstance(message, Commit) and self._running is not None and self._staged is not None:
                    self._running.take(self._staged)
                self._staged = None

    def _stage(self, message: Stage) -> HasStaged:
        assert self._running is not None, "asked of workers that have opened alone"
        try:
            self._staged = self._running.stage(configured(self._config, message))
        except ConfigError as error:
            return HasStaged(message.number, error.message, error.remedy)
        return HasStaged(message.number)

    async def verified(self, name: str, known: str | None) -> None:
        """See Lead."""
        ticket = next(self._tickets)
        self._verifying[ticket] = asyncio.get_running_loop().create_future()
        self._line.send(Verify(name, ticket, known))
        try:
            await asyncio.shield(self._verifying[ticket])
        finally:
            del self._verifying[ticket]

    def wrong_key(self, name: str, session_id: str) -> None:
        """See Lead."""
        self._line.send(WrongKey(name, session_id))

    def _follow(self, upstreams: Upstreams) -> None:
        """Go by what was said of sessions before there were upstreams."""
        self._upstreams = upstreams
        for message in self._sessions.values():
            self._stands(message)

    def _stands(self, message: SessionStands) -> None:
        if self._upstreams is None:
            self._sessions[message.name] = message
            return
        opened = self._upstreams.opened.get(message.name)
        if opened is not None and isinstance(opened.upstream, FollowedUpstream):
            opened.upstream.stands(message.session, message.reason)


def configured(config: Config, message: Begin | Stage) -> Config:
    """The configuration with what a reload may change as the parent says."""
    return msgspec.structs.replace(config, upstream=message.upstream, model=message.model)


def own_share(whole: int, number: int, workers: int) -> int:
    """What worker `number`, from 1, has of a `whole` that is bounded over all: together they have no more than that, as
    long as there is one for each.
    """
    return max(1, whole // workers + (number <= whole % workers))


def identity_of(attester: Attester) -> str:
    """Public: tells these keys from others."""
    addresses = (attester.keys.address(algo) for algo in Algo)
    return ".".join((attester.workload_keys.public_identity, *addresses))
