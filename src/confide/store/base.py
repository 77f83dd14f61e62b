"""What a store keeps, and what the gateway may ask of one.

A proof holds hashes, ids and the facts of its receipt, never a prompt, an answer or a token (wire contract 7.7).
"""

from typing import Protocol

import msgspec

SEALED_VERSION = 2
RECEIPT_ID_PREFIX = "rcpt-"  # wire contract 2.8; no other id is looked up by a text that begins so
DIGEST_BYTES = 32
INTEGER_BYTES = 8
MAX_INTEGER = 2 ** (8 * INTEGER_BYTES - 1) - 1  # what a database integer holds


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of one exchange: its signed receipt, and what its legacy signature is made of (wire contract 5.6).

    `receipt` is the signed document as it is served. `chat_id` is None where the response named none. Digests are
    SHA-256, 32 bytes; `expires_at` is in Unix seconds. `credential_sha256` is the digest of the bearer token, or None
    when the request came without one. `seal` is a 32-byte MAC over `sealed_bytes()`: the disk belongs to the host, so a
    row counts only when its seal holds. Raises ValueError for a member that could not be stored or found as it is.
    """

    receipt_id: str
    chat_id: str | None
    request_sha256: bytes
    response_sha256: bytes
    credential_sha256: bytes | None
    expires_at: int
    receipt: bytes
    seal: bytes

    def __post_init__(self) -> None:
        digests = (self.request_sha256, self.response_sha256, self.seal, self.credential_sha256)
        if any(len(digest) != DIGEST_BYTES for digest in digests if digest is not None):
            raise ValueError(f"a proof's digests and seal are {DIGEST_BYTES} bytes each")
        if not 0 <= self.expires_at <= MAX_INTEGER:
            raise ValueError("a proof expires at Unix seconds from 0 to 2**63 - 1")
        if not self.receipt_id.startswith(RECEIPT_ID_PREFIX):
            raise ValueError(f"a receipt id begins with {RECEIPT_ID_PREFIX}: by another it would not be found")
        # Half of a surrogate pair is refused here: later it would fail the commits of others in the same batch. What
        # the receipt says is not looked into: its writer signed it, and a reader checks the seal.
        f"{self.receipt_id}{self.chat_id}".encode()

    def sealed_bytes(self) -> bytes:
        """Everything but the seal, in one way only: no two proofs that differ elsewhere share these bytes.

        A version byte, then each member in order: texts (UTF-8) and bytes after their length in 4 bytes, the time as 8
        bytes, numbers big endian. What may be None is preceded by one byte: 1, or 0 and nothing more when it is.
        """
        return b"".join(
            (
                bytes((SEALED_VERSION,)),
                prefixed(self.receipt_id.encode()),
                optional(None if self.chat_id is None else self.chat_id.encode()),
                prefixed(self.request_sha256),
                prefixed(self.response_sha256),
                optional(self.credential_sha256),
                self.expires_at.to_bytes(INTEGER_BYTES, "big"),
                prefixed(self.receipt),
            )
        )


def prefixed(value: bytes) -> bytes:
    """`value` after its length in 4 bytes, big endian."""
    return len(value).to_bytes(4, "big") + value


def optional(value: bytes | None) -> bytes:
    """One byte that says whether there is a value, then the value after its length."""
    return b"\x00" if value is None else b"\x01" + prefixed(value)


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

    async def proof(self, lookup_id: str, *, now: int) -> Proof | None:
        """The newest proof with this receipt id or chat id that has not expired at `now` (Unix seconds), or None.

        What begins with `rcpt-` can only be a receipt id.
        """

    async def keep_report(self, digest: str, report: bytes, *, expires_at: int) -> None:
        """Return once the report of the keyset with this digest string is durable, until `expires_at` (Unix seconds).

        A later one under the same digest takes its place, for whichever time ends later. Unlike a proof a report has no
        seal: whoever relies on one verifies its quote. Raises ValueError for what is not a digest string.
        """

    async def report(self, digest: str, *, now: int) -> bytes | None:
        """The report kept under this digest string that has not expired at `now` (Unix seconds), or None."""

    async def keep_session(self, session_id: str, document: bytes, *, expires_at: int) -> None:
        """Return once the attested session is durable, until `expires_at` (Unix seconds).

        Its id (64 lower-case hex digits) is the hash of the document: a reader can tell whether it is that one. Raises
        ValueError for an id of another form.
        """

    async def session(self, session_id: str, *, now: int) -> bytes | None:
        """The session kept under this id that has not expired at `now` (Unix seconds), or None."""

    async def keys(self) -> Keys:
        """All API keys."""

    async def keys_version(self) -> int:
        """`Keys.version` alone: cheap enough to ask every second."""

    def note_key_use(self, key_id: str, *, at: int) -> None:
        """Record, some time later, that a key was used `at` (Unix seconds). Never waits; may be lost in a crash."""

    async def close(self) -> None:
        """Finish the commits that were begun, then let go of the database."""
