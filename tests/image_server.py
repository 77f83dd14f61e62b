"""An https server for images on loopback, a certificate authority of its own, and a resolver that a test dictates.

async with ImageServer(authority, image_response(png())) as server:
    fetcher = server.fetcher()
    await fetcher.inline(asking(server.url("/cat.png")))
"""

import datetime
import ipaddress
import ssl
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from confide.protocol.chat import ChatRequest, parse_chat
from confide.protocol.chat_messages import ImagePart, UserMessage
from confide.upstream.image_target import IpAddress, MayConnect
from confide.upstream.images import ImageFetcher, ImageLimits
from scripted import Script, ScriptedUpstream, response

HOST = "images.test"  # a name that no resolver knows (RFC 6761): a second look-up would fail
LOOPBACK = ipaddress.ip_address("127.0.0.1")


class Authority:
    """A certificate authority; `directory` takes the files that `ssl` wants."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self._root = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def trusting(self) -> ssl.SSLContext:
        """A client context that trusts this authority and no other."""
        pem = self._root.public_bytes(serialization.Encoding.PEM).decode("ascii")
        return ssl.create_default_context(cadata=pem)

    def serving(self, *names: str) -> ssl.SSLContext:
        """A server context with a certificate for these names."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        leaf = self._builder(subject, key.public_key()).add_extension(alternatives, critical=False)
        path = self._directory / f"{names[0]}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + leaf.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )


class Resolver:
    """Answers with `addresses` whatever the name, and records what it was asked."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = [ipaddress.ip_address(address) for address in addresses]
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[IpAddress]:
        self.asked.append((host, port))
        return self.addresses


class ImageServer(ScriptedUpstream):
    """A scripted server over TLS under HOST and localhost, or under `names`."""

    def __init__(self, authority: Authority, *scripts: Script, names: Sequence[str] = (HOST, "localhost")) -> None:
        super().__init__(*scripts, tls=authority.serving(*names))
        self._authority = authority

    def url(self, path: str = "/image", *, host: str = HOST) -> str:
        return f"https://{host}:{self.port}{path}"

    def fetcher(
        self,
        *,
        resolve: Callable[..., object] | None = None,
        may_connect: MayConnect = lambda address: address == LOOPBACK,
        **limits: object,
    ) -> ImageFetcher:
        """A fetcher that trusts this server's authority and takes its port. It may connect to 127.0.0.1 only."""
        bounds = msgspec.convert({"remote_images": True, "ports": (self.port,), **limits}, ImageLimits)
        return ImageFetcher(
            bounds,
            may_connect=may_connect,
            ssl_context=self._authority.trusting(),
            resolve=resolve or Resolver("127.0.0.1"),  # type: ignore[arg-type]  # so that a test may pass any callable
        )


def image_response(data: bytes, content_type: str = "image/png", *headers: bytes) -> Script:
    """A script that answers with an image."""
    return [response(data, b"Content-Type: " + content_type.encode(), *headers)]


def asking(*urls: str) -> ChatRequest:
    """A request with one user message: a text part, then an image part for each URL."""
    parts: list[object] = [{"type": "text", "text": "What is this?"}]
    parts += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return parse_chat(msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": parts}]}))


def urls_of(request: ChatRequest) -> list[str]:
    """The image URLs of the first message, in order."""
    message = request.messages[0]
    assert isinstance(message, UserMessage)
    return [part.image_url.url for part in message.content if isinstance(part, ImagePart)]


def told(error: BaseException | None) -> str:
    """All that an exception says, with everything that a log would print along with it."""
    texts: list[str] = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def gif(width: int = 1, height: int = 1) -> bytes:
    """A whole GIF of 35 bytes: one frame of 1 × 1 on a screen of any size."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return screen + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00\x3b"
