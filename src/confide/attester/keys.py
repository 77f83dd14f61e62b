"""The service's private keys. No other file keeps one, and none leaves this one: what gives them, a seed or an agent,
hands them over here at the start.

Why records are sealed: signatures are made on demand from the stored text, and the disk lies outside the trust
boundary. Whoever can write the disk could plant a record of an exchange that never was and have it signed. So each
record is sealed with a key of this instance when the exchange ends, and a record whose seal does not hold is never
signed.
"""

import datetime
import hmac
import ipaddress
import os
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import NoReturn, Self

from coincurve import PrivateKey
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from confide.errors import ConfigError
from confide.protocol.pins import spki_sha256
from confide.protocol.signature import SECP256K1_ORDER, V_OFFSET, Algo, eip191_digest, ethereum_address

SEED_BYTES = 32
CHAIN_REMEDY = "Have a certificate issued for the request that `confide tls csr` prints, and name that chain."
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class ReleasedSecret:
    """32 bytes that a key management service released to this guest for one purpose (wire contract 7.3).

    They go into `LegacyKeys.released` or `WorkloadKeys.released`. What may be shown of them is the compressed secp256k1
    key of the same scalar, 66 hex digits, which is what the service's signatures name.
    """

    __slots__ = ("_secret", "kms_public_key_hex")

    def __init__(self, secret: bytes) -> None:
        """Raises ValueError on another length, and for a number that is no scalar of secp256k1."""
        if len(secret) != SEED_BYTES:
            raise ValueError(f"a secret of {SEED_BYTES} bytes expected, got {len(secret)}")
        self._secret = secret
        self.kms_public_key_hex: str = PrivateKey(secret).public_key.format(compressed=True).hex()

    def __repr__(self) -> str:
        return f"<ReleasedSecret {self.kms_public_key_hex}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("ReleasedSecret cannot be copied or pickled: private keys stay in the object that holds them")


class LegacyKeys:
    """The two keys that sign legacy texts, and the key that seals stored records (wire contract 5.6)."""

    __slots__ = ("_ecdsa", "_ed25519", "_ed25519_public", "_ethereum_address", "_seal", "_xy")

    def __init__(self, ecdsa: PrivateKey, ed25519: Ed25519PrivateKey, seal_key: bytes) -> None:
        self._ecdsa = ecdsa
        self._ed25519 = ed25519
        self._seal = hmac.new(seal_key, digestmod=sha256)
        self._xy: bytes = ecdsa.public_key.format(compressed=False)[1:]
        self._ethereum_address = ethereum_address(self._xy)
        self._ed25519_public = ed25519.public_key().public_bytes_raw()

    @classmethod
    def derive(cls, seed: bytes) -> Self:
        """The same keys from the same 32-byte seed, on every start. Raises ValueError on another length."""
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed of {SEED_BYTES} bytes expected, got {len(seed)}")
        # 48 bytes and a reduction: in range for every seed, with a bias below 2^-128 (FIPS 186-5, A.2.1).
        scalar = int.from_bytes(expand(seed, b"legacy secp256k1", 48), "big") % (SECP256K1_ORDER - 1) + 1
        return cls(
            PrivateKey(scalar.to_bytes(32, "big")),
            Ed25519PrivateKey.from_private_bytes(expand(seed, b"legacy ed25519", 32)),
            expand(seed, b"record seal", 32),
        )

    @classmethod
    def released(cls, *, ecdsa: ReleasedSecret, ed25519: ReleasedSecret, seal: ReleasedSecret) -> Self:
        """The keys that these secrets are, one secret for each; the seal's is derived from its own."""
        return cls(
            PrivateKey(ecdsa._secret),
            Ed25519PrivateKey.from_private_bytes(ed25519._secret),
            expand(seal._secret, b"record seal", 32),
        )

    def sign(self, text: str, algo: Algo) -> str:
        """Sign a text that this instance is known to have earned: see the rule on seals above.

        ECDSA: `0x` and 130 hex digits r, s, v with low s (wire contract 5.4). Ed25519: 128 hex digits (5.5).
        """
        if algo is Algo.ED25519:
            return self._ed25519.sign(text.encode()).hex()
        signature = self._ecdsa.sign_recoverable(eip191_digest(text), hasher=None)  # libsecp256k1 gives low s
        return f"0x{signature[:64].hex()}{V_OFFSET + signature[64]:02x}"

    def address(self, algo: Algo) -> str:
        """`signing_address`: `0x` and 40 hex digits, or the Ed25519 key as 64 hex digits; lower case."""
        return self._ethereum_address if algo is Algo.ECDSA else self._ed25519_public.hex()

    def identity(self, algo: Algo) -> bytes:
        """The same as bytes, as report data binds it: 20 or 32 bytes (wire contract 6.3)."""
        return bytes.fromhex(self._ethereum_address[2:]) if algo is Algo.ECDSA else self._ed25519_public

    def public_key_hex(self, algo: Algo) -> str:
        """`signing_public_key`, without `0x`: 64 bytes X and Y, or 32 bytes (wire contract 6.1)."""
        return self._xy.hex() if algo is Algo.ECDSA else self._ed25519_public.hex()

    def seal_record(self, record: bytes) -> bytes:
        """HMAC-SHA256 over the record's bytes: 32 bytes that only this instance can make."""
        seal = self._seal.copy()  # keyed once; hmac.digest would give up the interpreter lock at each call
        seal.update(record)
        return seal.digest()

    def check_seal(self, record: bytes, seal: bytes) -> bool:
        """Whether this instance sealed exactly these bytes; constant time. On False, never sign what they say."""
        return hmac.compare_digest(self.seal_record(record), seal)

    def __repr__(self) -> str:
        return f"<LegacyKeys {self._ethereum_address}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("LegacyKeys cannot be copied or pickled: private keys stay in the object that holds them")


