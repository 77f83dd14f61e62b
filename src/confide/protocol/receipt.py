"""The receipt of one exchange: written and signed by the service, read and checked by anyone (wire contract 7.6).

It holds hashes and facts, never content. Our own receipts are served in canonical form, the signature in its place
among the sorted members, so that they are encoded once.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from confide.protocol.canonical import (
    DIGEST,
    ENCODER,
    DocumentError,
    canonical,
    digest_text,
    of_known_types,
    parse_document,
    typed,
)
from confide.protocol.keyset import Digest, Hex64, Integer, Keyset
from confide.protocol.report import API_VERSION

RECEIVED, FORWARDED, RETURNED = "request.received", "request.forwarded", "response.returned"
UPSTREAM_VERIFIED, UPSTREAM_ATTEMPT, OUTCOME = "upstream.verified", "upstream.attempt", "response.outcome"
ONCE = (RECEIVED, FORWARDED, RETURNED, OUTCOME)
READ = (*ONCE, UPSTREAM_VERIFIED)

Outcome = Literal["complete", "client_closed", "truncated", "refused", "failed"]
Signature = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{128}\Z")]

RECEIPT_ID_RANDOM_BYTES = 12


class Signs(Protocol):
    """What signs receipts: a key of the attester's, by its id in the keyset."""

    @property
    def key_id(self) -> str: ...

    def sign(self, data: bytes) -> bytes:
        """An Ed25519 signature (RFC 8032), 64 bytes."""


class BodyEvent(msgspec.Struct, frozen=True):
    """An event with the hash of a body."""

    type: str
    body_hash: str


class OutcomeEvent(msgspec.Struct, frozen=True):
    """How the exchange ended: an extension of ours, which verifiers ignore."""

    outcome: Outcome
    type: Literal["response.outcome"] = "response.outcome"


class VerifiedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the second hop was verified: with the session it serves in, or with the reason why there is none."""

    result: Literal["verified", "failed"]
    required: bool
    model_id: str
    session_id: str | msgspec.UnsetType = msgspec.UNSET
    reason: str | msgspec.UnsetType = msgspec.UNSET
    upstream_name: str | msgspec.UnsetType = msgspec.UNSET
    type: Literal["upstream.verified"] = "upstream.verified"


class AttemptEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An upstream that was to answer and did not: an extension of ours, which verifiers ignore."""

    reason: str
    session_id: str | msgspec.UnsetType = msgspec.UNSET
    upstream_name: str | msgspec.UnsetType = msgspec.UNSET
    type: Literal["upstream.attempt"] = "upstream.attempt"


UpstreamEvent = VerifiedEvent | AttemptEvent


def verified_event_of(session_id: str, model_id: str, *, required: bool) -> VerifiedEvent:
    """`model_id`: the model that the upstream serves."""
    return VerifiedEvent(result="verified", required=required, model_id=model_id, session_id=session_id)


def not_verified_event(upstream_name: str | None, model_id: str, *, required: bool, reason: str) -> VerifiedEvent:
    """`model_id`: the model that was asked for."""
    name = msgspec.UNSET if upstream_name is None else upstream_name
    return VerifiedEvent(result="failed", required=required, model_id=model_id, reason=reason, upstream_name=name)


def attempt_event(reason: str, upstream_name: str | None, session_id: str | None) -> AttemptEvent:
    """`upstream_name`: None for one inside the workload. `session_id`: that it was verified in, if it was."""
    return AttemptEvent(
        reason=reason,
        upstream_name=msgspec.UNSET if upstream_name is None else upstream_name,
        session_id=msgspec.UNSET if session_id is None else session_id,
    )


class Unsigned(msgspec.Struct, frozen=True, kw_only=True):
    """A receipt before it is signed."""

    api_version: str = API_VERSION
    chat_id: str | None
    endpoint: str
    event_log: tuple[BodyEvent | VerifiedEvent | AttemptEvent | OutcomeEvent, ...]
    key_id: str
    method: Literal["POST"] = "POST"
    model: str | None
    receipt_id: str
    served_at: int
    workload_keyset_digest: str


# `"workload_keyset_digest"` sorts last and has one length: the signature goes in right before it.
TAIL_BYTES = len(f',"workload_keyset_digest":"sha256:{"0" * 64}"}}')


def new_receipt_id(random: bytes) -> str:
    """`rcpt-` and 24 lower-case hex digits of 12 random bytes. Raises ValueError on another length."""
    if len(random) != RECEIPT_ID_RANDOM_BYTES:
        raise ValueError(f"got {len(random)} random bytes, expected {RECEIPT_ID_RANDOM_BYTES}")
    return f"rcpt-{random.hex()}"


