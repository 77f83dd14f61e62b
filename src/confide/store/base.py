"""What a store keeps, and what the gateway may ask of one.

A proof holds hashes and times, never a prompt, an answer or a token (wire contract 7.7).
"""

from typing import Protocol

import msgspec

SEALED_VERSION = 1
DIGEST_BYTES = 32
INTEGER_BYTES = 8
MAX_INTEGER = 2 ** (8 * INTEGER_BYTES - 1) - 1  # what a database integer holds


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of one answer, so that its signature can be fetched later (wire contract 5.6).

    Digests are SHA-256, 32 bytes; times are Unix seconds. `credential_sha256` is the digest of the bearer token, or
    None when the request came without one. `seal` is a 32-byte MAC over `sealed_bytes()`: the disk belongs to the
    host, so a row counts only when its seal holds. Raises ValueError for a member that could not be stored as it is.
    """

    chat_id: str
    model: str
    request_sha256: bytes
    response_sha256: bytes
    outcome: str
    credential_sha256: bytes | None
    created_at: int
    expires_at: int
    seal: bytes

    def __post_init__(self) -> None:
        digests = (self.request_sha256, self.response_sha256, self.seal, self.credential_sha256)
        if any(len(digest) != DIGEST_BYTES for digest in digests if digest is not None):
            raise ValueError(f"a proof's digests and seal are {DIGEST_BYTES} bytes each")
        if not (0 <= self.created_at <= MAX_INTEGER and 0 <= self.expires_at <= MAX_INTEGER):
            raise ValueError("a proof's times are Unix seconds, from 0 to 2**63 - 1")
        # Half of a surrogate pair is refused here: later it would fail the commits of others in the same batch.
        f"{self.chat_id}{self.model}{self.outcome}".encode()

    def sealed_bytes(self) -> bytes:
        """Everything but the seal, in one way only: no two proofs that differ elsewhere share these bytes.

        A version byte, then each member in order: texts (UTF-8) and digests after their length in 4 bytes, times as 8
        bytes, numbers big endian. The credential is preceded by one byte: 1, or 0 and nothing more when there is none.
        """
        credential = self.credential_sha256
        return b"".join(
            (
                bytes((SEALED_VERSION,)),
                prefixed(self.chat_id.encode()),
                prefixed(self.model.encode()),
                prefixed(self.request_sha256),
                prefixed(self.response_sha256),
                prefixed(self.outcome.encode()),
                b"\x00" if credential is None else b"\x01" + prefixed(credential),
                self.created_at.to_bytes(INTEGER_BYTES, "big"),
                self.expires_at.to_bytes(INTEGER_BYTES, "big"),
            )
        )


def prefixed(value: bytes) -> bytes:
    """`value` after its length in 4 bytes, big endian."""
    return len(value).to_bytes(4, "big") + value


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One API key: the SHA-256 of its token (32 bytes), never the token. Times are Unix seconds."""

    id: str
    name: str
    sha256: bytes
    created_at: int
    last_used_at: int | None
    revoked_at: int | None


class Keys(msgspec.Struct, frozen=True):
    """All keys ever created, the revoked ones too, and the number that grows with every change to them."""

    version: int
    records: tuple[KeyRecord, ...]


class Store(Protocol):
    """What the gateway needs of a store. Every awaited method raises NotReady (503) while the store cannot work."""

    async def commit(self, proof: Proof) -> None:
        """Return once the proof is durable: the database has committed it. On NotReady nothing was kept.

        Cancelling gives up the wait, not the write.
        """

    async def proof(self, chat_id: str, *, now: int) -> Proof | None:
        """The newest proof with this id that has not expired at `now` (Unix seconds), or None."""

    async def keys(self) -> Keys:
        """All API keys."""

    async def keys_version(self) -> int:
        """`Keys.version` alone: cheap enough to ask every second."""

    def note_key_use(self, key_id: str, *, at: int) -> None:
        """Record, some time later, that a key was used `at` (Unix seconds). Never waits; may be lost in a crash."""

    async def close(self) -> None:
        """Finish the commits that were begun, then let go of the database."""
