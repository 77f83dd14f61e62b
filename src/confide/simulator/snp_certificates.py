"""Keys and certificates of the SIMULATED SNP platform, derived from one seed; every subject says it is not AMD's.

The same seed gives the same bytes in every process: that is what makes the root something that can be pinned. Neither
RSA keys nor PSS signatures come out of `cryptography` the same twice, so both are made here: keys of 4096 bits from
eight primes of 512, found in an eighth of a second and kept for the life of the process, and signatures whose salt
derives from what is signed. Certificates are put together by hand, for AMD's VCEKs have the serial number 0.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import sha384
from itertools import count
from math import gcd, prod

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from confide.simulator.certificates import (
    BOOLEAN,
    INTEGER,
    OCTET_STRING,
    OID,
    SEQUENCE,
    TRUE,
    VALID_FROM,
    VALID_UNTIL,
    der,
    derived,
    key_usage,
)

CRL_WINDOW = timedelta(days=30)

EXPONENT = 65537
PRIMES, PRIME_BYTES = 8, 64
KEY_BYTES = PRIMES * PRIME_BYTES
TOP_BITS = 0b1111 << 8 * PRIME_BYTES - 4  # in each prime, so that the product has 4096 bits
SMALL_PRODUCT = prod(odd for odd in range(3, 2000, 2) if all(odd % divisor for divisor in range(3, min(odd, 45), 2)))
WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19)

P384_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973

# RSASSA-PSS with SHA-384, MGF1 with SHA-384 and 48 bytes of salt.
PSS_SHA384 = bytes.fromhex(
    "304106092a864886f70d01010a3034a00f300d06096086480165030402020500a11c301a06092a864886f70d010108300d060960864801650304"
    "02020500a203020130"
)
HASH_BYTES = 48
BIT_STRING, IA5_STRING, UTC_TIME = 0x03, 0x16, 0x17
EXPLICIT_0, EXPLICIT_3 = 0xA0, 0xA3
NO_UNUSED_BITS = b"\x00"


# Keys.


def octets(seed: bytes, label: str, length: int) -> bytes:
    """This many derived bytes, apart from whatever else derives from the seed."""
    stream = derived(seed, f"SNP: {label}")
    return b"".join(next(stream) for _ in range(-(-length // 32)))[:length]


def is_prime(candidate: int) -> bool:
    """Miller and Rabin's test, after the small divisors."""
    if gcd(candidate, SMALL_PRODUCT) != 1:
        return False
    odd, twos = candidate - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for witness in WITNESSES:
        power = pow(witness, odd, candidate)
        if power not in (1, candidate - 1) and all(
            pow(power, 1 << step, candidate) != candidate - 1 for step in range(1, twos)
        ):
            return False
    return True


def derived_prime(seed: bytes, label: str) -> int:
    """The first prime from a derived number on that suits the exponent."""
    start = int.from_bytes(octets(seed, label, PRIME_BYTES), "big") | TOP_BITS | 1
    return next(candidate for candidate in count(start, 2) if gcd(candidate - 1, EXPONENT) == 1 and is_prime(candidate))


@dataclass(frozen=True)
class SimulatedRsaKey:
    """An RSA key of 4096 bits that signs deterministically."""

    seed: bytes
    label: str
    primes: tuple[int, ...]

    @property
    def modulus(self) -> int:
        return prod(self.primes)

    @property
    def public_key(self) -> RSAPublicKey:
        return RSAPublicNumbers(EXPONENT, self.modulus).public_key()

    def sign(self, message: bytes) -> bytes:
        """RSASSA-PSS with SHA-384 and a derived salt of 48 bytes (RFC 8017, 8.1.1 and 9.1.1)."""
        digest = sha384(message).digest()
        salt = octets(self.seed, f"salt of {self.label} for {digest.hex()}", HASH_BYTES)
        hashed = sha384(bytes(8) + digest + salt).digest()
        block = (b"\x01" + salt).rjust(KEY_BYTES - HASH_BYTES - 1, b"\x00")
        masked = int.from_bytes(block, "big") ^ int.from_bytes(mask(hashed, len(block)), "big")
        masked &= (1 << 8 * len(block) - 1) - 1
        encoded = int.from_bytes(masked.to_bytes(len(block), "big") + hashed + b"\xbc", "big")
        return self.root_of(encoded).to_bytes(KEY_BYTES, "big")

    def root_of(self, number: int) -> int:
        """The `EXPONENT`th root modulo the key, put together from the roots modulo its primes."""
        modulus, root = self.modulus, 0
        for prime in self.primes:
            others = modulus // prime
            part = pow(number % prime, pow(EXPONENT, -1, prime - 1), prime)
            root += part * others * pow(others, -1, prime)
        return root % modulus


