"""The attacker relays plain HTTP and holds genuine receipts, or keys that the service holds in other roles.

They give a receipt of another exchange, one that a wrong key signed, or play a whole old answer back, to have an answer
believed that was not given to this question now. The twin: each exchange with its own receipt.
"""

import json
from collections.abc import Iterator
from hashlib import sha256

import pytest

from attested_service import (
    ANSWER,
    CHAT,
    AttestedService,
    Document,
    Ed25519Signer,
    Reply,
    Seen,
)
from callers import EVERY, STREAMED, SYNC, Kind, asking, assert_refused
from confide.protocol.canonical import digest_of
from confide.protocol.keyset import PublicKey
from confide.protocol.signature import Algo


@pytest.fixture
def service(service: AttestedService) -> Iterator[AttestedService]:
    yield service
    service.receipt_members = {}
    service.chat_id = None
    service.keyset = service.attested_keyset()
    service.signer = service.attester.workload_keys.receipt(1)


def last_receipt(service: AttestedService) -> tuple[str, bytes]:
    """Id and document of the receipt that was made last."""
    receipt_id, (raw, _) = list(service.receipts.items())[-1]
    return receipt_id, raw


@pytest.mark.parametrize("kind", EVERY)
def test_its_own_receipt_proves_an_exchange(service: AttestedService, kind: Kind) -> None:
    with asking(service, kind) as caller:
        for prompt in ("One", "Two", "Two"):
            assert caller.ask(prompt) == ANSWER


@pytest.mark.parametrize("kind", EVERY)
def test_the_receipt_of_another_request_is_refused(service: AttestedService, kind: Kind) -> None:
    service.chat_id = "chatcmpl-same"
    with asking(service, kind) as caller:
        caller.ask("Another question")
        other_id, other = last_receipt(service)
        # The document alone, then its id in the header as well.
        service.alter["receipt"] = lambda reply, _: reply.but(other)
        error = assert_refused(caller, service, "receipt-2")
        assert other_id in error.message
        caller.reset()
        service.alter = {"answer": lambda reply, _: reply.but(x_receipt_id=other_id)}
        error = assert_refused(caller, service, "receipt-3")
        assert "got sha256:" in error.message


@pytest.mark.parametrize("kind", EVERY)
def test_the_receipt_of_another_exchange_with_the_same_bodies_is_refused(service: AttestedService, kind: Kind) -> None:
    service.chat_id = "chatcmpl-same"
    with asking(service, kind) as caller:
        caller.ask()
        other_id, other = last_receipt(service)
        service.alter["receipt"] = lambda reply, _: reply.but(other)
        error = assert_refused(caller, service, "receipt-2")
        assert other_id in error.message
        # A second exchange of the same bodies has a receipt of its own.
        caller.reset()
        service.alter.clear()
        assert caller.ask() == ANSWER


@pytest.mark.parametrize("kind", EVERY)
def test_an_answer_that_is_played_back_is_refused(service: AttestedService, kind: Kind) -> None:
    """Bodies, headers and receipt of the first exchange, for the same question: only that it is over is wrong."""
    recorded: list[Reply] = []

    def played_back(reply: Reply, _: Seen) -> Reply:
        recorded.append(reply)
        return recorded[0]

    service.alter["answer"] = played_back
    with asking(service, kind) as caller:
        assert caller.ask() == ANSWER
        error = assert_refused(caller, service, "receipt-2")
        assert "a second time" in error.message


@pytest.mark.parametrize("kind", EVERY)
def test_an_answer_from_before_the_question_is_refused(service: AttestedService, kind: Kind) -> None:
    """The same to a client that was not there the first time: the receipt is older than the question."""
    recorded: list[Reply] = []

    def played_back(reply: Reply, _: Seen) -> Reply:
        recorded.append(reply)
        return recorded[0]

    service.alter["answer"] = played_back
    with asking(service, kind) as caller:
        assert caller.ask() == ANSWER
    at = json.loads(last_receipt(service)[1])["served_at"]
    with asking(service, kind, now=lambda: at + 301) as caller:
        error = assert_refused(caller, service, "receipt-2")
        assert f"got served_at {at}, expected about {at + 301}" in error.message


def test_a_clock_that_differs_a_little_is_no_attack(service: AttestedService) -> None:
    at = service.now()
    for behind_s in (-300, 300):
        service.receipt_members = {"served_at": at + behind_s}
        with asking(service, now=lambda: at) as caller:
            assert caller.ask() == ANSWER


@pytest.mark.parametrize("kind", EVERY)
def test_a_receipt_by_a_key_that_is_not_listed_is_refused(service: AttestedService, kind: Kind) -> None:
    honest = service.signer.key_id
    with asking(service, kind) as caller:
        for key_id in (honest, "receipt-2", "", "tls"):
            service.signer = Ed25519Signer(key_id)
            error = assert_refused(caller, service, "receipt-1")
            assert ("signature is not one of the attested key" in error.message) is (key_id == honest)
            caller.reset()
        service.signer = service.attester.workload_keys.receipt(1)
        assert caller.ask() == ANSWER


@pytest.mark.parametrize("kind", [SYNC])
def test_a_receipt_by_the_key_of_another_epoch_is_refused(service: AttestedService, kind: Kind) -> None:
    service.signer = service.attester.workload_keys.receipt(2)
    with asking(service, kind) as caller:
        assert_refused(caller, service, "receipt-1")


