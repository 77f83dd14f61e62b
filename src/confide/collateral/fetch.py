"""One bounded GET or POST (tee-evidence 4.4): to one origin, in limited time, of limited size. The only sockets of this
room.

What comes back is not trusted because it came from there. Collateral of Intel and AMD is signed and the verifier checks
it; NVIDIA's keys are not, so for them the address has to be https, or this machine.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx2

from confide.errors import CannotTell, ConfigError
from confide.evidence.result import quoted

MAX_REDIRECTS = 3
CONNECT_S, SILENCE_S, WHOLE_S = 10.0, 10.0, 30.0
LOOPBACK = ("127.0.0.1", "::1", "localhost")
MAX_RETRY_AFTER_S = 24 * 60 * 60
DEFAULT_RETRY_AFTER_S = 60

TRY_LATER = "Try again later, or use collateral that was kept."


class Unavailable(CannotTell):
    """The service cannot be asked now, or gives nothing of use. `retry_after_s`: how long it wants to be left alone."""

    def __init__(self, message: str, *, remedy: str = TRY_LATER, retry_after_s: int | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after_s = retry_after_s


class NotKnown(Unavailable):
    """The service answered that it has no such thing: 404."""


@dataclass(frozen=True)
class Answer:
    """A whole answer with status 200. `url`: where it came from in the end."""

    url: str
    headers: httpx2.Headers
    body: bytes


@dataclass(frozen=True)
class Fetcher:
    """Asks over a client of the caller's, whose proxies and roots it keeps.

    `whole_s`: seconds that an answer may take in all, redirects included, else it is refused; `silence_s`: that a
    server may say nothing. Headers are waited for by `silence_s` alone: a server that sends them byte by byte is given
    up when they are whole, or larger than the HTTP library allows.
    `clock`: seconds that only ever grow.
    """

    http: httpx2.Client
    whole_s: float = WHOLE_S
    silence_s: float = SILENCE_S
    clock: Callable[[], float] = time.monotonic

    def get(self, url: str, *, what: str, limit: int) -> Answer:
        """What is at `url`, at most `limit` bytes. `what`: its name in messages.

        Raises NotKnown for a 404, Unavailable for whatever else is in the way. Redirects are followed within the
        origin only.
        """
        start = target = httpx2.URL(url)
        until = self.clock() + self.whole_s
        for _ in range(1 + MAX_REDIRECTS):
            answer = self._answer(httpx2.Request("GET", target), what=what, limit=limit, until=until)
            if isinstance(answer, Answer):
                return answer
            target = within(start, answer, what)
        raise Unavailable(f"{what}: {start.host} redirects more than {MAX_REDIRECTS} times")

    def post(self, url: str, body: bytes, *, what: str, limit: int) -> Answer:
        """What `url` answers to this JSON text, at most `limit` bytes. Raises as `get`, and for every redirect."""
        request = httpx2.Request("POST", url, content=body, headers={"content-type": "application/json"})
        answer = self._answer(request, what=what, limit=limit, until=self.clock() + self.whole_s)
        if isinstance(answer, Answer):
            return answer
        raise Unavailable(f"{what}: {request.url.host} redirects, and what was asked is not sent on")

    def _answer(self, request: httpx2.Request, *, what: str, limit: int, until: float) -> Answer | httpx2.Response:
        """The answer, or the closed response that redirects. Raises Unavailable."""
        host = request.url.host
        self._require_in_time(until, what, host)
        try:
            response = self._opened(request, what)
            try:
                self._require_in_time(until, what, host)
                return response if response.has_redirect_location else self._whole(response, what, limit, until)
            finally:
                response.close()
        except (httpx2.TransportError, httpx2.StreamError, httpx2.DecodingError) as error:
            reason = quoted(error) or type(error).__name__
            raise Unavailable(f"{what}: {host} cannot be asked: {reason}") from error

    def _require_in_time(self, until: float, what: str, host: str) -> None:
        if self.clock() > until:
            raise Unavailable(f"{what}: {host} takes longer than {self.whole_s:g} s")

    def _opened(self, request: httpx2.Request, what: str) -> httpx2.Response:
        request.headers.update({"accept-encoding": "identity", "user-agent": "confide"})
        request.extensions["timeout"] = {
            "connect": CONNECT_S,
            "read": self.silence_s,
            "write": self.silence_s,
            "pool": CONNECT_S,
        }
        try:
            return self.http.send(request, stream=True, follow_redirects=False, auth=None)
        except ValueError as error:  # httpx2 reads where a redirect points even where it must not follow it
            raise nowhere(what, request.url) from error

    def _whole(self, response: httpx2.Response, what: str, limit: int, until: float) -> Answer:
        host = response.url.host
        if response.status_code == 404:
            raise NotKnown(f"{what}: {host} does not know it (404)", remedy=UNKNOWN_REMEDY)
        if response.status_code != 200:
            raise Unavailable(
                f"{what}: {host} answers with status {response.status_code}, expected 200",
                retry_after_s=retry_after(response) if response.status_code in (429, 503) else None,
            )
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise Unavailable(f"{what}: {host} encodes its answer, which was not asked for")
        body = bytearray()
        for part in response.iter_bytes():
            body += part
            if len(body) > limit:
                raise Unavailable(f"{what}: {host} sends more than {limit} bytes")
            self._require_in_time(until, what, host)
        return Answer(str(response.url), response.headers, bytes(body))


UNKNOWN_REMEDY = "Check that the platform is genuine and the address is that of its vendor's service."


def within(start: httpx2.URL, response: httpx2.Response, what: str) -> httpx2.URL:
    """Where a redirect points: to the same origin, else Unavailable."""
    try:
        target = response.url.join(response.headers["location"])
    except httpx2.InvalidURL as error:
        raise nowhere(what, start) from error
    if (target.scheme, target.host, target.port) != (start.scheme, start.host, start.port):
        raise Unavailable(
            f"{what}: {start.host} redirects to {quoted(target.host)}, and other hosts are not followed",
            remedy="Set the address to that one if you trust it.",
        )
    return target


def nowhere(what: str, start: httpx2.URL) -> Unavailable:
    return Unavailable(f"{what}: {start.host} redirects to an address that is none")


def retry_after(response: httpx2.Response) -> int:
    """Seconds that the service wants to be left alone: what it says, if that is a number, and at most a day."""
    said = response.headers.get("retry-after", "")
    seconds = int(said) if said.isascii() and said.isdigit() and len(said) < 10 else DEFAULT_RETRY_AFTER_S
    return min(max(seconds, 1), MAX_RETRY_AFTER_S)


def fetcher_for(base: str) -> Fetcher:
    """Over a client that keeps no connection between two days. Nothing on this machine is behind a proxy."""
    limits = httpx2.Limits(max_keepalive_connections=0)
    return Fetcher(httpx2.Client(trust_env=httpx2.URL(base).host not in LOOPBACK, limits=limits))


def require_base(url: str, what: str) -> str:
    """The address of a service without a slash at its end. Raises ConfigError unless it is https, or loopback."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"{what}: {url!r} is not a URL") from error
    is_local = parsed.scheme == "http" and parsed.host in LOOPBACK
    if not parsed.host or not (parsed.scheme == "https" or is_local):
        raise ConfigError(f"{what}: got {url!r}, expected an https URL", remedy="Plain http is for 127.0.0.1 only.")
    if parsed.query or parsed.fragment or parsed.userinfo:
        raise ConfigError(f"{what}: got {url!r}, expected no user, query or fragment in it")
    return url.rstrip("/")
