"""What both transports share: where a request goes, what is kept of it, and what each failure is called.

Nothing here waits for anything. The order of things is told in `client/transport.py`.
"""

import time
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import httpx2

from confide.client.known_service import KnownService
from confide.client.party import RelyingParty
from confide.client.proof import Proof
from confide.client.steps import Fetch, Steps
from confide.client.verdict import NotNow
from confide.client.withholding import Body
from confide.errors import ConfigError, VerificationError
from confide.evidence.result import quoted

FETCH_TRIES = 3
FETCH_PAUSE_S = 0.1
FETCH_TIMEOUT_S = {"connect": 10.0, "read": 30.0, "write": 30.0, "pool": 30.0}
CREDENTIALS = ("authorization", "x-api-key")
EVENT_STREAM = "text/event-stream"
COUNT_TOKENS = "/v1/messages/count_tokens"
REQUEST_IDS = ("x-request-id", "request-id")  # where the SDKs of OpenAI and of Anthropic look
TURNED_INTO_GET = (301, 302, 303)  # by clients that follow redirections; 307 and 308 send the prompt again as it is
PINS_CHANGED = "the keys changed while the connection was made"

# Options of httpx2 that belong to the connections, and those that would take the verification away.
CONNECTION_OPTIONS = ("trust_env", "http1", "http2", "limits", "proxy")
REFUSED_OPTIONS = ("verify", "cert", "mounts", "transport")

Options = Mapping[str, Any]  # of an httpx2 transport


def now_s() -> int:
    """Unix seconds."""
    return int(time.time())


def connection_options(options: dict[str, Any]) -> Options:
    """Take the options of connections out of those of a client. Raises ConfigError for what cannot be combined."""
    refused = sorted(set(options).intersection(REFUSED_OPTIONS))
    if refused:
        raise ConfigError(
            f"{', '.join(refused)}: a confide client decides by the attested key which server it trusts",
            remedy="Leave it out; policy=confide.Policy(…) says what is trusted.",
        )
    return {name: options.pop(name) for name in CONNECTION_OPTIONS if name in options}


class Latch:
    """Closed by the first failure; from then on nothing is sent."""

    def __init__(self) -> None:
        self._failure: VerificationError | None = None

    def check(self) -> None:
        """Raise VerificationError when closed."""
        failure = self._failure  # once: another thread may open the latch meanwhile
        if failure is not None:
            raise VerificationError(
                f"nothing was sent: this client has failed before: {failure.message}",
                check=failure.check,
                remedy="Find out why; client.reset() lets it try again.",
            ) from failure

    def close(self, failure: VerificationError) -> None:
        """The first failure stays the reason."""
        if self._failure is None:
            self._failure = failure

    def open(self) -> None:
        """Let it try again."""
        self._failure = None


class Destination:
    """Where a request goes: the service's root, and the endpoint under it."""

    def __init__(self, url: httpx2.URL) -> None:
        path = url.path
        prefix, marker, rest = path.partition("/v1/")
        self.host = url.raw_host.decode("ascii")  # as keysets list it: not decoded to the letters of its language
        self.endpoint = marker + rest if marker else path
        self.prefix = prefix if marker else ""
        # The root stands in bundles: a password in the URL does not belong there.
        root = url.copy_with(userinfo=b"", path=self.prefix or "/", query=None, fragment=None)
        self.root = str(root).rstrip("/")


def is_prompt(method: str, destination: Destination) -> bool:
    """Whether an answer comes back, which a receipt has to prove. Counting tokens generates none and has none."""
    return method == "POST" and destination.endpoint != COUNT_TOKENS


class Sent:
    """A prompt as it left. `at`: when, Unix seconds."""

    def __init__(
        self, request: httpx2.Request, body: bytes, destination: Destination, *, at: int | None = None
    ) -> None:
        self.request = request
        self.at = at
        self.body = body
        self.sha256 = sha256(body).digest()
        self.endpoint = destination.endpoint


def to_prove(
    party: RelyingParty, service: KnownService, sent: Sent, response: httpx2.Response, body: Body, *, keep: bool
) -> Steps[Proof]:
    """The steps that prove this answer. `keep`: the bodies go into a bundle."""
    return party.prove(
        service,
        endpoint=sent.endpoint,
        receipt_id=response.headers.get("x-receipt-id"),
        request_sha256=sent.sha256,
        response_sha256=body.sha256,
        status=response.status_code,
        sent_at=sent.at,
        request=sent.body if keep else None,
        response=body.kept if keep else None,
    )


def can_be_proven(response: httpx2.Response) -> bool:
    """Whether this is an answer, to be proven by its receipt; False for what is no answer and is passed on as it is.

    Raises VerificationError for what would pass for an answer and could never be proven.
    """
    require_no_get(response)
    if not has_to_be_proven(response):
        return False
    require_identity(response)
    return True


