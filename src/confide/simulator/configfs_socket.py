"""The SIMULATED configfs-tsm for another process: its four file operations as HTTP, for a unix socket.

    PUT /{report}                       mkdir
    PUT /{report}/{attribute}           write, the body
    GET /{report}/{attribute}?limit=N   read, at most N bytes
    DELETE /{report}                    rmdir

What the kernel would refuse is status 409 and the name of its error number, such as `EBUSY`.

Why no directory of files that this process follows: in configfs a new report has its attributes when mkdir returns,
every write moves the generation, and a read makes the quote or fails with EBUSY. Files that somebody fills in
afterwards do none of it, so a reader would be rehearsed against rules that are not the kernel's.
"""

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from confide.simulator.configfs import SimulatedConfigfs

REFUSED = 409
OUTBLOB = "outblob"


class SimulatedConfigfsSocket:
    """Serves one simulated configfs. `hangs`: no outblob ever comes."""

    def __init__(self, files: SimulatedConfigfs, *, hangs: bool = False) -> None:
        self._files = files
        self._hangs = hangs

    @property
    def app(self) -> Starlette:
        """The ASGI application."""
        report, attribute = "/{report}", "/{report}/{attribute}"
        return Starlette(
            routes=[
                Route(report, self.mkdir, methods=["PUT"]),
                Route(report, self.rmdir, methods=["DELETE"]),
                Route(attribute, self.write, methods=["PUT"]),
                Route(attribute, self.read, methods=["GET"]),
            ]
        )

    async def mkdir(self, request: Request) -> Response:
        return answered(lambda: self._files.mkdir(path_of(request)))

    async def rmdir(self, request: Request) -> Response:
        return answered(lambda: self._files.rmdir(path_of(request)))

    async def write(self, request: Request) -> Response:
        data = await request.body()
        return answered(lambda: self._files.write(path_of(request), data))

    async def read(self, request: Request) -> Response:
        if self._hangs and request.path_params["attribute"] == OUTBLOB:
            await asyncio.Event().wait()
        limit = request.query_params.get("limit", "")
        if not (limit.isascii() and limit.isdigit()):
            return PlainTextResponse("EINVAL", status_code=REFUSED)
        return answered(lambda: self._files.read(path_of(request), int(limit)))


def path_of(request: Request) -> Path:
    """The report's directory, or an attribute in it."""
    return Path("/", *request.path_params.values())


def answered(operation: Callable[[], bytes | None]) -> Response:
    """What the operation gives, or the name of the number that it failed with."""
    try:
        return Response(operation() or b"")
    except OSError as error:
        return PlainTextResponse(errno.errorcode[error.errno or errno.EIO], status_code=REFUSED)
