"""The certificates behind an SNP report: VCEK or VLEK, ASK or ASVK, ARK, and AMD's revocation list (tee-evidence 3.3).

On entry: the ARK is one that the caller trusts. On exit of `verify_chain`: both signatures are RSA-PSS with SHA-384 and
a salt of 48 bytes, names link, windows hold at `now`, CA bits, path lengths and key usages fit, no critical extension
is unknown, keys are RSA-4096 and P-384. Not checked here: which chip and firmware the key is for (`evidence.snp_vcek`).

Real VCEKs have the serial number 0, which RFC 5280 forbids: `cryptography` warns today and is to refuse them. They are
read here with a 1 in its place, and the issuer's signature is checked over the bytes as they came.
"""

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA384

from confide.evidence.result import quoted

MAX_CERTIFICATES_BYTES = 64 * 1024  # three of them are 5 KiB as DER
MAX_CRL_BYTES = 1024 * 1024
CA_KEY_BITS = 4096
SALT_BYTES = 48

# RSASSA-PSS with SHA-384, MGF1 with SHA-384 and 48 bytes of salt, in DER: AMD spells the default trailer out or not.
PSS_PARAMETERS = (
    "a00f300d06096086480165030402020500a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130"
)
PSS_ALGORITHMS = (
    bytes.fromhex("304106092a864886f70d01010a3034" + PSS_PARAMETERS),
    bytes.fromhex("304606092a864886f70d01010a3039" + PSS_PARAMETERS + "a303020101"),
)
BIT_STRING_512 = bytes.fromhex("0382020100")  # the head of a signature by a key of 4096 bits
FIRST_BYTES = 64  # of what is signed: in them the algorithm is named again

# A version 3 certificate of 256 to 65535 bytes, up to the first byte of its serial number.
HEAD = re.compile(rb"\x30\x82..\x30\x82..\xa0\x03\x02\x01\x02(\x02..)", re.DOTALL)
SERIAL = slice(13, 16)
SERIAL_ZERO, SERIAL_ONE = b"\x02\x01\x00", b"\x02\x01\x01"

PEM_BLOCK = re.compile(
    rb"-----BEGIN CERTIFICATE-----\r?\n((?:[A-Za-z0-9+/=]+\r?\n)+)-----END CERTIFICATE-----(?:\r?\n|\Z)"
)

