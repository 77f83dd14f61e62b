"""One running service: what is opened at start, in which order, and closed again, whatever happens.

    state lock -> socket -> store, keys -> attester -> weights, engine -> HTTP server -> ready
    SIGTERM -> draining -> streams end -> server stops -> engine, store, lock released

The socket is bound first and listened on last: a taken port is found before a model is loaded, and nobody connects to
a service that cannot answer.
"""

import asyncio
import contextlib
import gc
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path

import msgspec
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from confide.attester.base import Attester
from confide.attester.nvidia import open_gpu
from confide.attester.own_collateral import own_collateral
from confide.attester.selection import open_attester
from confide.config import Config, is_loopback
from confide.engine.worker import keep_no_core
from confide.errors import ConfigError, NotReady
from confide.gateway.app import Gateway
from confide.gateway.auth import Authenticator
from confide.gateway.engines import open_engines
from confide.gateway.http import announcing
from confide.gateway.lifecycle import Lifecycle
from confide.gateway.models import ModelTable, ServedModel
from confide.gateway.reload import Reload, Reread
from confide.gateway.upstreams import open_upstreams, served_models
from confide.provenance import source_provenance
from confide.store.base import Store
from confide.store.lock import lock_state
from confide.store.sqlite import open_store
from confide.telemetry.logs import Log
from confide.upstream.images import ImageFetcher, ImageLimits


class Service(msgspec.Struct, frozen=True):
    """What a started service tells the one who started it. `simulated_root`: the file to pin, where there is one."""

    config: Config
    url: str
    attester: Attester
    models: tuple[ServedModel, ...]
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
    """Run until SIGTERM or SIGINT. `announce` is called once, when the service can answer. `reread`: the configuration
    anew, for SIGHUP.

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
        attester = await open_attester(
            config.attester.kind,
            home,
            now=now_s,
            collateral=own_collateral(config.attester, home, now=now_s, log=log),
        )
        gpu = await open_gpu(config.attester, home, attester)
        tls = attested_tls(config, attester)
        upstreams = await closing.enter_async_context(open_upstreams(config, store=store, now=now_s, log=log))
        images = ImageFetcher(ImageLimits(remote_images=config.server.remote_images))
        engines = await closing.enter_async_context(open_engines(config, home, images, log))
        models = ModelTable(served_models(config, upstreams, engines, simulated=attester.simulated, created=now_s()))
        lifecycle = Lifecycle()
        gateway = Gateway(
            config=config,
            attester=attester,
            authenticator=authenticator,
            models_served=models,
            store=store,
            lifecycle=lifecycle,
            log=log,
            now=time.time,
            tls_spki_sha256=tls_spki_sha256(config, attester),
            provenance=source_provenance(config.source),
            gpu=gpu,
        )
        with contextlib.suppress(NotReady):  # a full disk: the watch tries again, and prompts are refused meanwhile
            await gateway.archive.keep_current()  # before the first receipt under this keyset
        await closing.enter_async_context(watching(gateway.archive.watch(), "keysets"))
        reload = Reload(
            config, reread or (lambda: config), home, upstreams, models, engines, simulated=attester.simulated, log=log
        )
        await closing.enter_async_context(watching(reload.watch(hangups), "reload"))
        service = Service(
            config=config,
            url=url_of(config, listener),
            attester=attester,
            models=models.models,
            store_path=config.store.url or str(home / "confide.db"),
            is_open=authenticator.is_open,
            keyset_digest=gateway.keyset().epoch.digest,
            simulated_root=home / "simulator" / "root.pem" if attester.kind == "simulated" else None,
        )
        gc.collect()
        gc.freeze()  # what was loaded by now stays; collections on the prompt path need not look at it again
        await run_server(gateway, config, listener, lifecycle, lambda: announce(service), tls)


async def known_keys(store: Store, config: Config, closing: contextlib.AsyncExitStack) -> Authenticator:
    """The authenticator, kept fresh. Raises ConfigError for an open service on an address that others can reach."""
    authenticator = Authenticator(store)
    await authenticator.refresh()
    if authenticator.is_open and not is_loopback(config.server.host):
        raise ConfigError(
            f"[server] host {config.server.host}: anyone who reaches it could use this service, as it has no API key",
            remedy="Create one with `confide keys create NAME`, or listen on 127.0.0.1.",
        )
    await closing.enter_async_context(watching(authenticator.watch(), "keys"))
    return authenticator


@contextlib.asynccontextmanager
async def watching(work: Coroutine[None, None, None], name: str) -> AsyncIterator[None]:
    """Run `work` beside what follows; cancelled on exit."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def run_server(
    gateway: Gateway,
    config: Config,
    listener: socket.socket,
    lifecycle: Lifecycle,
    announce: Callable[[], None],
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve until a signal, then drain (issue of order: not ready first, streams next, the listener last)."""
    server = Server(
        uvicorn.Config(
            gateway,
            http=announcing(gateway.keyset.headers),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            ssl_certfile=config.server.tls_cert if tls is None else None,
            ssl_keyfile=config.server.tls_key,
            ssl_context_factory=None if tls is None else (lambda _config, _default: tls),
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
        )
    )
    ending = asyncio.Event()
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    stalls = asyncio.create_task(lifecycle.stop_stalled(config.limits.client_stall_s), name="stalls")
    with on_signals((signal.SIGTERM, signal.SIGINT), ending):
        listening, stopping = asyncio.create_task(server.listening.wait()), asyncio.create_task(ending.wait())
        await asyncio.wait({serving, listening}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if server.listening.is_set():
            announce()
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await lifecycle.drain(config.server.drain_s)
        stopping.cancel()
        stalls.cancel()
        server.should_exit = True
        await serving


class Server(uvicorn.Server):
    """Uvicorn without its own signal handling: the drain is ours. `listening` is set once it accepts."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def on_signals(signals: Sequence[signal.Signals], event: asyncio.Event) -> Iterator[None]:
    """Set `event` on the first of `signals`. Afterwards they are ignored: what is left is the way out."""
    loop = asyncio.get_running_loop()
    for number in signals:
        # Not loop.add_signal_handler: taking that away brings the default back for a moment, which ends the process.
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(event.set))
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def on_hangup(event: asyncio.Event) -> Iterator[None]:
    """Set `event` on each SIGHUP."""
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(event.set))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


