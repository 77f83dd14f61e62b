"""SIMULATED services on real sockets: each in a thread of its own, while a block runs."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

LOOPBACK = "127.0.0.1"


class Server(uvicorn.Server):
    """One that a thread may run: signals are for the process that it stands in."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def serving(app: ASGIApp, path: Path) -> Iterator[Path]:
    """Serve the application on a unix socket at `path` while the block runs. Raises OSError where it cannot be made."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        try:
            with on_socket(app, listener, "simulated-guest-agent"):
                yield path
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def serving_tcp(app: ASGIApp, port: int = 0) -> Iterator[str]:
    """The same on a port of loopback, 0 for a free one; gives its address. Raises OSError where it is taken."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        with on_socket(app, listener, "simulated-vendors"):
            yield f"http://{LOOPBACK}:{listener.getsockname()[1]}"


@contextmanager
def on_socket(app: ASGIApp, listener: socket.socket, name: str) -> Iterator[None]:
    """Serve on a socket that is bound. `name`: of the thread."""
    config = uvicorn.Config(
        app,
        interface="asgi3",  # a method of an object is not recognised as one
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        ws="none",
        timeout_graceful_shutdown=1,  # an answer that hangs on purpose must not hold the end up
    )
    server = Server(config)
    listener.listen()  # from here on connections are taken, and wait for the thread
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
