"""The SIMULATED configfs-tsm of another process, `confide simulate tsm`: the file operations over its unix socket.

In place of the kernel's own files where the environment names the socket. The reader above is the same.
"""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import httpx2

ENDPOINT_VARIABLE = "TSM_SIMULATOR_ENDPOINT"
ANSWER_S = 90.0  # longer than anybody waits for a report
REFUSED = 409
ERROR_NAME_BYTES = 64


def find_simulated_tsm(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The socket that the environment names, None where it names none."""
    named = environ.get(ENDPOINT_VARIABLE)
    return Path(named) if named else None


class SimulatedTsmFiles:
    """File operations that another process carries out. All raise OSError, with the number that it names.

    The last parts of a path count: the report, or the report and its attribute. Every call has a connection of its own.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket

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
        try:
            with self._client() as client, client.stream(method, f"/{target}", content=content) as response:
                body = bytearray()
                for part in response.iter_raw():
                    body += part
                    if len(body) > limit:
                        raise failing("EFBIG")
        except httpx2.TimeoutException as error:
            raise failing("ETIMEDOUT") from error
        except httpx2.HTTPError as error:
            raise failing("ENOTCONN") from error
        if response.status_code == REFUSED:
            raise failing(body.decode("ascii", "replace"))
        if response.status_code != 200:
            raise failing("EPROTO")
        return bytes(body)

    def _client(self) -> httpx2.Client:
        # Nothing on a unix socket is TLS, and reading the machine's authorities would take longer than the call.
        transport = httpx2.HTTPTransport(uds=str(self._socket), trust_env=False, verify=False)
        return httpx2.Client(transport=transport, base_url="http://localhost", timeout=ANSWER_S, trust_env=False)


def failing(name: str) -> OSError:
    """The error of this name, such as "EBUSY"; EPROTO where there is none."""
    number = next((number for number, known in errno.errorcode.items() if known == name), errno.EPROTO)
    return OSError(number, os.strerror(number))