def expand(seed: bytes, label: bytes, length: int) -> bytes:
    """HKDF-SHA256 (RFC 5869) without salt; one label for one purpose."""
    return HKDF(SHA256(), length, salt=None, info=b"confide/v1/" + label).derive(seed)


class DrawnSeed:
    """32 bytes drawn at a start, where no platform gives keys. Processes that are forked after that have the same."""

    __slots__ = ("_seed",)

    def __init__(self) -> None:
        self._seed = os.urandom(SEED_BYTES)

    def legacy(self) -> LegacyKeys:
        """The keys of the legacy signatures and of the seals."""
        return LegacyKeys.derive(self._seed)

    def workload(self) -> "WorkloadKeys":
        """The keys of the keyset."""
        return WorkloadKeys.derive(self._seed)

    def __repr__(self) -> str:
        return "<DrawnSeed>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("DrawnSeed cannot be copied or pickled: private keys stay in the object that holds them")


class ReceiptSigner:
    """The key that signs the receipts of one epoch (wire contract 7.1, 7.6)."""

    __slots__ = ("_key", "key_id", "public_key_hex")

    def __init__(self, key_id: str, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.key_id = key_id
        self.public_key_hex = key.public_key().public_bytes_raw().hex()

    def sign(self, data: bytes) -> bytes:
        """An Ed25519 signature (RFC 8032), 64 bytes."""
        return self._key.sign(data)

    def __repr__(self) -> str:
        return f"<ReceiptSigner {self.key_id} {self.public_key_hex}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("ReceiptSigner cannot be copied or pickled: private keys stay in the object that holds them")


class TlsKey:
    """The key that TLS is served with where it means something: P-256, the same through all epochs."""

    __slots__ = ("_key", "spki_sha256")

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.spki_sha256 = spki_sha256(key.public_key())

    def self_signed(self, names: Sequence[str], now: int) -> bytes:
        """A certificate (PEM) for these host names and addresses, signed by the key itself: whoever pins the key needs
        no authority. Good from a day before `now` (Unix seconds), for clocks behind ours, for ten years.
        """
        begins = datetime.datetime.fromtimestamp(now, datetime.UTC) - datetime.timedelta(days=1)
        subject = common_name(names[0] if names else "confide")
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + datetime.timedelta(days=3650))
            # An authority for itself alone, so that a client can also be given this certificate as the one to trust.
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        )
        if names:
            builder = builder.add_extension(alternative_names(names), critical=False)
        return builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM)

    def request(self, names: Sequence[str]) -> bytes:
        """A certificate signing request (PEM) for these names, first one as the common name."""
        builder = x509.CertificateSigningRequestBuilder().subject_name(common_name(names[0]))
        builder = builder.add_extension(alternative_names(names), critical=False)
        return builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM)

    def load_into(self, context: ssl.SSLContext, *, chain_pem: bytes) -> None:
        """Serve with this key and this chain, leaf first. Raises ConfigError when the leaf is another key's.

        The key passes through a file without a name: the standard library loads keys from files alone.
        """
        require_leaf(chain_pem, self.spki_sha256)
        key = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with nameless_file(chain_pem + key) as path:
            try:
                context.load_cert_chain(path)
            except ssl.SSLError as error:
                reason = (error.reason or "not PEM").replace("_", " ").lower()
                raise ConfigError(f"[server] tls_cert: cannot be used: {reason}", remedy=CHAIN_REMEDY) from error

    def __repr__(self) -> str:
        return f"<TlsKey {self.spki_sha256.hex()}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("TlsKey cannot be copied or pickled: private keys stay in the object that holds them")


