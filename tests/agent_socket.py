"""One unix socket for many applications in turn: starting a server takes longer than most tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from confide.simulator.guest_agent import serving


class Switchboard:
    """Passes what arrives at the socket at `path` on to the application of the moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._app is not None
        await self._app(scope, receive, send)

    def connect(self, app: ASGIApp) -> None:
        """From now on this application answers."""
        self._app = app


@contextmanager
def switchboard(directory: Path) -> Iterator[Switchboard]:
    """A switchboard that listens while the block runs."""
    board = Switchboard(directory / "dstack.sock")
    with serving(board, board.path):
        yield board
