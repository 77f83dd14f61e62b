"""The SIMULATED key management service of dstack: releases secrets to whoever asks, and protects none of them.

The formulas are dstack's (tee-evidence 3.6): a secp256k1 root signs the key of each app, which signs what the app asks
for. The P-256 CA of a KMS, which the key-provider event names, is another key; the platform has it
(`SimulatedTdxPlatform`). Everything derives from one seed, so that the root can be pinned.
"""

from dataclasses import dataclass
from functools import cached_property

from coincurve import PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from confide.protocol.signature import SECP256K1_ORDER, keccak256
from confide.simulator.certificates import derived

SALT = b"RATLS"
SECP256K1_NAMES = ("", "secp256k1", "k256")
ED25519_NAME = "ed25519"


def hkdf(secret: bytes, info: bytes) -> bytes:
    """32 bytes, as dstack derives them."""
    return HKDF(SHA256(), 32, salt=SALT, info=info).derive(secret)


def signed(key: PrivateKey, message: bytes) -> bytes:
    """r, s and a recovery byte 0 to 3: 65 bytes over keccak256(message)."""
    signature: bytes = key.sign_recoverable(keccak256(message), hasher=None)
    return signature


def compressed(key: PrivateKey) -> bytes:
    """The public key, 33 bytes."""
    public: bytes = key.public_key.format(compressed=True)
    return public


@dataclass(frozen=True)
class AppKeys:
    """What the KMS gave the guest agent of one app."""

    key: PrivateKey
    issued: bytes  # the root's signature over the app's key

    def release(self, path: str, purpose: str, algorithm: str = "secp256k1") -> dict[str, object]:
        """The members of `GetKey`. The secret of a path is the same for every algorithm; the chain names its public key
        under the one asked for. Raises ValueError for an algorithm that dstack does not know.
        """
        secret = hkdf(self.key.secret, path.encode())
        if algorithm in SECP256K1_NAMES:
            public = compressed(PrivateKey(secret))
        elif algorithm == ED25519_NAME:
            public = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
        else:
            raise ValueError(f"unsupported algorithm: {algorithm}")
        over_key = signed(self.key, f"{purpose}:{public.hex()}".encode())
        return {"key": secret.hex(), "signature_chain": [over_key.hex(), self.issued.hex()]}


class SimulatedKms:
    """A KMS whose root follows from a seed."""

    def __init__(self, seed: bytes) -> None:
        """`seed`: 32 bytes, may be the platform's: the labels differ. Raises ValueError."""
        if len(seed) != 32:
            raise ValueError(f"the seed has {len(seed)} bytes, expected 32")
        scalars = (block for block in derived(seed, "KMS root"))
        self._root = PrivateKey(next(each for each in scalars if 0 < int.from_bytes(each, "big") < SECP256K1_ORDER))

    @cached_property
    def root_public_key(self) -> str:
        """The compressed root, 66 lower-case hex digits: what a caller pins."""
        return compressed(self._root).hex()

    def app_keys(self, app_id: bytes) -> AppKeys:
        """The keys of the app with this id of 20 bytes."""
        key = PrivateKey(hkdf(self._root.secret, app_id + b"app-key"))
        return AppKeys(key, signed(self._root, b"dstack-kms-issued:" + app_id + compressed(key)))