# What `cryptography` raises on bytes that it cannot read; its warnings too, where a caller turns them into errors.
UNREADABLE = (
    ValueError,
    TypeError,
    UserWarning,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class SnpChainError(ValueError):
    """The certificates do not hold. The text is for people."""


@dataclass(frozen=True)
class Certificate:
    """A certificate that was read; nothing in it is proved. Windows in Unix seconds, inclusive.

    `signed`: the bytes under the issuer's signature, as they came. `extensions`: by dotted OID.
    """

    subject: x509.Name
    issuer: x509.Name
    serial: int
    not_before: int
    not_after: int
    key: CertificatePublicKeyTypes
    extensions: dict[str, x509.Extension[x509.ExtensionType]]
    signed: bytes
    signature: bytes

    @property
    def constraints(self) -> x509.BasicConstraints:
        """Whether it may issue others; without the extension it may not (RFC 5280 4.2.1.9)."""
        extension = self.extensions.get(x509.BasicConstraints.oid.dotted_string)
        constraints = extension.value if extension else None
        return constraints if isinstance(constraints, x509.BasicConstraints) else x509.BasicConstraints(False, None)

    @property
    def usage(self) -> x509.KeyUsage | None:
        """What the key may do; None where the certificate does not say."""
        extension = self.extensions.get(x509.KeyUsage.oid.dotted_string)
        return extension.value if extension and isinstance(extension.value, x509.KeyUsage) else None


@dataclass(frozen=True)
class Chain:
    """A verified chain. `leaf`: VCEK or VLEK, with its key. `intermediate`: ASK or ASVK. `root`: ARK, with its key."""

    leaf: Certificate
    leaf_key: EllipticCurvePublicKey
    intermediate: Certificate
    root: Certificate
    root_key: RSAPublicKey


# Reading.


def split_certificates(data: bytes) -> tuple[bytes, ...]:
    """The certificates in PEM text, or in DER one behind the other, each as DER. Raises SnpChainError."""
    if len(data) > MAX_CERTIFICATES_BYTES:
        raise SnpChainError(f"{len(data)} bytes of certificates, expected at most {MAX_CERTIFICATES_BYTES}")
    return split_pem(data.strip()) if b"-----BEGIN" in data[:64] else split_der(data)


def split_pem(text: bytes) -> tuple[bytes, ...]:
    """Each block between its lines, and nothing else."""
    certificates, offset = [], 0
    while match := PEM_BLOCK.match(text, offset):
        try:
            certificates.append(base64.b64decode(b"".join(match[1].split()), validate=True))
        except binascii.Error as error:
            raise SnpChainError(f"a certificate is not base64: {error}") from error
        offset = match.end()
    if offset != len(text):
        raise SnpChainError(f"the certificates are not plain PEM at byte {offset}")
    return tuple(certificates)


def split_der(data: bytes) -> tuple[bytes, ...]:
    """By the lengths that they state; whether each is a certificate shows when it is loaded."""
    certificates, offset = [], 0
    while offset < len(data):
        if data[offset : offset + 2] != b"\x30\x82":
            raise SnpChainError(f"there is no certificate in PEM or DER form at byte {offset}")
        stop = offset + 4 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        certificates.append(data[offset:stop])
        offset = stop
    return tuple(certificates)


def load_certificate(der: bytes) -> Certificate:
    """Read one certificate in DER form, one with the serial number 0 too. Raises SnpChainError."""
    head = HEAD.match(der)
    if head is None:
        raise SnpChainError("it is not a version 3 certificate in DER form of 256 to 65535 bytes")
    if head[1][2] >= 0x80:
        raise SnpChainError("its serial number is negative or far too long")
    is_zero = head[1] == SERIAL_ZERO
    try:
        parsed = x509.load_der_x509_certificate(
            der[: SERIAL.start] + SERIAL_ONE + der[SERIAL.stop :] if is_zero else der
        )
        signed = der[4 : 4 + len(parsed.tbs_certificate_bytes)]
        return Certificate(
            subject=parsed.subject,
            issuer=parsed.issuer,
            serial=0 if is_zero else parsed.serial_number,
            not_before=int(parsed.not_valid_before_utc.timestamp()),
            not_after=int(parsed.not_valid_after_utc.timestamp()),
            key=parsed.public_key(),
            extensions={extension.oid.dotted_string: extension for extension in parsed.extensions},
            signed=signed,
            signature=pss_signature(der, signed, parsed.signature),
        )
    except UNREADABLE as error:
        raise SnpChainError(f"it cannot be read: {quoted(error)}") from error


def pss_signature(der: bytes, signed: bytes, signature: bytes) -> bytes:
    """The signature, once it is of the one kind that AMD uses, and inside and outside name that kind alike."""
    for algorithm in PSS_ALGORITHMS:
        if algorithm in signed[: FIRST_BYTES + len(algorithm)] and der.endswith(
            signed + algorithm + BIT_STRING_512 + signature
        ):
            return signature
    raise SnpChainError("it is signed in another way, expected RSA-PSS with SHA-384, 48 bytes of salt and 4096 bits")


# Verifying, first fault first.


def verify_chain(leaf_der: bytes, intermediate_der: bytes, root_der: bytes, now: int) -> Chain:
    """Check the chain up to a root that the caller trusts (tee-evidence 3.3, step 3). Raises SnpChainError."""
    leaf, intermediate, root = loaded("VCEK", leaf_der), loaded("ASK", intermediate_der), loaded("ARK", root_der)
    for role, certificate in (("ARK", root), ("ASK", intermediate), ("VCEK", leaf)):
        require_window(role, certificate.not_before, certificate.not_after, now)
        require_known_extensions(role, certificate.extensions.values())
    root_key = issuing_key("ARK", root, issuers_below=1)
    intermediate_key = issuing_key("ASK", intermediate, issuers_below=0)
    leaf_key = signing_key(leaf)
    require_issued("ASK", intermediate.issuer, root)
    require_signed("ASK", intermediate.signed, intermediate.signature, root_key)
    require_issued("VCEK", leaf.issuer, intermediate)
    require_signed("VCEK", leaf.signed, leaf.signature, intermediate_key)
    return Chain(leaf, leaf_key, intermediate, root, root_key)


def verify_crl(crl_der: bytes, chain: Chain, now: int) -> int:
    """Check that the ARK's own list of this time names neither ASK nor ARK (tee-evidence 3.3, step 4).

    Gives the time of the next list in Unix seconds. Raises SnpChainError. A list that covers a part of the
    certificates, or tells only what changed, says so in a critical extension and is refused.
    """
    if len(crl_der) > MAX_CRL_BYTES:
        raise SnpChainError(f"a CRL of {len(crl_der)} bytes, expected at most {MAX_CRL_BYTES}")
    usage = chain.root.usage
    if usage is not None and not usage.crl_sign:
        raise SnpChainError("the ARK must not sign CRLs")
    try:
        crl = x509.load_der_x509_crl(crl_der)
        signed = crl.tbs_certlist_bytes
        signature = pss_signature(crl_der, signed, crl.signature)
        issuer, extensions, next_update = crl.issuer, crl.extensions, crl.next_update_utc
        revoked = [entry.serial_number for entry in crl]
    except UNREADABLE as error:
        raise SnpChainError(f"the CRL cannot be read: {quoted(error)}") from error
    if next_update is None:
        raise SnpChainError("the CRL does not say until when it holds")
    good_until = int(next_update.timestamp())
    require_window("CRL", int(crl.last_update_utc.timestamp()), good_until, now)
    require_known_extensions("CRL", extensions)
    require_issued("CRL", issuer, chain.root)
    require_signed("CRL", signed, signature, chain.root_key)
    for role, certificate in (("ASK", chain.intermediate), ("ARK", chain.root)):
        if certificate.serial in revoked:
            raise SnpChainError(f"the {role} with the serial number {certificate.serial} is revoked")
    return good_until


def loaded(role: str, der: bytes) -> Certificate:
    """As `load_certificate`; the error says which of the three it was."""
    try:
        return load_certificate(der)
    except SnpChainError as error:
        raise SnpChainError(f"{role}: {error}") from error


def require_window(role: str, not_before: int, not_after: int, now: int) -> None:
    """All in Unix seconds."""
    if not not_before <= now <= not_after:
        raise SnpChainError(f"the {role} holds from {not_before} to {not_after}, got {now} (Unix seconds)")


def require_known_extensions(role: str, extensions: Iterable[x509.Extension[x509.ExtensionType]]) -> None:
    """RFC 5280 4.2: what is critical must be understood, and these two are all that this module looks at."""
    for extension in extensions:
        if extension.critical and extension.oid not in (x509.BasicConstraints.oid, x509.KeyUsage.oid):
            raise SnpChainError(f"the {role} has the critical extension {extension.oid.dotted_string}, expected none")


def issuing_key(role: str, certificate: Certificate, *, issuers_below: int) -> RSAPublicKey:
    """The key of a CA that may have this many CAs below it."""
    constraints, usage, key = certificate.constraints, certificate.usage, certificate.key
    if not constraints.ca or (usage is not None and not usage.key_cert_sign):
        raise SnpChainError(f"the {role} must not issue certificates")
    if constraints.path_length is not None and constraints.path_length < issuers_below:
        raise SnpChainError(f"the {role} has path length {constraints.path_length}, expected at least {issuers_below}")
    if not isinstance(key, RSAPublicKey) or key.key_size != CA_KEY_BITS:
        raise SnpChainError(f"the {role} has no RSA key of {CA_KEY_BITS} bits")
    return key


def signing_key(leaf: Certificate) -> EllipticCurvePublicKey:
    """The key that signs reports, and nothing but reports."""
    usage, key = leaf.usage, leaf.key
    if leaf.constraints.ca:
        raise SnpChainError("the VCEK is a CA, expected a key that signs reports")
    if usage is not None and not usage.digital_signature:
        raise SnpChainError("the VCEK must not sign reports")
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise SnpChainError("the VCEK has no key on P-384")
    return key


def require_issued(role: str, named: x509.Name, issuer: Certificate) -> None:
    """Names link. Only the signature proves."""
    if named != issuer.subject:
        found, expected = quoted(named.rfc4514_string()), quoted(issuer.subject.rfc4514_string())
        raise SnpChainError(f"the {role} is issued by {found}, expected {expected}")


def require_signed(role: str, signed: bytes, signature: bytes, key: RSAPublicKey) -> None:
    try:
        key.verify(signature, signed, PSS(MGF1(SHA384()), SALT_BYTES), SHA384())
    except InvalidSignature as error:
        raise SnpChainError(f"the signature on the {role} is not its issuer's") from error
