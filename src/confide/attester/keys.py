"""The service's private keys. No other file holds one, and none leaves this one.

Why records are sealed: signatures are made on demand from the stored text, and the disk lies outside the trust
boundary. Whoever can write the disk could plant a record of an exchange that never was and have it signed. So each
record is sealed with a key of this instance when the exchange ends, and a record whose seal does not hold is never
signed.
"""

import hmac
import os
import secrets
import stat
from hashlib import sha256
from pathlib import Path
from typing import NoReturn, Self

from coincurve import PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from confide.errors import ConfigError
from confide.protocol.signature import SECP256K1_ORDER, V_OFFSET, Algo, eip191_digest, ethereum_address

SEED_BYTES = 32


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


def load_seed(directory: Path) -> bytes:
    """The 32-byte seed of the SIMULATED TEE in `directory` (`<home>/simulator`), made on first use.

    The directory is 0700 and the file 0600. Processes that start together agree: one makes the seed, all read it.
    Raises ConfigError on a wrong length, loose permissions or a failing disk.
    """
    path = directory / "seed"
    try:
        make_private(directory)
        if not path.exists():
            create_seed(path)
        return read_seed(path)
    except OSError as error:
        raise ConfigError(
            f"the seed of the simulated TEE {path} cannot be used: {error.strerror}",
            remedy="Set CONFIDE_HOME to a directory on a local disk that this user may write.",
        ) from error


def make_private(directory: Path) -> None:
    """Create the directory as 0700, or require that it is no looser. Raises ConfigError or OSError."""
    if not directory.exists():
        directory.mkdir(mode=0o700, exist_ok=True)
        fsync_directory(directory.parent)
    refuse_loose(directory, directory.stat().st_mode, "700")


def create_seed(path: Path) -> None:
    """Put a whole seed at `path`, or leave the one that another process put there first."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SEED_BYTES))
            file.flush()
            os.fsync(descriptor)
        # A link appears whole or not at all, and unlike a rename it never replaces the seed of a faster process.
        os.link(draft, path)
    except FileExistsError:
        pass  # the other process won; its seed is read
    finally:
        draft.unlink()
    fsync_directory(path.parent)


def read_seed(path: Path) -> bytes:
    """The seed, from a file that nobody else can read. Raises ConfigError or OSError."""
    with path.open("rb") as file:
        refuse_loose(path, os.fstat(file.fileno()).st_mode, "600")
        seed = file.read(SEED_BYTES + 1)
    if len(seed) != SEED_BYTES:
        size = "more than 32" if len(seed) > SEED_BYTES else len(seed)
        raise ConfigError(
            f"the seed of the simulated TEE {path} has a wrong length: got {size} bytes, expected {SEED_BYTES}",
            remedy=f"Restore {path}, or delete it: the next start makes new keys and a new root.",
        )
    return seed


def refuse_loose(path: Path, mode: int, allowed: str) -> None:
    """ConfigError when anyone but the owner has a permission on `path`. `allowed`: the octal mode to set."""
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(
            f"{path} holds secrets and is open to others: got mode {stat.S_IMODE(mode):o}, expected {allowed}",
            remedy=f"If nobody else has read it, run: chmod {allowed} {path}",
        )


def fsync_directory(directory: Path) -> None:
    """Make the names in the directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
