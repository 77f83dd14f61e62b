"""The certificates of an NVIDIA device, from the key that signs its reports to a root that the caller trusts.

On exit: every certificate was issued by the next, is valid at `now` and uses P-384 with SHA-384; all but the first
belong to authorities; the last one is the caller's root. Not checked: revocation (OCSP), which only NVIDIA's remote
service does (tee-evidence 3.4). `verify_directly_issued_by` looks at names and signature alone; the rest is ours.
"""

import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from confide.evidence.policy import Anchors, Root
from confide.evidence.quote import QuoteError, read_chain
from confide.evidence.result import quoted

MAX_CHAIN_BYTES = 32 * 1024  # of PEM; those seen have 4.8 kB
MIN_CERTIFICATES, MAX_CERTIFICATES = 3, 8  # leaf, what issued it, root; those seen have five

FWID_BYTES = 48  # SHA-384
FWID_EXTENSION = x509.ObjectIdentifier("2.23.133.5.4.1")
# How that extension ends, before the bytes themselves: SEQUENCE { OID of SHA-384, OCTET STRING }.
FWID_HEAD = bytes.fromhex("303d 0609 608648016503040202 0430")

UNDERSTOOD = (x509.BasicConstraints.oid, x509.KeyUsage.oid)  # critical extensions that we act upon

# What cryptography raises over a certificate that is broken in one way or another. It warns of what it merely puts up
# with, such as a negative serial number or a country of three letters; here that is no certificate either.
BROKEN = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    UserWarning,
)


E = TypeVar("E", bound=x509.ExtensionType)


# What warnings do is said for the whole process: two threads at once would leave it changed for good.
WARNINGS_HELD = threading.Lock()


class ChainError(ValueError):
    """The chain proves nothing. The text is for people."""


@dataclass(frozen=True, kw_only=True)
class DeviceChain:
    """A verified chain. `key` signs the device's reports; `model` is what the leaf calls it ("GH100 A01 GSP FMC LF").

    `device_key`: DER of the key that issued the leaf, burnt into the device, so that it tells devices apart. `ueid`:
    the leaf's serial number, decimal. `fwid`: 48 bytes, the firmware that the leaf was issued to; None if not named.
    """

    root: Root
    key: ec.EllipticCurvePublicKey
    device_key: bytes
    model: str
    ueid: str
    fwid: bytes | None


def verify_chain(pem: bytes, *, anchors: Anchors, now: int) -> DeviceChain:
    """The chain in a PEM text, leaf first. Raises ChainError. `now`: Unix seconds."""
    ders = read_pem(pem)
    root = anchors.matching(ders[-1], "nvidia")
    try:
        with WARNINGS_HELD, warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            path = load(ders if root is None or root.der is None else (*ders[:-1], root.der))
            return verified(path, root, now)
    except ChainError:
        raise
    except BROKEN as error:
        raise ChainError(f"a certificate cannot be used: {quoted(error)} ({type(error).__name__})") from error


def verified(path: tuple[x509.Certificate, ...], root: Root | None, now: int) -> DeviceChain:
    """What a path says, once nothing is wrong with it. Raises ChainError."""
    if root is None:
        raise ChainError(untrusted(path[-1]))
    for fault in faults(path, now):
        raise ChainError(fault)
    return DeviceChain(
        root=root,
        key=p384(path[0]),
        device_key=p384(path[1]).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        model=common_name(path[0]),
        ueid=str(path[0].serial_number),
        fwid=named_fwid(path[0]),
    )


def read_pem(pem: bytes) -> tuple[bytes, ...]:
    """The certificates as DER, bounded in size and number."""
    if len(pem) > MAX_CHAIN_BYTES:
        raise ChainError(f"{len(pem)} bytes of certificates, expected at most {MAX_CHAIN_BYTES}")
    try:
        ders = read_chain(pem)
    except QuoteError as error:
        raise ChainError(str(error)) from error
    if not MIN_CERTIFICATES <= len(ders) <= MAX_CERTIFICATES:
        raise ChainError(
            f"the chain has {len(ders)} certificates, expected {MIN_CERTIFICATES} to {MAX_CERTIFICATES}: device to root"
        )
    return ders


