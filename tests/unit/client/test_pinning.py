"""The check of the peer's key inside the handshake, on real sockets: a stranger's server sees no byte of a request."""

import asyncio
import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import httpx2
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from confide.client.pinning import KeyNotPinned, check_peer, is_not_pinned, pinned_context, seen_spki
from confide.protocol.pins import Pins

Key = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey

REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK"
KEYS: dict[str, Callable[[], Key]] = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
}


class TlsServer:
    """Answers each connection once, with a certificate for no host that expired long ago. `seen`: what it read."""

    def __init__(self, key: Key, directory: Path, versions: ssl.TLSVersion) -> None:
        self.certificate = certificate_of(key)
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.spki = sha256(spki).digest()
        pem = directory / "server.pem"
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        pem.write_bytes(self.certificate.public_bytes(Encoding.PEM) + private)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = self._context.maximum_version = versions
        self._context.load_cert_chain(pem)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}/"
        self.seen = b""
        self.served = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                with self._context.wrap_socket(connection, server_side=True) as tls:
                    if data := tls.recv(65536):
                        self.seen += data
                        tls.sendall(REPLY)
            self.served.release()

    def wait(self) -> None:
        """Until a connection was served, and what it brought is in `seen`."""
        assert self.served.acquire(timeout=5)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


def certificate_of(key: Key) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "elsewhere.example.com")])
    long_ago = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(long_ago).not_valid_after(long_ago + datetime.timedelta(days=1))
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())


@contextlib.contextmanager
def serving(
    directory: Path, kind: str = "P-256", versions: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> Iterator[TlsServer]:
    server = TlsServer(KEYS[kind](), directory, versions)
    try:
        yield server
    finally:
        server.close()


def blocking(url: str, pins: Pins | None) -> tuple[bytes, bytes | None]:
    """The body and the key that was seen."""
    with httpx2.HTTPTransport(verify=pinned_context(pins)) as transport:
        response = transport.handle_request(httpx2.Request("GET", url, headers={"x-secret": "prompt"}))
        try:
            spki = seen_spki(response)
            return response.read(), spki
        finally:
            response.close()


async def awaiting(url: str, pins: Pins | None) -> tuple[bytes, bytes | None]:
    async with httpx2.AsyncHTTPTransport(verify=pinned_context(pins)) as transport:
        response = await transport.handle_async_request(httpx2.Request("GET", url, headers={"x-secret": "prompt"}))
        try:
            spki = seen_spki(response)
            return await response.aread(), spki
        finally:
            await response.aclose()


def on_asyncio(url: str, pins: Pins | None) -> tuple[bytes, bytes | None]:
    return asyncio.run(awaiting(url, pins))


def on_uvloop(url: str, pins: Pins | None) -> tuple[bytes, bytes | None]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(awaiting(url, pins))


every_way = pytest.mark.parametrize("ask", [blocking, on_asyncio, on_uvloop])
Ask = Callable[[str, Pins | None], tuple[bytes, bytes | None]]


@every_way
@pytest.mark.parametrize("kind", KEYS)
def test_the_pinned_key_is_served_whatever_its_certificate_says(tmp_path: Path, ask: Ask, kind: str) -> None:
    with serving(tmp_path, kind) as server:
        assert ask(server.url, frozenset({server.spki, bytes(32)})) == (b"OK", server.spki)
        server.wait()
        assert b"x-secret: prompt" in server.seen


@every_way
@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("versions", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_with_another_key_the_server_sees_no_byte(
    tmp_path: Path, ask: Ask, kind: str, versions: ssl.TLSVersion
) -> None:
    with serving(tmp_path, kind, versions) as server:
        with pytest.raises(httpx2.ConnectError) as caught:
            ask(server.url, frozenset({bytes(32)}))
        assert is_not_pinned(caught.value)
        assert server.spki.hex() in str(caught.value)
        server.wait()
        assert server.seen == b""


@every_way
def test_no_pin_at_all_admits_nobody(tmp_path: Path, ask: Ask) -> None:
    with serving(tmp_path) as server:
        with pytest.raises(httpx2.ConnectError):
            ask(server.url, frozenset())
        server.wait()
        assert server.seen == b""


@every_way
def test_the_first_connection_takes_any_key_and_tells_which(tmp_path: Path, ask: Ask) -> None:
    with serving(tmp_path) as server:
        assert ask(server.url, None) == (b"OK", server.spki)


def test_tls_before_1_2_is_not_spoken() -> None:
    assert pinned_context(None).minimum_version is ssl.TLSVersion.TLSv1_2


def test_plain_http_has_no_key() -> None:
    assert seen_spki(httpx2.Response(200)) is None


class Stream:
    """A connection whose peer showed this certificate."""

    def __init__(self, certificate: bytes | None) -> None:
        self._certificate = certificate

    def get_extra_info(self, name: str) -> "Stream":
        assert name == "ssl_object"
        return self

    def getpeercert(self, _: bool) -> bytes | None:
        return self._certificate


@pytest.mark.parametrize("certificate", [None, b"", b"no certificate"])
def test_a_key_that_cannot_be_read_is_not_taken_for_plain_http(certificate: bytes | None) -> None:
    response = httpx2.Response(200, extensions={"network_stream": Stream(certificate)})
    assert seen_spki(response) == bytes(32)
    with pytest.raises(KeyNotPinned, match="a key that cannot be read"):
        check_peer(certificate, frozenset({sha256(certificate or b"").digest()}))


def test_the_reason_is_found_some_causes_deep() -> None:
    deep = ValueError()
    deep.__context__ = OSError()
    deep.__context__.__cause__ = KeyNotPinned("another key")
    assert is_not_pinned(deep)
    assert not is_not_pinned(ValueError())


def test_a_chain_of_causes_that_bites_its_tail_ends() -> None:
    first, second = ValueError(), ValueError()
    first.__cause__, second.__cause__ = second, first
    assert not is_not_pinned(first)
