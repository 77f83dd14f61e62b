"""`confide proxy`: a local endpoint for tools that cannot verify."""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import httpx2
import typer
import uvicorn
import uvloop

from confide.cli import results
from confide.cli.trust import OnlineTrust, Trust, trusting
from confide.client import verdict
from confide.client.asking import environment_proxy, parse_api_key, parse_base_url
from confide.client.http import AsyncClient
from confide.client.proxy import TIMEOUTS_S, Proxy, names_this_machine
from confide.client.sending import now_s
from confide.errors import CannotTell, ConfigError, VerificationError
from confide.evidence.result import quoted
from confide.telemetry.logs import Log

GRACE_S = 5  # for answers that are being passed on when the proxy is told to end


@trusting
def proxy(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of the service, such as https://HOST.")],
    trust: OnlineTrust,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 for a free one.")] = 8081,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; other than loopback needs --expose.")
    ] = "127.0.0.1",
    expose: Annotated[
        bool,
        typer.Option("--expose", help="Let others reach it, over plain HTTP, each with a key of their own."),
    ] = False,
) -> None:
    """Serve a verified service on this machine, for tools that cannot verify.

    Point the tool's base URL at http://127.0.0.1:PORT/v1. A tool that sends no key gets CONFIDE_API_KEY.

    An unproven answer becomes an error, and nothing more is sent until the proxy is restarted.

    Prompts and keys are in clear between tool and proxy: keep both on one machine.

    Under --expose CONFIDE_API_KEY is not used: whoever reaches the proxy needs a key of their own.
    """
    root = parse_base_url(url)
    policy = trust.policy()
    api_key = parse_api_key(os.environ.get("CONFIDE_API_KEY", ""))
    check_exposure(host, expose)
    if expose and api_key is not None:
        print("CONFIDE_API_KEY is not used: others could use it through this proxy.", file=sys.stderr)
    client = AsyncClient(policy, collateral=trust.sources(), proxy=environment_proxy(root), timeout=TIMEOUTS_S)
    application = Proxy(client, root, api_key=None if expose else api_key, is_exposed=expose, log=Log())
    with bound_socket(host, port) as listener:
        uvloop.run(serve(application, client, listener, root, trust))


def check_exposure(host: str, expose: bool) -> None:
    """Raise ConfigError for an address that others reach, unless that is wanted."""
    if not expose and not names_this_machine(f"http://{f'[{host}]' if ':' in host else host}"):
        raise ConfigError(
            f"--host {host}: others could reach this proxy, read prompts, and use your key",
            remedy="Run the proxy on the machine of the tool, or add --expose: then every tool needs its own key.",
        )


async def serve(
    application: Proxy, client: AsyncClient, listener: socket.socket, root: httpx2.URL, trust: Trust
) -> None:
    """Verify the service, then answer until a signal. Raises VerificationError, CannotTell."""
    async with client:
        await show_service(application, root, trust)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn ends what runs first, then hands it on
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        config = uvicorn.Config(
            application,
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="critical",  # a stream that is cut on purpose is no error
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        server = Server(config, lambda: print(f"confide: proxy ready on {address} for {root}".rstrip("/"), flush=True))
        await server.serve(sockets=[listener])


async def show_service(application: Proxy, root: httpx2.URL, trust: Trust) -> None:
    """What was checked of the service, on standard error."""
    try:
        verified = await application.verify()
    except VerificationError as failure:
        results.show(verdict.shown(failure, now_s()), pinned=trust.pinned, stderr=True)
        raise verdict.told(failure) from failure
    except httpx2.TransportError as error:
        raise CannotTell(
            f"{root} cannot be reached, or broke off: {quoted(error) or type(error).__name__}",
            remedy="Check the address; `confide serve` starts a service on this machine.",
        ) from error
    results.show(verified, pinned=trust.pinned, stderr=True)


class Server(uvicorn.Server):
    """Uvicorn that says when it accepts."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()


@contextlib.contextmanager
def bound_socket(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound to this address. Raises ConfigError when it is taken or not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: no such address", remedy="Use 127.0.0.1.") from error
    with contextlib.closing(socket.socket(family, kind, protocol)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise ConfigError(
                f"port {port} on {host} cannot be used: {error.strerror}",
                remedy="Stop what uses it, or choose another with --port.",
            ) from error
        yield listener
