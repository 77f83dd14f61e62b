"""Ask one question over HTTP and have the answer proven: by its receipt, or by the older request signature.

    prove  over a `confide.Client`, which decides what the receipt is worth (wire contract 9.3, 9.5)
    ask    fetches signature and report; what they are worth is decided in `verifier/legacy.py` (wire contract 9.2)

The bytes that count are kept exactly as they went out and came in. Everything that is read is bounded.
"""

import contextlib
import ipaddress
import secrets
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2
import msgspec

from confide.client.answer import Answer, Envelope, OnText, Problem, Question, Reading, unproven
from confide.client.http import Client
from confide.client.proof import Proof
from confide.client.sending import cause, now_s
from confide.collateral.tdx import TdxCollateral
from confide.errors import CannotTell, ConfideError, ConfigError
from confide.evidence.policy import Anchors, TdxPolicy
from confide.evidence.result import Verification, quoted
from confide.protocol.pins import spki_of
from confide.protocol.signature import Algo
from confide.verifier import legacy
from confide.verifier.collateral import HeldCollateral
from confide.verifier.policy import Policy

MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024

# Reading waits for a model to begin: longer than a service of ours waits for its engine.
TIMEOUTS_S = httpx2.Timeout(connect=10, read=180, write=60, pool=10)


class ServiceRefused(ConfideError):
    """The service answered, and the answer is no."""

    exit_status = 1


class ListedModel(msgspec.Struct, frozen=True):
    """A model of the catalogue."""

    id: str


class ModelList(msgspec.Struct, frozen=True):
    """The catalogue (wire contract 3.1)."""

    data: tuple[ListedModel, ...]


def parse_base_url(text: str) -> httpx2.URL:
    """The address of a service, with or without `/v1` at its end. Raises ConfigError."""
    try:
        url = httpx2.URL(text)
        url.host.encode("idna")  # as the resolver will
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise ConfigError(f"the base URL cannot be read: {error}", remedy="Give it as http://HOST:PORT.") from error
    has_port = url.port is None or 0 < url.port < 65536
    if url.scheme not in ("http", "https") or not url.host or not has_port or url.query or url.fragment:
        raise ConfigError("the base URL is no http or https address", remedy="Give it as http://HOST:PORT.")
    if url.userinfo:
        raise ConfigError("the base URL holds a password", remedy="Set CONFIDE_API_KEY to the API key instead.")
    return url.copy_with(path=url.path.rstrip("/").removesuffix("/v1"))


def parse_api_key(text: str) -> str | None:
    """The API key, None when it is empty. Raises ConfigError, which does not show it."""
    key = text.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError("CONFIDE_API_KEY holds characters that no key has", remedy="Set it to the key alone.")
    return key or None


