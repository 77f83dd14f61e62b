"""Keys and certificates of the SIMULATED TDX platform, derived from one seed; every subject says it is not Intel's.

The same seed gives the same bytes in every process: that is what makes the root something that can be pinned.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hmac import digest as hmac_digest
from itertools import count

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

VALID_FROM = datetime(2026, 1, 1, tzinfo=UTC)
VALID_UNTIL = datetime(2045, 12, 27, tzinfo=UTC)

# What the PCK certificate, the collateral and the quote must agree on. An FMSPC that starts 51D0 is not Intel's.
FMSPC = bytes.fromhex("51d000000000")
PCE_ID = bytes(2)
PCE_SVN = 11
SGX_COMPONENTS = bytes.fromhex("03030202040100050000000000000000")
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


# Keys. Labels keep them apart from each other and from whatever else is derived from the same seed.


def derived(seed: bytes, label: str) -> Iterator[bytes]:
    """32 bytes for each counter value: HMAC-SHA256 over label and counter."""
    for counter in count():
        yield hmac_digest(seed, f"confide simulated tdx: {label}".encode() + counter.to_bytes(4, "big"), "sha256")


def derived_key(seed: bytes, label: str) -> ec.EllipticCurvePrivateKey:
    """The P-256 key of this label: the first derived value that is a scalar of the curve."""
    candidates = (int.from_bytes(block, "big") for block in derived(seed, label))
    return ec.derive_private_key(next(scalar for scalar in candidates if 0 < scalar < P256_ORDER), ec.SECP256R1())


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """ECDSA P-256 with SHA-256 as 64 bytes r‖s; deterministic (RFC 6979)."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(SHA256(), deterministic_signing=True)))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def raw_point(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public key as 64 bytes x‖y."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


# Certificates.


@dataclass(frozen=True)
class Identity:
    """A key, its serial number, and the certificate that its issuer gave it."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()


def name(common_name: str) -> x509.Name:
    """A subject that nobody can take for Intel's."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Simulated TEE (not Intel)"),
        ]
    )


def key_usage(is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def issued(
    seed: bytes,
    common_name: str,
    issuer: Identity | None,
    *,
    path_length: int | None = None,
    extensions: tuple[x509.UnrecognizedExtension, ...] = (),
) -> Identity:
    """A certificate with a key of its own; self-signed without `issuer`, a CA exactly when `path_length` is given.

    The same seed and arguments give the same bytes: serial number, key, window and signature are all derived.
    """
    is_ca = path_length is not None
    key = derived_key(seed, f"key of {common_name}")
    issuer_key = issuer.key if issuer else key
    serial = int.from_bytes(next(derived(seed, f"serial of {common_name}"))[:16], "big") >> 1 or 1
    builder = (
        x509.CertificateBuilder(
            issuer_name=issuer.certificate.subject if issuer else name(common_name),
            subject_name=name(common_name),
            public_key=key.public_key(),
            serial_number=serial,
            not_valid_before=VALID_FROM,
            not_valid_after=VALID_UNTIL,
        )
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=path_length), critical=True)
        .add_extension(key_usage(is_ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return Identity(key, builder.sign(issuer_key, SHA256(), ecdsa_deterministic=True))


# The SGX extension of a PCK certificate, 1.2.840.113741.1.13.1 (tee-evidence 6.3), in DER by hand.

SGX_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
SGX_EXTENSION_ARC = bytes.fromhex("2a864886f84d010d01")  # the content octets of that OID
BOOLEAN, INTEGER, OCTET_STRING, OID, ENUMERATED, SEQUENCE = 0x01, 0x02, 0x04, 0x06, 0x0A, 0x30
TRUE = b"\xff"


def der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    if len(content) < 0x80:
        return bytes((tag, len(content))) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def sgx_member(arc: tuple[int, ...], tag: int, *parts: bytes) -> bytes:
    return der(SEQUENCE, der(OID, SGX_EXTENSION_ARC + bytes(arc)), der(tag, *parts))


def sgx_extension(ppid: bytes, platform_instance_id: bytes) -> x509.UnrecognizedExtension:
    """The extension of a multi-package platform. `ppid`, `platform_instance_id`: 16 bytes each."""
    components = [sgx_member((2, place), INTEGER, bytes((svn,))) for place, svn in enumerate(SGX_COMPONENTS, start=1)]
    flags = [sgx_member((7, place), BOOLEAN, TRUE) for place in (1, 2, 3)]  # dynamic platform, cached keys, SMT
    value = der(
        SEQUENCE,
        sgx_member((1,), OCTET_STRING, ppid),
        sgx_member(
            (2,),
            SEQUENCE,
            *components,
            sgx_member((2, 17), INTEGER, bytes((PCE_SVN,))),
            sgx_member((2, 18), OCTET_STRING, SGX_COMPONENTS),
        ),
        sgx_member((3,), OCTET_STRING, PCE_ID),
        sgx_member((4,), OCTET_STRING, FMSPC),
        sgx_member((5,), ENUMERATED, b"\x01"),
        sgx_member((6,), OCTET_STRING, platform_instance_id),
        sgx_member((7,), SEQUENCE, *flags),
    )
    return x509.UnrecognizedExtension(SGX_EXTENSION, value)
