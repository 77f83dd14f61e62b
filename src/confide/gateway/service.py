"""One running service: what is opened at start, in which order, and closed again, whatever happens.

    state lock -> socket -> store, keys -> attester -> weights, engine -> HTTP server -> ready
    SIGTERM -> draining -> streams end -> server stops -> engine, store, lock released

The socket is bound first and listened on last: a taken port is found before a model is loaded, and nobody connects to
a service that cannot answer.
"""

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import msgspec

from confide.attester.base import MAX_WAITING, Attester
from confide.attester.keys import DrawnSeed
from confide.attester.nvidia import GpuCollector, open_gpu
from confide.attester.own_collateral import own_collateral
from confide.attester.selection import open_attester
from confide.config import Config, is_loopback
from confide.engine.worker import keep_no_core
from confide.errors import ConfigError, NotReady
from confide.gateway.app import Gateway
from confide.gateway.auth import Authenticator
from confide.gateway.engines import open_engines
from confide.gateway.lifecycle import Lifecycle
from confide.gateway.listening import bound_socket, on_hangup, run_server, url_of
from confide.gateway.models import ModelTable
from confide.gateway.reload import Reload, Reread, watch_hangups
from confide.gateway.tls import attested_tls, tls_spki_sha256
from confide.gateway.upstreams import open_upstreams, served_models
from confide.provenance import source_provenance
from confide.store.base import Store
from confide.store.lock import lock_state
from confide.store.sqlite import open_store
from confide.telemetry.logs import Log
from confide.upstream.images import ImageFetcher, ImageLimits


class Platform(msgspec.Struct, frozen=True):
    """The attester, as far as others are told of it. `tls_spki_sha256`: of the key that it makes for TLS, 32 bytes."""

    kind: str
    tee_type: str
    simulated: bool
    tls_spki_sha256: bytes


class Offered(msgspec.Struct, frozen=True):
    """One model that is served, and by what."""

    id: str
    description: str


class Service(msgspec.Struct, frozen=True):
    """What a started service tells the one who started it. `simulated_root`: the file to pin, where there is one."""

    config: Config
    url: str
    platform: Platform
    models: tuple[Offered, ...]
    store_path: str
    is_open: bool
    keyset_digest: str
    simulated_root: Path | None


Announce = Callable[[Service], None]


def now_s() -> int:
    """Unix seconds."""
    return int(time.time())


async def serve(
    config: Config, home: Path, *, announce: Announce, log: Log | None = None, reread: Reread | None = None
) -> None:
    """Run until SIGTERM or SIGINT, in this process alone. `announce` is called once, when the service can answer.
    `reread`: the configuration anew, for SIGHUP.

    Raises ConfigError (a setting, a port, the state), VerificationError (weights that are not the recorded ones).
    """
    log = log or Log()
    keep_no_core()  # keys and prompts are in this process too
    async with contextlib.AsyncExitStack() as closing:
        closing.enter_context(lock_state(home))
        hangups = asyncio.Event()
        closing.enter_context(on_hangup(hangups))
        listener = closing.enter_context(bound_socket(config))
        store = open_store(config.store.url, home, config.store)
        closing.push_async_callback(store.close)
        authenticator = await known_keys(store, config, closing)
        attester = await attester_of(config, home, log)
        gpu = await open_gpu(config.attester, home, attester)
        tls = attested_tls(config, attester)
        upstreams = await closing.enter_async_context(open_upstreams(config, store=store, now=now_s, log=log))
        images = images_of(config)
        engines = await closing.enter_async_context(open_engines(config, home, images, log))
        models = ModelTable(served_models(config, upstreams, engines, simulated=attester.simulated, created=now_s()))
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
        reload = Reload(
            config, reread or (lambda: config), home, upstreams, models, engines, simulated=attester.simulated, log=log
        )
        await closing.enter_async_context(watching(watch_hangups(hangups, reload, home), "reload"))
        service = Service(
            config=config,
            url=url_of(config, listener),
            platform=platform_of(attester),
            models=offered(models),
            store_path=config.store.url or str(home / "confide.db"),
            is_open=authenticator.is_open,
            keyset_digest=gateway.keyset().epoch.digest,
            simulated_root=simulated_root(attester.kind, home),
        )
        gc.collect()
        gc.freeze()  # what was loaded by now stays; collections on the prompt path need not look at it again
        await run_server(gateway, config, listener, gateway.lifecycle, lambda: announce(service), tls)


async def attester_of(
    config: Config, home: Path, log: Log, seed: DrawnSeed | None = None, *, max_waiting: int = MAX_WAITING
) -> Attester:
    """The attester of this configuration. `seed`: what it would draw otherwise. `max_waiting`: requests for evidence
    that it takes at a time. Raises ConfigError.
    """
    return await open_attester(
        config.attester.kind,
        home,
        now=now_s,
        collateral=own_collateral(config.attester, home, now=now_s, log=log),
        seed=seed,
        max_waiting=max_waiting,
    )


def images_of(config: Config) -> ImageFetcher:
    """What fetches the images of prompts."""
    return ImageFetcher(ImageLimits(remote_images=config.server.remote_images))


async def opened_gateway(
    config: Config,
    closing: contextlib.AsyncExitStack,
    *,
    attester: Attester,
    authenticator: Authenticator,
    models: ModelTable,
    store: Store,
    log: Log,
    gpu: GpuCollector | None,
) -> Gateway:
    """The application, with the report of its keyset stored; of later ones as they come, until `closing` ends."""
    gateway = Gateway(
        config=config,
        attester=attester,
        authenticator=authenticator,
        models_served=models,
        store=store,
        lifecycle=Lifecycle(),
        log=log,
        now=time.time,
        tls_spki_sha256=tls_spki_sha256(config, attester),
        provenance=source_provenance(config.source),
        gpu=gpu,
    )
    with contextlib.suppress(NotReady):  # a full disk: the watch tries again, and prompts are refused meanwhile
        await gateway.archive.keep_current()  # before the first receipt under this keyset
    await closing.enter_async_context(watching(gateway.archive.watch(), "keysets"))
    return gateway


def platform_of(attester: Attester) -> Platform:
    return Platform(attester.kind, attester.tee_type, attester.simulated, attester.workload_keys.tls.spki_sha256)


def offered(models: ModelTable) -> tuple[Offered, ...]:
    return tuple(Offered(served.model.id, served.description) for served in models.models)


def simulated_root(kind: str, home: Path) -> Path | None:
    """The file to pin for the simulated TEE; None for any other attester."""
    return home / "simulator" / "root.pem" if kind == "simulated" else None


async def known_keys(store: Store, config: Config, closing: contextlib.AsyncExitStack) -> Authenticator:
    """The authenticator, kept fresh. Raises ConfigError for an open service on an address that others can reach."""
    authenticator = Authenticator(store)
    await authenticator.refresh()
    require_key(authenticator, config)
    await closing.enter_async_context(watching(authenticator.watch(), "keys"))
    return authenticator


def require_key(authenticator: Authenticator, config: Config) -> None:
    """Raise ConfigError for an open service on an address that others can reach."""
    if authenticator.is_open and not is_loopback(config.server.host):
        raise ConfigError(
            f"[server] host {config.server.host}: anyone who reaches it could use this service, as it has no API key",
            remedy="Create one with `confide keys create NAME`, or listen on 127.0.0.1.",
        )


@contextlib.asynccontextmanager
async def watching(work: Coroutine[None, None, None], name: str) -> AsyncIterator[None]:
    """Run `work` beside what follows; cancelled on exit."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