def is_loopback(url: httpx2.URL) -> bool:
    """Whether this address never leaves the machine."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(url.host).is_loopback
    return url.host == "localhost"


def environment_proxy(url: httpx2.URL) -> str | None:
    """The proxy on the way to this service, as *_PROXY and NO_PROXY name it; none to this machine.

    Raises ConfigError for what is no HTTP proxy.
    """
    if is_loopback(url) or urllib.request.proxy_bypass(url.host):
        return None
    proxies = urllib.request.getproxies()
    named = proxies.get(url.scheme) or proxies.get("all")
    if named is not None and not is_proxy_address(named):
        raise ConfigError(
            "the environment names a proxy that is no http or https address", remedy="Check *_PROXY and NO_PROXY."
        )
    return named


def is_proxy_address(text: str) -> bool:
    """Whether this can be connected to; it may hold a password, so that no message repeats it."""
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)


@contextlib.contextmanager
def connected(
    base_url: httpx2.URL,
    api_key: str | None,
    *,
    policy: Policy | None = None,
    now: Callable[[], int] = now_s,
    keep_bodies: bool = False,
    collateral: HeldCollateral | None = None,
) -> Iterator["Service"]:
    """A service to ask, over the proxies that the environment names unless it is on this machine.

    `policy`: ask through a client that verifies by it, see `confide.Client` (also for `collateral`); None: through one
    that does not.
    """
    headers = {"Accept-Encoding": "identity", "User-Agent": "confide"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    options: dict[str, Any] = {"base_url": base_url, "headers": headers, "timeout": TIMEOUTS_S}
    try:
        if policy is not None:
            proxy = environment_proxy(base_url)
            http: httpx2.Client = Client(
                policy, keep_bodies=keep_bodies, now=now, collateral=collateral, proxy=proxy, **options
            )
        else:
            http = httpx2.Client(**options, transport=httpx2.HTTPTransport() if is_loopback(base_url) else None)
    except (OSError, ValueError, httpx2.InvalidURL) as error:  # the environment's certificates and proxies
        raise no_connection(error) from error
    with http:
        yield Service(http)


class Service:
    """One service, asked with one key. Its methods raise CannotTell, ServiceRefused and VerificationError."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def first_model(self) -> str:
        """The id of the first model in the catalogue."""
        raw = self._get("/v1/models", {}, what="the list of models")
        try:
            return msgspec.json.decode(raw, type=ModelList).data[0].id
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError) as error:
            raise CannotTell("the service lists no model", remedy="Name one with --model.") from error

    def ask(self, question: Question, on_text: OnText) -> Answer:
        """Put the question. `on_text` gets the answer's text piece by piece, and of a stream before it is proven."""
        sent = question.body()
        reading = Reading(on_text)
        headers = {"Content-Type": "application/json"}
        with self._open("POST", "/v1/chat/completions", what="the question", content=sent, headers=headers) as response:
            spki = None if isinstance(self._http, Client) else spki_sha256(response)
            for data in bounded(response, MAX_ANSWER_BYTES, what="the answer"):
                reading.feed(data, is_stream=question.stream)
            proof = response.extensions.get("confide.proof")
        if not question.stream:
            reading.take(bytes(reading.received))
        if not reading.id and proof is None:
            raise unproven("the answer has no id, so no proof of it can be asked for")
        return Answer(reading.id, "".join(reading.texts), sent, bytes(reading.received), spki, reading.broken, proof)

    def signature(self, answer_id: str, model: str, algo: Algo) -> bytes:
        """The signature document, as it came (wire contract 5)."""
        path = f"/v1/signature/{quote(answer_id, safe='')}"
        return self._get(path, {"model": model, "signing_algo": algo.value}, what="the answer's signature")

    def report(self, nonce: bytes, model: str, algo: Algo, signer: str | None, *, is_tls: bool) -> bytes:
        """The attestation report, as it came; over TLS the one that binds the TLS key (wire contract 6)."""
        query = {"model": model, "nonce": nonce.hex(), "signing_algo": algo.value, "version": "2" if is_tls else "1"}
        if signer is not None:
            query["signing_address"] = signer
        return self._get("/v1/attestation/report", query, what="the attestation report")

    def _get(self, path: str, query: Mapping[str, str], *, what: str) -> bytes:
        with self._open("GET", path, what=what, params=query) as response:
            return b"".join(bounded(response, MAX_DOCUMENT_BYTES, what=what))

    @contextlib.contextmanager
    def _open(
        self,
        method: str,
        path: str,
        *,
        what: str,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[httpx2.Response]:
        """A response with status 200 and a body that is not encoded."""
        try:
            with contextlib.ExitStack() as opened:
                stream = self._http.stream(method, path, params=params, content=content, headers=headers)
                try:
                    response = opened.enter_context(stream)
                except OSError as error:  # a verifying client makes its connections when it needs them
                    raise no_connection(error) from error
                except ValueError as error:  # httpx2 reads where a redirect points even where it is not to follow it
                    raise ServiceRefused(
                        f"the service answered {what} with a redirect to an address that is none",
                        remedy="Check --base-url.",
                    ) from error
                if response.status_code != 200:
                    raise refusal(response, what)
                if response.headers.get("content-encoding", "identity").lower() != "identity":
                    raise unproven(f"{what} came compressed although that was refused, so its bytes were changed")
                yield response
        except httpx2.TransportError as error:
            raise unreachable(self._http.base_url, error) from error


@dataclass(frozen=True)
class Asked:
    """An answer and what was checked about it; the verification says whether it holds."""

    answer: Answer
    verification: Verification


def prove(service: Service, question: Question, on_text: OnText) -> tuple[Answer, Proof]:
    """Ask a service that was `connected` with a policy. Raises VerificationError unless the answer is proven."""
    answer = service.ask(question, on_text)
    if answer.proof is None:
        raise unproven("nothing proves the answer")
    return answer, answer.proof


def ask(
    service: Service,
    question: Question,
    *,
    algo: Algo,
    anchors: Anchors,
    policy: TdxPolicy,
    now: Callable[[], int],
    on_text: OnText,
    collateral: HeldCollateral,
) -> Asked:
    """Ask, then check the answer (wire contract 9.2). `now`: Unix seconds, read once, after the report came.
    `collateral`: where to get what the report lacks.

    The nonce is drawn after the answer is there: the report then proves that the key lives in the TEE now.
    """
    answer = service.ask(question, on_text)
    signature = service.signature(answer.id, question.model, algo)
    nonce = secrets.token_bytes(32)
    signer = legacy.claimed_signer(signature)
    report = service.report(nonce, question.model, algo, signer, is_tls=answer.spki_sha256 is not None)
    moment = now()
    verification = legacy.verify_answer(
        sent=answer.sent,
        received=answer.received,
        signature=signature,
        report=report,
        algo=algo,
        nonce=nonce,
        anchors=anchors,
        policy=policy,
        now=moment,
        spki_sha256=answer.spki_sha256,
        collateral=collateral_for(legacy.bare_quote(signature, report), collateral, moment),
    )
    return Asked(answer, verification)


def collateral_for(quote: bytes | None, source: HeldCollateral, now: int) -> TdxCollateral | None:
    """For a quote that came without; None where there is none such, or nothing to be had: then the checks say so."""
    with contextlib.suppress(CannotTell):
        return None if quote is None else source.for_quote(quote, now)
    return None


def no_connection(error: Exception) -> ConfigError:
    """Connections are made by the environment's certificates and proxies, which may be nonsense."""
    return ConfigError(
        f"no connection can be set up: {quoted(error)}", remedy="Check SSL_CERT_FILE, SSL_CERT_DIR and *_PROXY."
    )


def bounded(response: httpx2.Response, limit: int, *, what: str) -> Iterator[bytes]:
    """The body as it came from the socket. Raises VerificationError past `limit` bytes."""
    total = 0
    for data in response.iter_raw():
        total += len(data)
        if total > limit:
            raise unproven(f"{what} is larger than {limit} bytes")
        yield data


def spki_sha256(response: httpx2.Response) -> bytes | None:
    """SHA-256 (32 bytes) of the TLS leaf's public key on this very connection, None for plain HTTP."""
    if response.url.scheme != "https":
        return None
    tls = response.extensions["network_stream"].get_extra_info("ssl_object")
    found = spki_of(tls.getpeercert(True))  # by position: what the standard library's sockets put there has no keywords
    if found is None:
        raise CannotTell("the service's certificate has a key that cannot be read", remedy="Ask another service.")
    return found


def refusal(response: httpx2.Response, what: str) -> ConfideError:
    """What a status other than 200 means to the person who asked. 429 and 5xx may be otherwise in a minute."""
    status, problem = response.status_code, problem_of(response)
    message = f"the service refused {what} with status {status}" + (f": {quoted(problem.message)}" if problem else "")
    if status == 429 or status >= 500:
        return CannotTell(message, remedy="Try again shortly.")
    if status == 401:
        return ServiceRefused(message, remedy="Set CONFIDE_API_KEY to a key of this service.")
    if problem is not None and problem.type == "model_not_found":
        return ServiceRefused(message, remedy="Name a model of this service with --model, or leave it out.")
    return ServiceRefused(message, remedy="Check --base-url and the request; without a proof nothing is verified.")


def problem_of(response: httpx2.Response) -> Problem | None:
    """The wire error in the body, None when it is something else."""
    try:
        raw = b"".join(bounded(response, MAX_DOCUMENT_BYTES, what="the refusal"))
        return msgspec.json.decode(raw, type=Envelope).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def unreachable(url: httpx2.URL, error: httpx2.TransportError) -> CannotTell:
    """No answer, or not a whole one."""
    start = "Start one with `confide serve`, or name another with --base-url."
    trust = "Check the address; if its certificate is not a public one, set SSL_CERT_FILE to the one to trust."
    return CannotTell(
        f"{url} cannot be reached, or broke off: {cause(error)}", remedy=trust if url.scheme == "https" else start
    )