def signed_receipt(
    *,
    receipt_id: str,
    chat_id: str | None,
    model: str | None,
    keyset_digest: str,
    endpoint: str,
    served_at: int,
    received_sha256: bytes,
    forwarded_sha256: bytes | None,
    returned_sha256: bytes,
    outcome: Outcome,
    signer: Signs,
    upstream: Sequence[UpstreamEvent] = (),
) -> bytes:
    """The receipt, signed, in canonical form. Digests: 32 bytes each. `served_at`: Unix seconds.

    `forwarded_sha256` None: inference did not run. `upstream`: what there is to say of upstreams, in order. Raises
    ValueError for digests of another length or form.
    """
    if DIGEST.fullmatch(keyset_digest) is None:
        raise ValueError("the keyset digest is not sha256: and 64 lower-case hex digits")
    events: list[BodyEvent | VerifiedEvent | AttemptEvent | OutcomeEvent] = [
        BodyEvent(RECEIVED, digest_text(received_sha256))
    ]
    if forwarded_sha256 is not None:
        events.append(BodyEvent(FORWARDED, digest_text(forwarded_sha256)))
    events += upstream
    events += BodyEvent(RETURNED, digest_text(returned_sha256)), OutcomeEvent(outcome)
    unsigned = ENCODER.encode(
        Unsigned(
            chat_id=chat_id,
            endpoint=endpoint,
            event_log=tuple(events),
            key_id=signer.key_id,
            model=model,
            receipt_id=receipt_id,
            served_at=served_at,
            workload_keyset_digest=keyset_digest,
        )
    )
    head, tail = unsigned[:-TAIL_BYTES], unsigned[-TAIL_BYTES:]
    return b'%b,"signature":"%b"%b' % (head, signer.sign(unsigned).hex().encode(), tail)


class Event(msgspec.Struct, frozen=True):
    """The members of an event that a verifier reads; it may have others. Of an extension only the type is read."""

    type: str
    body_hash: Digest | None = None
    result: Literal["verified", "failed"] | None = None
    required: bool | None = None
    model_id: str | None = None
    session_id: Hex64 | None = None
    reason: str | None = None
    outcome: str | None = None


class Members(msgspec.Struct, frozen=True):
    """A receipt's members."""

    api_version: str
    receipt_id: str
    chat_id: str | None
    model: str | None
    workload_keyset_digest: Digest
    endpoint: str
    method: str
    served_at: Integer
    event_log: tuple[Event, ...]
    key_id: str
    signature: Signature


class Receipt(msgspec.Struct, frozen=True):
    """A foreign receipt that could be read, and the bytes that its signature is over, from what was parsed."""

    members: Members
    signing_input: bytes

    def body_hash(self, event_type: str) -> str | None:
        """The digest string in the event of this type, None when there is no such event."""
        return next((event.body_hash for event in self.members.event_log if event.type == event_type), None)

    @property
    def outcome(self) -> str | None:
        """What the service says of the end: `response.outcome`, where it sends that."""
        return next((event.outcome for event in self.members.event_log if event.type == OUTCOME), None)

    @property
    def upstream(self) -> tuple[Event, ...]:
        """The `upstream.verified` events, in order."""
        return tuple(event for event in self.members.event_log if event.type == UPSTREAM_VERIFIED)


def parse_receipt(raw: bytes) -> Receipt:
    """A foreign receipt. Raises DocumentError naming what is wrong; its signature is not checked here.

    Refused: an event log that does not begin with `request.received`, has no `response.returned`, or has one of the
    events twice of which there is one: such a receipt could be read in two ways.
    """
    document = parse_document(raw, what="the receipt")
    event_log = of_known_types(document.get("event_log"), READ)
    members = typed({**document, "event_log": event_log}, Members, what="the receipt")
    if members.api_version != API_VERSION:
        raise DocumentError(f"the receipt: api_version is not {API_VERSION}")
    types = [event.type for event in members.event_log]
    if not types or types[0] != RECEIVED:
        raise DocumentError(f"the receipt: its first event is not {RECEIVED}")
    if RETURNED not in types:
        raise DocumentError(f"the receipt: it has no event {RETURNED}")
    for event_type in ONCE:
        if types.count(event_type) > 1:
            raise DocumentError(f"the receipt: the event {event_type} stands in it twice")
    for event in members.event_log:
        check_event(event)
    unsigned: dict[str, Any] = {name: value for name, value in document.items() if name != "signature"}
    return Receipt(members, canonical(unsigned))


def check_event(event: Event) -> None:
    """Raise DocumentError unless an event of a fixed type has the members of that type (wire contract 7.6)."""
    if event.type in (RECEIVED, FORWARDED, RETURNED) and event.body_hash is None:
        raise DocumentError(f"the receipt: {event.type} has no body_hash")
    if event.type == UPSTREAM_VERIFIED:
        # A session is cited exactly where one served; `required` is what a relying party's policy asks about.
        cites = event.session_id is not None
        if event.result is None or event.required is None or cites != (event.result == "verified"):
            raise DocumentError(f"the receipt: {UPSTREAM_VERIFIED} has neither its verified nor its failed form")


def signature_fault(receipt: Receipt, keyset: Keyset) -> str | None:
    """Why the signature does not hold under a receipt key of `keyset`, in words, or None when it does (9.5, step 1)."""
    public_key = keyset.receipt_key(receipt.members.key_id)
    if public_key is None:
        return "its key_id names no ed25519 receipt signing key of the attested keyset"
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            bytes.fromhex(receipt.members.signature), receipt.signing_input
        )
    except InvalidSignature:
        return f"the signature is not one of the attested key {public_key.hex()} over this receipt"
    return None
