"""The HTTP transport that verifies: the service before a byte is sent, and every answer before it counts.

    establish  once for each keyset: fresh nonce, quote, binding, expiry, policy, over a connection whose key is noted
    pin        from then on connections are made to attested keys only, checked in the handshake
    send       the request, once; it is never sent a second time from here
    prove      a buffered answer before the caller sees it, a stream before its last event is passed on

Everything is decided in `client/party.py`, `client/connections.py` and `client/withholding.py`; here bytes are moved. A
transport that has raised a VerificationError latches: it sends nothing more until it is reset, whatever an SDK tries
again. But for one: a connection that broke inside a stream says nothing against the service.

Every POST counts as a prompt, but for one that counts tokens: its successful answer has to be proven. Other requests
reach verified services only, over the same connections; what they bring is no evidence of anything.

`client/async_transport.py` is the same for asyncio, line by line.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

import httpx2

from confide.client.connections import Connections
from confide.client.known_service import KnownService
from confide.client.party import RelyingParty
from confide.client.pinning import is_not_pinned, seen_spki
from confide.client.proof import KEPT_PROOFS, Proof
from confide.client.sending import (
    FETCH_PAUSE_S,
    FETCH_TRIES,
    Destination,
    Latch,
    Options,
    Sent,
    answered,
    can_be_proven,
    cut_off,
    document_request,
    is_event_stream,
    is_prompt,
    now_s,
    to_prove,
    unavailable,
    unfetched,
    unfollowed,
    unproven,
    wrong_key,
)
from confide.client.steps import Fetch, Fetched, drive
from confide.client.verdict import NotNow
from confide.client.withholding import Body, Withholding
from confide.errors import VerificationError
from confide.protocol.canonical import MAX_DOCUMENT_BYTES
from confide.verifier.appraisal import ServiceVerification
from confide.verifier.collateral import Collateral, HeldCollateral
from confide.verifier.policy import Policy


class Line(Connections[httpx2.HTTPTransport]):
    """The connections to one service. `lock` is held while the service is verified."""

    def __init__(self, service: KnownService, options: Options) -> None:
        super().__init__(httpx2.HTTPTransport, service, options)
        self.lock = threading.RLock()

    @property
    def transport(self) -> httpx2.HTTPTransport:
        """See Connections.transport."""
        with self.lock:
            return super().transport

    def let_go(self) -> None:
        """Close those to keys that the service has not had for long."""
        for transport in self.outdated():
            transport.close()

    def close(self) -> None:
        for transport in self.made:
            transport.close()


class VerifyingTransport(httpx2.BaseTransport):
    """See the module. `options`: of httpx2.HTTPTransport. `keep_bodies`: proofs hold them, for their bundles.
    `collateral`: where to get what reports lack; by default from the vendors.
    """

    def __init__(
        self,
        policy: Policy,
        options: Options,
        *,
        keep_bodies: bool = False,
        now: Callable[[], int] = now_s,
        collateral: HeldCollateral | None = None,
    ) -> None:
        self.latch = Latch()
        self._party = RelyingParty(policy, now=now, draw=secrets.token_bytes, collateral=collateral or Collateral())
        self._options = options
        self._keep_bodies = keep_bodies
        self._lock = threading.Lock()
        self._lines: dict[str, Line] = {}

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request to a verified service. Raises VerificationError, and httpx2's errors where nothing was told
        about the service.
        """
        self.latch.check()
        try:
            return self._handle(request)
        except VerificationError as failure:
            self.latch.close(failure)
            raise

    def verify(self, url: httpx2.URL) -> ServiceVerification:
        """The service at this URL, verified anew. Raises as `handle_request` does."""
        line = self._line(Destination(url))
        try:
            with line.lock:
                return self._establish(line)
        except VerificationError as failure:
            self.latch.close(failure)
            raise

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            lines = list(self._lines.values())
        for line in lines:
            line.close()

    def _handle(self, request: httpx2.Request) -> httpx2.Response:
        destination = Destination(request.url)
        line = self._line(destination)
        self._ready(line)
        if not is_prompt(request.method, destination):
            return unproven(self._send(line, request))
        request.headers["accept-encoding"] = "identity"
        sent = Sent(request, request.read(), destination, at=self._party.now())
        response = self._send(line, request)
        try:
            self._follow(line, response)
            if not can_be_proven(response):
                return unproven(response)
            if is_event_stream(response):
                return self._streamed(line, sent, response)
            return self._buffered(line, sent, response)
        except BaseException:
            response.close()
            raise

    def _ready(self, line: Line) -> None:
        """Verify the service where that is due. One that cannot be asked again keeps the keyset that still stands."""
        with line.lock:
            if not self._party.is_due(line.service):
                return
            try:
                self._establish(line)
            except httpx2.TransportError:
                if not self._party.still_stands(line.service):
                    raise

    def _send(self, line: Line, request: httpx2.Request) -> httpx2.Response:
        """Once. A connection with another key is no sending: then the service is verified anew, as its key may have
        been changed, and it is tried once more.
        """
        pins = line.service.pins
        self.latch.check()  # another request may have failed while this one waited for its turn
        try:
            return line.transport.handle_request(request)
        except httpx2.ConnectError as error:
            if not is_not_pinned(error):
                raise
        with line.lock:
            if line.service.pins == pins:  # another request may have met the same key and asked already
                self._establish(line)
        self.latch.check()
        try:
            return line.transport.handle_request(request)
        except httpx2.ConnectError as error:
            if not is_not_pinned(error):
                raise
            raise wrong_key(error) from error

    def _follow(self, line: Line, response: httpx2.Response) -> None:
        """Verify the service again when it says that it has another keyset now."""
        digest = response.headers.get("x-aci-keyset-digest")
        if digest is None or line.service.knows(digest):
            return
        with line.lock:
            if not line.service.knows(digest):
                try:
                    self._establish(line)
                except httpx2.TransportError as error:
                    raise unfollowed(error) from error

    def _buffered(self, line: Line, sent: Sent, response: httpx2.Response) -> httpx2.Response:
        body = Body(keep=True)
        assert isinstance(response.stream, httpx2.SyncByteStream)
        for data in response.stream:
            body.add(data)
        response.close()
        proof = self.prove(line, sent, response, body)
        return answered(response, body.kept, proof)

    def _streamed(self, line: Line, sent: Sent, response: httpx2.Response) -> httpx2.Response:
        stream = ProvingStream(self, line, sent, response, Body(keep=self._keep_bodies))
        stream.shown = answered(response, stream, None)
        return stream.shown

    def prove(self, line: Line, sent: Sent, response: httpx2.Response, body: Body) -> Proof:
        """The proof of a whole answer. Raises VerificationError."""
        steps = to_prove(self._party, line.service, sent, response, body, keep=self._keep_bodies)
        proof = drive(steps, partial(self._fetch, line, headers=sent.request.headers))
        KEPT_PROOFS.keep(proof)
        return proof

    def _establish(self, line: Line) -> ServiceVerification:
        try:
            verified = drive(self._party.establish(line.service), partial(self._fetch, line))
        except NotNow as error:
            raise unavailable(error) from error
        line.let_go()
        return verified

    def _fetch(self, line: Line, fetch: Fetch, headers: httpx2.Headers | None = None) -> Fetched:
        request = document_request(line.service, fetch, headers)
        if fetch.is_first:
            with closing(line.first_connection()) as transport:  # nothing but a nonce is sent over it
                return fetched(transport.handle_request(request))
        for tries_left in range(FETCH_TRIES - 1, -1, -1):
            try:
                return fetched(line.transport.handle_request(request))
            except httpx2.TransportError as error:
                if not tries_left:
                    raise unfetched(error) from error
                time.sleep(FETCH_PAUSE_S)
        raise AssertionError("unreachable")  # pragma: no cover

    def _line(self, destination: Destination) -> Line:
        with self._lock:
            if destination.root not in self._lines:
                service = KnownService(destination.root, destination.host)
                self._lines[destination.root] = Line(service, self._options)
            return self._lines[destination.root]


