"""Bytes over HTTPS into a file that survives an interruption: retried, resumed, bounded, and checked at the end.

On entry the size and SHA-256 are known from a source that we trust more than the server of the bytes. On exit the file
has them. What that source is worth is the caller's to say (index.py, hub.py).
"""

import contextlib
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, TypeVar

import httpx2
import msgspec

from confide.engine import disk
from confide.engine.catalogue import wrong_bytes
from confide.engine.progress import Progress
from confide.errors import CannotTell, ConfigError

TRIES = 3  # failures in a row
FIRST_PAUSE_S = 0.5
GAIN_BYTES = 1024 * 1024  # an attempt that brought this much is no failure: slow lines drop often
MAX_REDIRECTS = 5
TIMEOUT = httpx2.Timeout(60.0, connect=15.0)
OFFLINE_REMEDY = "Run it again: what was fetched is kept. Without a network: `confide models add PATH`."

CA_VARIABLES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")

STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]{0,256}"')

Pause = Callable[[float], None]
T = TypeVar("T")


class Interrupted(Exception):
    """The server failed in a way that another try may mend."""


class Part(msgspec.Struct, frozen=True):
    """A file under construction at `path`: `size` bytes with `sha256` (hex) when done. `what` is for messages."""

    path: Path
    size: int
    sha256: str
    what: str

    @property
    def etag_path(self) -> Path:
        return self.path.with_suffix(".etag")

    def have(self) -> int:
        """Bytes that are already here."""
        return self.path.stat().st_size if self.path.exists() else 0

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.etag_path.unlink(missing_ok=True)

    def resume_headers(self) -> dict[str, str]:
        """Ask for the rest, and only if the server still has the same file."""
        if not (have := self.have()):
            return {}
        etag = self.etag_path.read_text() if self.etag_path.exists() else ""
        return {"Range": f"bytes={have}-"} | ({"If-Range": etag} if etag else {})


IsFinal = Callable[[httpx2.Response], bool]
Open = Callable[[Mapping[str, str]], contextlib.AbstractContextManager[httpx2.Response]]


def ca_file(environ: Mapping[str, str]) -> str | None:
    """The PEM file of trusted roots that the environment names, in pip's order."""
    return next((environ[name] for name in CA_VARIABLES if environ.get(name)), None)


