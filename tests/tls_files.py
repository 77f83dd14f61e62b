"""Certificates that only their own test trusts."""

import datetime
import ipaddress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

LOOPBACK = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])


@dataclass(frozen=True)
class TlsFiles:
    """PEM files, and SHA-256 (32 bytes) of the public key in them."""

    cert: Path
    key: Path
    certificate: x509.Certificate
    spki_sha256: bytes


def self_signed(directory: Path) -> TlsFiles:
    """Make a key and a certificate, good for a day, in `directory`."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = certificate_for(key.public_key(), "test service", key, "test service")
    cert_path, key_path = directory / "cert.pem", directory / "key.pem"
    cert_path.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return TlsFiles(cert_path, key_path, certificate, sha256(spki).digest())


def self_signed_pem() -> bytes:
    """The certificate of a key that nobody keeps."""
    key = ec.generate_private_key(ec.SECP256R1())
    return certificate_for(key.public_key(), "another service", key, "another service").public_bytes(Encoding.PEM)


@dataclass(frozen=True)
class Chain:
    """Certificates in PEM: the leaf, and the root that signed it."""

    leaf_pem: bytes
    root_pem: bytes

    @property
    def pem(self) -> bytes:
        """Leaf first."""
        return self.leaf_pem + self.root_pem


def issued(request_pem: bytes) -> Chain:
    """What an authority makes of a certificate signing request."""
    request = x509.load_pem_x509_csr(request_pem)
    assert request.is_signature_valid
    key = request.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    authority = ec.generate_private_key(ec.SECP256R1())
    root = certificate_for(authority.public_key(), "test authority", authority, "test authority", ca=True)
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    leaf = certificate_for(key, "api", authority, "test authority", names=names)
    return Chain(leaf.public_bytes(Encoding.PEM), root.public_bytes(Encoding.PEM))


def certificate_for(
    key: ec.EllipticCurvePublicKey,
    subject: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    issuer: str,
    *,
    ca: bool = False,
    names: x509.SubjectAlternativeName = LOOPBACK,
) -> x509.Certificate:
    """A certificate that is good for a day."""
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder(named(issuer), named(subject), key, x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
    )
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(issuer_key, hashes.SHA256())


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