def load(ders: tuple[bytes, ...]) -> tuple[x509.Certificate, ...]:
    """The certificates, opened. Raises ChainError where the count of unused bits before a signature is not zero: the
    library does not look at it, and nothing signs it.
    """
    path = tuple(x509.load_der_x509_certificate(der) for der in ders)
    for place, (der, certificate) in enumerate(zip(ders, path, strict=True)):
        if not der.endswith(b"\x00" + certificate.signature):
            raise ChainError(f"certificate {place} is not in canonical form")
    return path


def untrusted(root: x509.Certificate) -> str:
    digest = sha256(root.public_bytes(Encoding.DER)).hexdigest()
    found = f"the root {digest} ({quoted(root.subject.rfc4514_string())}) is not trusted"
    return f"{found}; pin it only if it is the root of a simulator that you know"


def faults(path: tuple[x509.Certificate, ...], now: int) -> Iterator[str]:
    """What is wrong with the path, leaf first, in words."""
    for place, certificate in enumerate(path):
        who = f"certificate {place} ({common_name(certificate)})"
        if not certificate.not_valid_before_utc.timestamp() <= now <= certificate.not_valid_after_utc.timestamp():
            window = f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
            yield f"{who} is valid from {window}, and the time is {now} in Unix seconds"
        p384(certificate)
        if not isinstance(certificate.signature_hash_algorithm, SHA384):
            yield f"{who} is not signed with SHA-384"
        yield from (f"{who} {fault}" for fault in role_faults(certificate, place))
    for place, (certificate, issuer) in enumerate(pairwise(path)):
        if not is_issued_by(certificate, issuer):
            yield f"certificate {place} ({common_name(certificate)}) was not issued by certificate {place + 1}"


def role_faults(certificate: x509.Certificate, place: int) -> Iterator[str]:
    """Why a certificate may not stand at its place: 0 signs reports, the others issue (RFC 5280, 6.1.4)."""
    extensions = certificate.extensions
    unknown = [each.oid.dotted_string for each in extensions if each.critical and each.oid not in UNDERSTOOD]
    if unknown:
        yield f"has the critical extension {unknown[0]}, which is not known"
    constraints = extension(extensions, x509.BasicConstraints)
    usage = extension(extensions, x509.KeyUsage)
    is_authority = constraints is not None and constraints.ca
    if place == 0:
        if is_authority:
            yield "is an authority's, and no device"
        if usage is not None and not usage.digital_signature:
            yield "may not sign"
        return
    if not is_authority or (usage is not None and not usage.key_cert_sign):
        yield "is no authority's, and issued another"
    if constraints is not None and constraints.path_length is not None and constraints.path_length < place - 1:
        yield f"allows a path of {constraints.path_length} authorities below it, and there are {place - 1}"


def extension(extensions: x509.Extensions, kind: type[E]) -> E | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def p384(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The certificate's key. Raises ChainError for another kind of key."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ChainError(f"the key of {common_name(certificate)} is not on P-384")
    return key


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the names fit and the signature verifies."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except InvalidSignature:
        return False
    return True


def common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return quoted(names[0].value) if names else "without a name"


def named_fwid(leaf: x509.Certificate) -> bytes | None:
    """The firmware identity at the end of the leaf's extension."""
    value = next((each.value for each in leaf.extensions if each.oid == FWID_EXTENSION), None)
    if not isinstance(value, x509.UnrecognizedExtension):
        return None
    head, fwid = value.value[:-FWID_BYTES], value.value[-FWID_BYTES:]
    return fwid if head.endswith(FWID_HEAD) else None
