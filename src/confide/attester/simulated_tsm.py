"""The SIMULATED configfs-tsm of another process, `confide simulate tsm`: the file operations over its unix socket.

In place of the kernel's own files where the environment names the socket. The reader above is the same.
"""

import errno
import os
import socket
from collections.abc import Mapping
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path

ENDPOINT_VARIABLE = "TSM_SIMULATOR_ENDPOINT"
ANSWER_S = 90.0  # longer than anybody waits for a report
DONE, REFUSED = 200, 409
ERROR_NAME_BYTES = 64


def find_simulated_tsm(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The socket that the environment names, None where it names none."""
    named = environ.get(ENDPOINT_VARIABLE)
    return Path(named) if named else None


class SimulatedTsmFiles:
    """File operations that another process carries out. All raise OSError, with the number that it names.

    The last parts of a path count: the report, or the report and its attribute. Every call has a connection of its own.
    """

    def __init__(self, path: Path) -> None:
        """`path`: of the socket."""
        self._socket = path

    def mkdir(self, path: Path) -> None:
        self._call("PUT", path.name)

    def write(self, path: Path, data: bytes) -> None:
        self._call("PUT", f"{path.parent.name}/{path.name}", content=data)

    def read(self, path: Path, limit: int) -> bytes:
        return self._call("GET", f"{path.parent.name}/{path.name}?limit={limit}", limit=limit)

    def rmdir(self, path: Path) -> None:
        self._call("DELETE", path.name)

    def _call(self, method: str, target: str, *, content: bytes = b"", limit: int = ERROR_NAME_BYTES) -> bytes:
        """The body of a good answer, at most `limit` bytes."""
        with closing(UnixConnection(self._socket)) as connection:
            try:
                connection.request(method, f"/{target}", body=content)
                response = connection.getresponse()
                body = response.read(limit + 1)
            except TimeoutError as error:
                raise failing("ETIMEDOUT") from error
            except (OSError, HTTPException) as error:
                raise failing("ENOTCONN") from error
        if len(body) > limit:
            raise failing("EFBIG")
        if response.status == REFUSED:
            raise failing(body.decode("ascii", "replace"))
        if response.status != DONE:
            raise failing("EPROTO")
        return body


class UnixConnection(HTTPConnection):
    """One connection to a unix socket. httpx2, which speaks over one too, leaves it open where nobody listens."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER_S)
        self.sock.connect(str(self._path))


def failing(name: str) -> OSError:
    """The error of this name, such as "EBUSY"; EPROTO where there is none."""
    number = next((number for number, known in errno.errorcode.items() if known == name), errno.EPROTO)
    return OSError(number, os.strerror(number))