class WorkloadKeys:
    """The keys of the keyset, by role. From one 32-byte seed each role has labels of its own, so no key has two; from
    released secrets each has a secret of its own.
    """

    __slots__ = ("_receipt_seed", "tls")

    def __init__(self, receipt_seed: bytes, tls: TlsKey) -> None:
        self._receipt_seed = receipt_seed
        self.tls = tls

    @classmethod
    def derive(cls, seed: bytes) -> Self:
        """The same keys from the same seed, on every start. Raises ValueError on another length."""
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed of {SEED_BYTES} bytes expected, got {len(seed)}")
        return cls(seed, tls_key(seed))

    @classmethod
    def released(cls, *, receipt: ReleasedSecret, tls: ReleasedSecret) -> Self:
        """The keys that follow from these secrets, one secret for each role (ADR 9)."""
        return cls(receipt._secret, tls_key(tls._secret))

    def receipt(self, epoch: int) -> ReceiptSigner:
        """The key that signs receipts in this epoch; `key_id` is `receipt-` and its number."""
        key = Ed25519PrivateKey.from_private_bytes(expand(self._receipt_seed, b"receipt ed25519/%d" % epoch, 32))
        return ReceiptSigner(f"receipt-{epoch}", key)

    @property
    def public_identity(self) -> str:
        """What tells these keys from others: the public key of epoch 0 and the TLS key's digest, hex."""
        return f"{self.receipt(0).public_key_hex}.{self.tls.spki_sha256.hex()}"

    def __repr__(self) -> str:
        return f"<WorkloadKeys {self.tls}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("WorkloadKeys cannot be copied or pickled: private keys stay in the object that holds them")


def tls_key(seed: bytes) -> TlsKey:
    """The P-256 key of this seed: 48 bytes and a reduction, as for the other curve above."""
    scalar = int.from_bytes(expand(seed, b"tls p-256", 48), "big") % (P256_ORDER - 1) + 1
    return TlsKey(ec.derive_private_key(scalar, ec.SECP256R1()))


def common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def alternative_names(names: Sequence[str]) -> x509.SubjectAlternativeName:
    """Addresses as addresses, the rest as DNS names."""
    return x509.SubjectAlternativeName([alternative_name(name) for name in names])


def alternative_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def require_leaf(chain_pem: bytes, expected_spki_sha256: bytes) -> None:
    """Raise ConfigError unless the first certificate of the chain is for the key with this digest."""
    try:
        leaf = x509.load_pem_x509_certificates(chain_pem)[0]
    except ValueError as error:
        raise ConfigError("[server] tls_cert: no PEM certificates", remedy=CHAIN_REMEDY) from error
    found = spki_sha256(leaf.public_key())
    if found != expected_spki_sha256:
        raise ConfigError(
            f"[server] tls_cert: got a certificate for the key {found.hex()}, expected one for the "
            f"attested key {expected_spki_sha256.hex()}",
            remedy=CHAIN_REMEDY,
        )


@contextmanager
def nameless_file(content: bytes) -> Iterator[str]:
    """A path that reads `content` while the block runs: memory where the system has that, else a file of mode 0600."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("confide-tls", os.MFD_CLOEXEC)
        with open(descriptor, "wb", buffering=0) as file:
            file.write(content)
            yield f"/proc/self/fd/{descriptor}"
        return
    with tempfile.NamedTemporaryFile(prefix="confide-tls-") as named:
        named.write(content)
        named.flush()
        yield named.name