def client(roots: str | None) -> httpx2.Client:
    """A client that honours the environment's proxies. `roots`: PEM file of trusted roots, or None for the system's."""
    try:
        context = ssl.create_default_context(cafile=roots) if roots else True
    except OSError as error:
        raise ConfigError(f"the CA file {roots} cannot be used: {error.strerror or error}") from error
    return httpx2.Client(verify=context, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"})


def retried(attempt: Callable[[], T], *, what: str, pause: Pause = time.sleep, have: Callable[[], int] = int) -> T:
    """Call until it succeeds, or raise CannotTell after TRIES failures in a row. `have` counts the bytes gained."""
    failures = 0
    while True:
        before = have()
        try:
            return attempt()
        except (httpx2.TransportError, Interrupted) as error:
            failures = 1 if have() - before >= GAIN_BYTES else failures + 1
            if failures == TRIES:
                reason = str(error) or type(error).__name__
                raise CannotTell(f"{what}: cannot be fetched: {reason}", remedy=OFFLINE_REMEDY) from error
            pause(FIRST_PAUSE_S * 2 ** (failures - 1))


def download(open_at: Open, part: Part, *, progress: Progress, pause: Pause = time.sleep) -> Path:
    """Fetch what is missing of `part` and check the whole. `open_at` sends a GET with the given headers.

    Raises VerificationError on other bytes, and deletes them; CannotTell when the network fails, ConfigError when the
    disk does, and keeps what arrived.
    """

    def attempt() -> None:
        with open_at(part.resume_headers()) as response:
            receive(response, part, progress)

    with disk.writing(part.path, part.size):
        if part.have() != part.size:
            retried(attempt, what=part.what, pause=pause, have=part.have)
        got = disk.sha256_hex(part.path, progress)
    if got != part.sha256:
        part.discard()
        raise wrong_bytes(part.what, f"SHA-256 {got}", part.sha256, "Run it again; the wrong bytes were deleted.")
    part.etag_path.unlink(missing_ok=True)
    return part.path


def receive(response: httpx2.Response, part: Part, progress: Progress) -> None:
    """Append one response's bytes, or begin anew where the server does not continue. Raises Interrupted."""
    begin = offset_of(response, part)
    remember_etag(response, part)
    with part.path.open("r+b" if begin else "wb") as file:
        file.seek(begin)
        for chunk in response.iter_raw():
            write_bounded(file, chunk, part)
            progress("download", file.tell(), part.size)
    if part.have() < part.size:
        raise Interrupted(f"the transfer ended after {part.have()} of {part.size} bytes")


def offset_of(response: httpx2.Response, part: Part) -> int:
    """Where this response's first byte belongs. Raises Interrupted after dropping a part that cannot be continued."""
    if response.status_code == 200:
        return 0
    have = part.have()
    if response.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if found and int(found[1]) == have and found[2] in ("*", str(part.size)):
            return have
    if response.status_code in (206, 416):
        part.discard()
        raise Interrupted("the server does not continue at the byte that was asked for")
    raise Interrupted(f"the server answered {response.status_code}")


def remember_etag(response: httpx2.Response, part: Part) -> None:
    """Keep a strong validator for If-Range (RFC 9110 13.1.5); without one the digest alone decides."""
    etag = response.headers.get("ETag", "")
    if STRONG_ETAG.fullmatch(etag):
        part.etag_path.write_text(etag)
    elif response.status_code == 200:
        part.etag_path.unlink(missing_ok=True)


def write_bounded(file: BinaryIO, chunk: bytes, part: Part) -> None:
    """Write, unless it would be more than was promised: then all of it is wrong."""
    if file.tell() + len(chunk) > part.size:
        part.discard()
        raise wrong_bytes(part.what, f"more than {part.size} bytes", f"{part.size} bytes", "Run it again.")
    file.write(chunk)


@contextlib.contextmanager
def follow(
    http: httpx2.Client,
    url: httpx2.URL,
    headers: Mapping[str, str],
    *,
    private: Mapping[str, str] | None = None,
    is_final: IsFinal = lambda response: not response.has_redirect_location,
) -> Iterator[httpx2.Response]:
    """GET with at most MAX_REDIRECTS redirects. `private` headers stay with the first origin, and end with leaving it.

    Plain http is followed only from a plain http start. The body is unread. Raises CannotTell on a redirect that is
    refused, httpx2.TransportError on a connection that fails.
    """
    start, secrets = url, dict(private or {})
    for _ in range(MAX_REDIRECTS + 1):
        try:
            response = http.send(http.build_request("GET", url, headers={**headers, **secrets}), stream=True)
        except ValueError as error:  # httpx2 reads where a redirect points even where it is not to follow it
            raise nowhere(start) from error
        with contextlib.closing(response):
            if is_final(response):
                yield response
                return
        url = next_url(response, start)
        if origin(url) != origin(start):
            secrets = {}
    raise CannotTell(f"{start.host}: more than {MAX_REDIRECTS} redirects")


def next_url(response: httpx2.Response, start: httpx2.URL) -> httpx2.URL:
    """Where a redirect points, if it may be followed."""
    try:
        url = response.url.join(response.headers["Location"])
    except httpx2.InvalidURL as error:
        raise nowhere(start) from error
    if url.scheme != "https" and (url.scheme, start.scheme) != ("http", "http"):
        raise CannotTell(f"{start.host}: redirects to a {url.scheme} address, expected https")
    return url


def nowhere(start: httpx2.URL) -> CannotTell:
    return CannotTell(f"{start.host}: redirects to an address that is none")


def origin(url: httpx2.URL) -> tuple[str, str, int]:
    """Scheme, host, port: what a credential belongs to."""
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme, 0)