def mask(seed: bytes, length: int) -> bytes:
    """MGF1 with SHA-384 (RFC 8017, B.2.1)."""
    blocks = (sha384(seed + number.to_bytes(4, "big")).digest() for number in range(-(-length // HASH_BYTES)))
    return b"".join(blocks)[:length]


@lru_cache(maxsize=16)
def rsa_key(seed: bytes, label: str) -> SimulatedRsaKey:
    """The key of this label. The first call with it costs an eighth of a second."""
    return SimulatedRsaKey(
        seed, label, tuple(derived_prime(seed, f"prime {number} of {label}") for number in range(PRIMES))
    )


def p384_key(seed: bytes, label: str) -> ec.EllipticCurvePrivateKey:
    """The P-384 key of this label."""
    scalar = int.from_bytes(octets(seed, f"key of {label}", HASH_BYTES + 16), "big") % (P384_ORDER - 1) + 1
    return ec.derive_private_key(scalar, ec.SECP384R1())


# Certificates.


@dataclass(frozen=True)
class SimulatedAuthority:
    """A CA: its name, its key, and its certificate in DER form."""

    name: x509.Name
    key: SimulatedRsaKey
    serial: int
    der: bytes


def name(common_name: str) -> x509.Name:
    """A subject that nobody can take for AMD's."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Simulated TEE (not AMD)"),
        ]
    )


def integer(number: int) -> bytes:
    """INTEGER, not negative."""
    return der(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def utc_time(moment: datetime) -> bytes:
    return der(UTC_TIME, moment.strftime("%y%m%d%H%M%SZ").encode())


def extension(kind: x509.ObjectIdentifier, value: bytes, *, is_critical: bool = False) -> bytes:
    arcs = [int(arc) for arc in kind.dotted_string.split(".")]
    encoded = bytes((arcs[0] * 40 + arcs[1],)) + b"".join(base128(arc) for arc in arcs[2:])
    flag = der(BOOLEAN, TRUE) if is_critical else b""
    return der(SEQUENCE, der(OID, encoded), flag, der(OCTET_STRING, value))


def base128(arc: int) -> bytes:
    """One arc of an OID: seven bits a byte, the high bit set on all but the last."""
    digits = [arc & 0x7F]
    while arc := arc >> 7:
        digits.insert(0, arc & 0x7F | 0x80)
    return bytes(digits)


def sealed(signed: bytes, issuer: SimulatedRsaKey) -> bytes:
    """What is signed, the algorithm, the signature."""
    return der(SEQUENCE, signed, PSS_SHA384, der(BIT_STRING, NO_UNUSED_BITS, issuer.sign(signed)))


def certificate(
    *,
    serial: int,
    subject: x509.Name,
    public_key: RSAPublicKey | ec.EllipticCurvePublicKey,
    issuer_name: x509.Name,
    issuer: SimulatedRsaKey,
    extensions: tuple[bytes, ...],
    valid_until: datetime = VALID_UNTIL,
) -> bytes:
    """A version 3 certificate in DER form, the same bytes for the same arguments."""
    signed = der(
        SEQUENCE,
        der(EXPLICIT_0, integer(2)),
        integer(serial),
        PSS_SHA384,
        issuer_name.public_bytes(),
        der(SEQUENCE, utc_time(VALID_FROM), utc_time(valid_until)),
        subject.public_bytes(),
        public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        der(EXPLICIT_3, der(SEQUENCE, *extensions)),
    )
    return sealed(signed, issuer)


def authority(seed: bytes, common_name: str, issuer: SimulatedAuthority | None) -> SimulatedAuthority:
    """A CA of this name with a key of its own; the ARK without `issuer`, an ASK or ASVK with it."""
    key, subject = rsa_key(seed, common_name), name(common_name)
    serial = derived_serial(seed, common_name)
    constraints = x509.BasicConstraints(ca=True, path_length=0 if issuer else 1)
    encoded = certificate(
        serial=serial,
        subject=subject,
        public_key=key.public_key,
        issuer_name=issuer.name if issuer else subject,
        issuer=issuer.key if issuer else key,
        extensions=(
            extension(x509.BasicConstraints.oid, constraints.public_bytes(), is_critical=True),
            extension(x509.KeyUsage.oid, key_usage(is_ca=True).public_bytes(), is_critical=True),
        ),
    )
    return SimulatedAuthority(subject, key, serial, encoded)


def derived_serial(seed: bytes, label: str) -> int:
    return int.from_bytes(octets(seed, f"serial of {label}", 16), "big") >> 1 or 1


def revocation_list(issuer: SimulatedAuthority, moment: datetime, revoked: tuple[int, ...] = ()) -> bytes:
    """The issuer's CRL in DER form, good from `moment` for 30 days. `revoked`: serial numbers."""
    entries = [der(SEQUENCE, integer(serial), utc_time(moment)) for serial in revoked]
    signed = der(
        SEQUENCE,
        integer(1),
        PSS_SHA384,
        issuer.name.public_bytes(),
        utc_time(moment),
        utc_time(moment + CRL_WINDOW),
        der(SEQUENCE, *entries) if entries else b"",
        der(EXPLICIT_0, der(SEQUENCE, extension(x509.CRLNumber.oid, integer(1)))),
    )
    return sealed(signed, issuer.key)