def is_event_stream(response: httpx2.Response) -> bool:
    """Whether the body is a stream of server-sent events."""
    return bool(response.headers.get("content-type", "").startswith(EVENT_STREAM))


def has_to_be_proven(response: httpx2.Response) -> bool:
    """Whatever may be taken for an answer has, and what claims a receipt: all but errors and redirections to follow."""
    return not (response.is_error or response.has_redirect_location) or "x-receipt-id" in response.headers


def require_no_get(response: httpx2.Response) -> None:
    """Raise VerificationError for a redirection that a client follows with a GET: what that brings nobody proves."""
    if response.status_code in TURNED_INTO_GET and "location" in response.headers:
        raise VerificationError(
            f"receipt-1: got a redirection, status {response.status_code}, that turns the prompt into a GET, expected "
            "the answer: nothing would prove what such a request brings",
            check="receipt-1",
            remedy="Do not rely on this service; use the address that it is served at.",
        )


def require_identity(response: httpx2.Response) -> None:
    """Raise VerificationError for a body that somebody encoded: its bytes are not those that the receipt is over."""
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise VerificationError(
            f"receipt-4: got a body with content-encoding {quoted(encoding)}, expected it as the service made it",
            check="receipt-4",
            remedy="Something between you and the service compresses answers; reach the service without it.",
        )


def document_request(destination: KnownService, fetch: Fetch, headers: httpx2.Headers | None) -> httpx2.Request:
    """The request for a document, with the credential of the prompt where that is wanted."""
    given = {"accept-encoding": "identity", "user-agent": "confide"}
    if fetch.with_credential and headers is not None:
        given |= {name: headers[name] for name in CREDENTIALS if name in headers}
    return httpx2.Request(
        "GET", destination.root + fetch.path, headers=given, extensions={"timeout": dict(FETCH_TIMEOUT_S)}
    )


def cause(error: Exception) -> str:
    """What broke a connection, in words. Of a broken protocol only its name: the library quotes what it could not read,
    which may be of the answer.
    """
    return ("" if isinstance(error, httpx2.ProtocolError) else quoted(error)) or type(error).__name__


def unfetched(error: httpx2.TransportError) -> VerificationError:
    """The answer is there and its proof is not to be had."""
    return VerificationError(
        f"receipt-1: the receipt could not be fetched: {cause(error)}",
        check="receipt-1",
        remedy="Do not rely on this answer.",
    )


def unavailable(error: NotNow) -> httpx2.ConnectError:
    """As for a service that is not there: SDKs try again, and nothing was sent yet."""
    return httpx2.ConnectError(error.message)


def unfollowed(error: Exception) -> VerificationError:
    """The answer is there, under a keyset that is new, and the service cannot be verified anew."""
    return VerificationError(
        f"id-1: got an answer under another keyset, and no report of it: {cause(error)}",
        check="id-1",
        remedy="Do not rely on this answer.",
    )


def wrong_key(error: httpx2.TransportError) -> VerificationError:
    """Also after the service was verified anew, the connection has another key."""
    return VerificationError(
        f"id-6: {quoted(error) or PINS_CHANGED}",
        check="id-6",
        remedy="Nothing was sent. Somebody may be between you and the service.",
    )


def cut_off(error: httpx2.TransportError) -> VerificationError:
    """The connection broke inside a stream, and what came of it is not proven."""
    return VerificationError(
        f"receipt-4: the connection broke before the end of the stream: {cause(error)}",
        check="receipt-4",
        remedy="Do not rely on what came of this answer; ask again.",
    )


def unproven(response: httpx2.Response) -> httpx2.Response:
    """The response as it came, but that it leads to no proof: none is of it, and none of another shall be taken for it.

    SDK objects lead to a proof by their request id. Whoever answered may have put any there, or an `id` into the body.
    """
    for name in REQUEST_IDS:
        response.headers[name] = " ".join(["unproven", *response.headers.get_list(name)])
    if "x-receipt-id" in response.headers:
        del response.headers["x-receipt-id"]
    return response


def answered(response: httpx2.Response, stream: Any, proof: Proof | None) -> httpx2.Response:
    """The response as the caller sees it. Its `x-request-id` is the receipt's: so SDK objects lead to the proof."""
    headers = response.headers.copy()
    receipt_id = headers.get("x-receipt-id")
    if receipt_id is not None:
        for name in REQUEST_IDS:
            headers[name] = receipt_id
    extensions = {**response.extensions, "confide.proof": proof}  # None: of a stream that has not ended
    if isinstance(stream, bytes):
        # As it is: a length or an encoding that is set anew would not be the service's.
        stream = httpx2.ByteStream(stream)
    return httpx2.Response(response.status_code, headers=headers, stream=stream, extensions=extensions)
