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
from confide.protocol.receipt import (
    RECEIPT_ID_RANDOM_BYTES,
    Outcome,
    UpstreamEvent,
    attempt_event,
    new_receipt_id,
    not_verified_event,
    signed_receipt,
    verified_event_of,
)
from confide.store.base import Proof, Store
from confide.upstream.base import Answering, Head, Hop, Tally

UNSEALED = bytes(32)
IDS_DRAWN = 256


class Passage:
    """What is known of one request on its way through; its receipt and its log line are made of it."""

    __slots__ = (
        "answering",
        "began",
        "entry",
        "events",
        "has_proof",
        "head",
        "hop",
        "last_forwarded_sha256",
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
        self.last_forwarded_sha256: bytes | None = None
        self.events: list[UpstreamEvent] = []
        self.hop: Hop | None = None
        self.stream = False
        self.tally = Tally()

    @property
    def own_id(self) -> str | None:
        """The id of the answer where we gave it: one that an upstream chose is not for the log."""
        return self.head.id if self.head is not None and self.tally.id in (None, self.head.id) else None

    @property
    def is_forwarded(self) -> bool:
        """Whether inference was given the request."""
        return self.forwarded_sha256 is not None

    @property
    def forwarded_sha256(self) -> bytes | None:
        """SHA-256 of the body as inference was given it, by the last upstream that was; None when none was."""
        if self.answering is not None and self.answering.is_forwarded:
            return self.answering.forwarded_sha256
        return self.last_forwarded_sha256

    def not_served(self, name: str | None, reason: str, *, is_refused: bool) -> None:
        """The upstream that was asked last did not serve. `name`: None for one inside this workload. `is_refused`: by
        us, before it was sent anything.
        """
        assert self.head is not None
        self.last_forwarded_sha256, self.answering = self.forwarded_sha256, None
        if is_refused:
            self.events.append(not_verified_event(name, self.head.model, required=True, reason=reason))
        else:
            session_id = None if self.hop is None else self.hop.session_id
            self.events.append(attempt_event(reason, name, session_id))

    @property
    def upstream_events(self) -> tuple[UpstreamEvent, ...]:
        """What the receipt says of upstreams, in order: those that did not serve, then the one that did."""
        return (*self.events, verified_event(self.hop)) if self.hop is not None else tuple(self.events)

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
        chat_id = passage.tally.id if has_id else None
        epoch = passage.standing.epoch
        receipt = signed_receipt(
            receipt_id=passage.receipt_id,
            chat_id=chat_id,
            model=passage.head.model,
            keyset_digest=epoch.digest,
            endpoint=self._endpoint,
            served_at=now,
            received_sha256=passage.request_sha256,
            forwarded_sha256=passage.forwarded_sha256,
            returned_sha256=response_sha256,
            outcome=outcome,
            upstream=passage.upstream_events,
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


def verified_event(hop: Hop) -> UpstreamEvent:
    """The `upstream.verified` event of the hop that serves, in either form (wire contract 7.6)."""
    if hop.session_id is None:
        return not_verified_event(hop.name, hop.model, required=hop.required, reason=hop.reason or "not verified")
    return verified_event_of(hop.session_id, hop.model, required=hop.required)