class ProvingStream(httpx2.SyncByteStream):
    """A stream that does not end before it is proven."""

    shown: httpx2.Response

    def __init__(
        self, transport: VerifyingTransport, line: Line, sent: Sent, response: httpx2.Response, body: Body
    ) -> None:
        self._transport = transport
        self._line = line
        self._sent = sent
        self._response = response
        self._body = body
        self._is_begun = False

    def __iter__(self) -> Iterator[bytes]:
        if self._is_begun:  # an SDK that saw the last event reads on, to use the connection again
            if self.shown.extensions["confide.proof"] is None:
                raise httpx2.StreamConsumed
            return
        self._is_begun = True
        withholding = Withholding()
        assert isinstance(self._response.stream, httpx2.SyncByteStream)
        try:
            for data in self._response.stream:
                self._body.add(data)
                if ready := withholding.feed(data):
                    yield ready
            self._response.close()  # what is asked for next may go over the same connection
            proof = self._transport.prove(self._line, self._sent, self._response, self._body)
        except VerificationError as failure:
            self._transport.latch.close(failure)
            raise
        except (httpx2.NetworkError, httpx2.ProtocolError) as error:
            raise cut_off(error) from error
        finally:
            self._response.close()
        self.shown.extensions["confide.proof"] = proof
        if held := withholding.held:
            yield held

    def close(self) -> None:
        """Let go of the connection; a stream that was not read to its end stays unproven."""
        self._response.close()


def fetched(response: httpx2.Response) -> Fetched:
    """The document; of one that is too large as much as shows that it is."""
    with closing(response):
        spki, body = seen_spki(response), bytearray()  # the key first: after the last byte the socket may be closed
        assert isinstance(response.stream, httpx2.SyncByteStream)
        for data in response.stream:
            body += data
            if len(body) > MAX_DOCUMENT_BYTES:
                break
        return Fetched(response.status_code, bytes(body), spki)
