"""The bound socket, the HTTP server on it until a signal, and the signals themselves."""

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from confide.config import Config
from confide.errors import ConfigError
from confide.gateway.accepting import Door
from confide.gateway.app import Gateway
from confide.gateway.http import announcing
from confide.gateway.lifecycle import Lifecycle


async def run_server(
    gateway: Gateway,
    config: Config,
    listener: socket.socket,
    lifecycle: Lifecycle,
    announce: Callable[[], None],
    tls: ssl.SSLContext | None = None,
    *,
    ending: asyncio.Event | None = None,
    door: Door | None = None,
) -> None:
    """Serve until a signal, then drain (issue of order: not ready first, streams next, the listener last).

    `ending`: set by whoever else may end it. `door`: how connections are accepted, where several processes do.
    """
    protocol = announcing(gateway.keyset.headers)
    server = Server(
        uvicorn.Config(
            gateway,
            http=protocol if door is None else door.counting(protocol),
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
        ),
        door,
    )
    ending = ending or asyncio.Event()
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
    """Uvicorn without its own signal handling: the drain is ours. `listening` is set once it accepts.

    `door`: accepts in place of uvicorn, from the socket that it knows.
    """

    def __init__(self, config: uvicorn.Config, door: Door | None = None) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._door = door

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets if self._door is None else [])
        if self._door is not None:
            self._door.open(self._protocol, self.config.ssl)
        self.listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._door is not None:
            self._door.close()
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        """A connection's, made as uvicorn makes it."""
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

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
