"""One request on its way through the prompt path: what is known of it, and the receipt it leaves behind.

Every exit of an admitted request is receipted by `Receipts.keep`, and returns only once the receipt is durable.
"""

import os
from collections.abc import Callable, Iterator

import msgspec

from confide.attester.keys import LegacyKeys
from confide.errors import NotReady
from confide.gateway.auth import Principal
from confide.gateway.keysets import Standing
from confide.gateway.lifecycle import InFlight
from confide.protocol.receipt import RECEIPT_ID_RANDOM_BYTES, Outcome, new_receipt_id, signed_receipt
from confide.store.base import Proof, Store
from confide.upstream.base import Answering, Head, Tally

UNSEALED = bytes(32)
IDS_DRAWN = 256


class Passage:
    """What is known of one request on its way through; its receipt and its log line are made of it."""

    __slots__ = (
        "answering",
        "began",
        "entry",
        "forwarded_sha256",
        "has_proof",
        "head",
        "model_id",
        "outcome",
        "principal",
        "reason",
        "receipt_id",
        "request_sha256",
        "standing",
        "stream",
        "tally",
    )

    def __init__(self, began: float, entry: InFlight, standing: Standing) -> None:
        self.began = began
        self.entry = entry
        self.standing = standing
        self.outcome: Outcome = "failed"
        self.reason: str | None = None
        self.has_proof = False
        self.head: Head | None = None
        self.receipt_id: str | None = None
        self.model_id: str | None = None
        self.principal: Principal | None = None
        self.answering: Answering | None = None
        self.request_sha256 = b""
        self.forwarded_sha256 = b""
        self.stream = False
        self.tally = Tally()

    @property
    def is_forwarded(self) -> bool:
        """Whether inference was given the request."""
        return self.answering is not None and self.answering.is_forwarded

    @property
    def receipt_header(self) -> tuple[tuple[bytes, bytes], ...]:
        """`X-Receipt-Id`, once there is an id: from the moment the request was understood."""
        return () if self.receipt_id is None else ((b"x-receipt-id", self.receipt_id.encode()),)


class Receipts:
    """Signs and keeps receipts. `ttl_s`: seconds until one may be forgotten. `now`: Unix seconds."""

    def __init__(self, *, keys: LegacyKeys, store: Store, endpoint: str, ttl_s: int, now: Callable[[], float]) -> None:
        self._keys = keys
        self._store = store
        self._endpoint = endpoint
        self._ttl_s = ttl_s
        self._now = now

    async def keep(self, passage: Passage, response_sha256: bytes, outcome: Outcome, *, has_id: bool) -> None:
        """Return once the receipt over this response is durable. Raises NotReady when it cannot be kept.

        `response_sha256`: 32 bytes, over what was handed to the server. `has_id`: the response named its `id`.
        """
        assert passage.head is not None
        assert passage.principal is not None
        assert passage.receipt_id is not None
        now = int(self._now())
        chat_id = passage.head.id if has_id else None
        epoch = passage.standing.epoch
        receipt = signed_receipt(
            receipt_id=passage.receipt_id,
            chat_id=chat_id,
            model=passage.head.model,
            keyset_digest=epoch.digest,
            endpoint=self._endpoint,
            served_at=now,
            received_sha256=passage.request_sha256,
            forwarded_sha256=passage.forwarded_sha256 if passage.is_forwarded else None,
            returned_sha256=response_sha256,
            outcome=outcome,
            signer=epoch.signer,
        )
        proof = Proof(
            receipt_id=passage.receipt_id,
            chat_id=chat_id,
            request_sha256=passage.request_sha256,
            response_sha256=response_sha256,
            credential_sha256=passage.principal.credential_sha256,
            expires_at=now + self._ttl_s,
            receipt=receipt,
            seal=UNSEALED,
        )
        seal = self._keys.seal_record(proof.sealed_bytes())
        try:
            await self._store.commit(msgspec.structs.replace(proof, seal=seal))
        except NotReady:
            passage.reason = "store"
            raise
        passage.outcome, passage.has_proof = outcome, True


def random_parts(size: int) -> Iterator[bytes]:
    """`size` random bytes at a time, without end. They are drawn for many at a time: each call of the system gives up
    the interpreter lock, which under load costs 100 µs until the store's thread gives it back.
    """
    while True:
        drawn = os.urandom(IDS_DRAWN * size)
        for start in range(0, len(drawn), size):
            yield drawn[start : start + size]


def receipt_ids() -> Iterator[str]:
    """New receipt ids without end."""
    return map(new_receipt_id, random_parts(RECEIPT_ID_RANDOM_BYTES))