@contextlib.contextmanager
def bound_socket(config: Config) -> Iterator[socket.socket]:
    """A socket bound to `[server] host` and `port`. Raises ConfigError when it is taken or not ours."""
    host, port = config.server.host, config.server.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(
            f"[server] host {host}: no such address", remedy="Use 127.0.0.1 or one of this machine's."
        ) from error
    with contextlib.closing(socket.socket(family, kind, protocol)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise ConfigError(
                f"[server] port {port} on {host} cannot be used: {error.strerror}",
                remedy="Stop what uses it, or choose another with `confide serve --port PORT`.",
            ) from error
        yield listener


def url_of(config: Config, listener: socket.socket) -> str:
    """What to type to reach the service."""
    host = f"[{config.server.host}]" if ":" in config.server.host else config.server.host
    is_tls = config.server.tls == "attested" or config.server.tls_cert is not None
    return f"{'https' if is_tls else 'http'}://{host}:{listener.getsockname()[1]}"


def attested_tls(config: Config, attester: Attester) -> ssl.SSLContext | None:
    """What the server speaks TLS with where the attester made the key; None otherwise. Raises ConfigError.

    The chain is the operator's for that key, or a certificate that the key signed itself: whoever pins the attested key
    needs no authority.
    """
    if config.server.tls != "attested":
        return None
    key = attester.workload_keys.tls
    if config.server.tls_cert is not None:
        try:
            chain = Path(config.server.tls_cert).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"[server] tls_cert {config.server.tls_cert}: cannot be read: {error.strerror}",
                remedy="Name a file that this user may read.",
            ) from error
    else:
        chain = key.self_signed(tls_names(config), int(time.time()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    key.load_into(context, chain_pem=chain)
    return context


def tls_names(config: Config) -> tuple[str, ...]:
    """The names of a certificate that we make: the listed domain, where we listen, and this machine on loopback."""
    names = [config.server.domain, config.server.host]
    names += ["localhost", "127.0.0.1", "::1"] if is_loopback(config.server.host) else []
    return tuple(dict.fromkeys(name for name in names if name is not None and name not in ("0.0.0.0", "::")))  # noqa: S104


def tls_spki_sha256(config: Config, attester: Attester) -> bytes | None:
    """SHA-256 (32 bytes) of the key that TLS is served with, None without TLS. Raises ConfigError."""
    if config.server.tls == "attested":
        return attester.workload_keys.tls.spki_sha256
    return spki_sha256(config.server.tls_cert)


def spki_sha256(certificate: str | None) -> bytes | None:
    """SHA-256 (32 bytes) of the leaf's SubjectPublicKeyInfo, or None without TLS. Raises ConfigError."""
    if certificate is None:
        return None
    try:
        leaf = x509.load_pem_x509_certificate(Path(certificate).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"[server] tls_cert {certificate}: not a PEM certificate that can be read") from error
    spki = leaf.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(spki)
    return digest.finalize()