class LegacySigner:
    """The attested service's own Ed25519 key for legacy signatures, which is in no keyset."""

    def __init__(self, service: AttestedService, key_id: str) -> None:
        self.key_id = key_id
        self._keys = service.attester.keys

    @property
    def public_hex(self) -> str:
        return self._keys.address(Algo.ED25519)

    def sign(self, data: bytes) -> bytes:
        return bytes.fromhex(self._keys.sign(data.decode(), Algo.ED25519))


@pytest.mark.parametrize("key_id", ["receipt-1", "legacy", "legacy-ed25519"])
def test_a_receipt_by_the_legacy_key_is_refused(service: AttestedService, key_id: str) -> None:
    """A legacy signature is over a text; if a text could be a receipt, the key would sign receipts."""
    service.signer = LegacySigner(service, key_id)
    with asking(service) as caller:
        assert_refused(caller, service, "receipt-1")


@pytest.mark.parametrize("algo", ["ed25519", "x25519-aes-256-gcm-hkdf-sha256"])
def test_a_receipt_by_a_key_that_is_listed_for_encryption_is_refused(service: AttestedService, algo: str) -> None:
    sealing = Ed25519Signer("e2ee-1")
    service.keyset = service.attested_keyset(e2ee_public_keys=(PublicKey("e2ee-1", algo, sealing.public_hex),))
    with asking(service) as caller:
        assert caller.ask() == ANSWER
        service.signer = sealing
        error = assert_refused(caller, service, "receipt-1")
        assert "key_id" in error.message
        caller.reset()
        sealing.key_id = "receipt-1"
        assert_refused(caller, service, "receipt-1")


MEMBERS: list[tuple[str, object, str]] = [
    ("api_version", "aci/2", "receipt-1"),
    ("receipt_id", "rcpt-000000000000000000000000", "receipt-1"),
    ("chat_id", "chatcmpl-other", "receipt-1"),
    ("model", "vendor/other", "receipt-1"),
    ("workload_keyset_digest", "sha256:" + "00" * 32, "receipt-2"),
    ("endpoint", "/v1/messages", "receipt-1"),
    ("method", "GET", "receipt-1"),
    ("served_at", 1_780_000_000, "receipt-1"),
    ("key_id", "receipt-9", "receipt-1"),
    ("signature", "00" * 64, "receipt-1"),
    ("note", "one more", "receipt-1"),
    ("chat_id", ..., "receipt-1"),
    ("signature", ..., "receipt-1"),
    ("event_log", [], "receipt-1"),
]


@pytest.mark.parametrize(("member", "value", "check"), MEMBERS, ids=lambda each: str(each)[:20])
def test_every_member_of_the_receipt_is_signed(
    service: AttestedService, member: str, value: object, check: str
) -> None:
    def changed(reply: Reply, _: Seen) -> Reply:
        document = reply.document | {member: value}
        return reply.holding({name: each for name, each in document.items() if each is not ...})

    service.alter["receipt"] = changed
    with asking(service) as caller:
        assert_refused(caller, service, check)


def events(document: Document, *changed: Document) -> Document:
    return document | {"event_log": list(changed)}


@pytest.mark.parametrize("kind", [SYNC, STREAMED[0].values[0]])
def test_hashes_that_are_put_in_break_the_signature(service: AttestedService, kind: Kind) -> None:
    """The relay changes the answer and, to fit it, the receipt."""
    forged: list[bytes] = []

    def other_answer(reply: Reply, _: Seen) -> Reply:
        altered = reply.replacing(b"42.", b"43.")
        forged.append(altered.body)
        return altered

    def other_hash(reply: Reply, _: Seen) -> Reply:
        log = [
            event | {"body_hash": digest_of(forged[-1])} if event["type"] == "response.returned" else event
            for event in reply.document["event_log"]
        ]
        return reply.holding(events(reply.document, *log))

    service.alter = {"answer": other_answer, "receipt": other_hash}
    with asking(service, kind) as caller:
        error = assert_refused(caller, service, "receipt-1")
        assert "signature" in error.message


@pytest.mark.parametrize("again", ["first", "last"])
def test_an_event_that_stands_twice_is_refused_although_it_is_signed(service: AttestedService, again: str) -> None:
    """Two hashes for one response: which one a verifier reads must not matter."""

    def twice(reply: Reply, _: Seen) -> Reply:
        log = reply.document["event_log"]
        more = {"type": "response.returned", "body_hash": digest_of(b"another")}
        log = [log[0], more, *log[1:]] if again == "first" else [*log, more]
        return reply.but(service.sign(events(reply.document, *log)))

    service.alter["receipt"] = twice
    with asking(service) as caller:
        error = assert_refused(caller, service, "receipt-1")
        assert "twice" in error.message


def test_a_receipt_for_another_endpoint_is_refused(service: AttestedService) -> None:
    """Genuine and signed, over these very bytes, of another kind of request."""
    service.receipt_members = {"endpoint": "/v1/completions"}
    with asking(service) as caller:
        error = assert_refused(caller, service, "receipt-2")
        assert f"expected POST {CHAT}" in error.message


def test_a_rewritten_request_is_told_and_refused_for_nothing(service: AttestedService) -> None:
    """Not an attack: `request.forwarded` may differ, which a note says."""
    service.receipt_members = {"forwarded_sha256": sha256(b"rewritten").digest()}
    with asking(service) as caller:
        assert caller.ask() == ANSWER
