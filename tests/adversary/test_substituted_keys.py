"""The attacker relays plain HTTP and rewrites the report: they put keys of their own into the keyset, or beside it.

With a receipt key of theirs under the quote they could sign receipts of any answer. The quote commits to the digest of
the whole keyset: whatever is changed in it, with or without every hash that stands in the clear made to fit, the report
is refused and no prompt is sent. The twin: the same service unchanged, and a keyset that its owner laid out otherwise.
"""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from aci_documents import Way, removed, replaced, ways
from attested_service import ANSWER, AttestedService, Document, Ed25519Signer, Reply, Seen
from callers import EVERY, SYNC, Kind, asking, assert_refused
from confide import verify_service
from confide.evidence.result import Status
from confide.protocol.canonical import canonical, digest_of
from confide.protocol.keyset import ED25519, PublicKey
from confide.protocol.statement import aci_report_data

KEYSET = ("attestation", "workload_keyset")


@pytest.fixture
def service(service: AttestedService) -> Iterator[AttestedService]:
    yield service
    service.keyset = service.attested_keyset()
    service.signer = service.attester.workload_keys.receipt(1)


def with_keyset(report: Document, keyset: object, *, digest: bool, report_data: bool, nonce: str | None) -> Document:
    """The report with another keyset, its digest made to fit, or that and its report data."""
    document = replaced(report, KEYSET, keyset)
    if digest:
        document["workload_keyset_digest"] = digest_of(json.dumps(keyset, sort_keys=True).encode())
        if canonical_digest(keyset):
            document["workload_keyset_digest"] = canonical_digest(keyset)
    if report_data:
        slot = aci_report_data(document["workload_keyset_digest"], nonce)
        document["attestation"]["report_data"] = slot[:32].hex()
        document["attestation"]["evidence"]["quote_report_data"] = slot.hex()
    return document


def canonical_digest(keyset: object) -> str | None:
    try:
        return digest_of(canonical(keyset))
    except ValueError:
        return None


HOW_MUCH = [
    pytest.param({"digest": False, "report_data": False}, id="keyset alone"),
    pytest.param({"digest": True, "report_data": False}, id="and its digest"),
    pytest.param({"digest": True, "report_data": True}, id="and its report data"),
]


def refused_for(service: AttestedService) -> list[str]:
    """The checks that fail, in order."""
    result = verify_service(service.url, service.policy())
    assert not result.ok
    return [check.name for check in result.checks if check.status is Status.FAIL]


@pytest.mark.parametrize("kind", EVERY)
def test_the_honest_service_is_believed(service: AttestedService, kind: Kind) -> None:
    with asking(service, kind) as caller:
        assert caller.ask() == ANSWER


@pytest.mark.parametrize("much", HOW_MUCH)
@pytest.mark.parametrize("kind", EVERY)
def test_the_attackers_receipt_key_is_refused(service: AttestedService, kind: Kind, much: dict[str, bool]) -> None:
    mine = Ed25519Signer()

    def with_my_key(reply: Reply, seen: Seen) -> Reply:
        way = (*KEYSET, "receipt_signing_keys", 0, "public_key")
        keyset = replaced(reply.document, way, mine.public_hex)["attestation"]["workload_keyset"]
        return reply.holding(with_keyset(reply.document, keyset, **much, nonce=seen.nonce))

    service.alter["report"] = with_my_key
    service.signer = mine
    with asking(service, kind) as caller:
        expected = "id-1" if much["report_data"] else "id-2"
        error = assert_refused(caller, service, expected, prompts=0)
    assert "expected" in error.message


@pytest.mark.parametrize("much", HOW_MUCH)
def test_the_attackers_key_beside_the_attested_one_is_refused(service: AttestedService, much: dict[str, bool]) -> None:
    mine = Ed25519Signer("receipt-2")

    def with_my_key(reply: Reply, seen: Seen) -> Reply:
        keyset = dict(reply.document["attestation"]["workload_keyset"])
        keyset["receipt_signing_keys"] = [
            *keyset["receipt_signing_keys"],
            {"key_id": mine.key_id, "algo": ED25519, "public_key": mine.public_hex},
        ]
        return reply.holding(with_keyset(reply.document, keyset, **much, nonce=seen.nonce))

    service.alter["report"] = with_my_key
    with asking(service) as caller:
        assert_refused(caller, service, "id-1" if much["report_data"] else "id-2", prompts=0)


def test_keys_elsewhere_in_the_report_do_not_count(service: AttestedService) -> None:
    """Beside the keyset nothing refuses them, as foreign members are ignored; receipts they sign are refused."""
    mine = Ed25519Signer("mine")
    listed = [{"key_id": "mine", "algo": ED25519, "public_key": mine.public_hex}]

    def with_my_keys(reply: Reply, _: Seen) -> Reply:
        document = reply.document | {"receipt_signing_keys": listed}
        document["attestation"] |= {"receipt_signing_keys": listed, "keyset": {"receipt_signing_keys": listed}}
        document["service_capabilities"]["receipt_signing_keys"] = listed
        return reply.holding(document)

    service.alter["report"] = with_my_keys
    with asking(service) as caller:
        assert caller.ask() == ANSWER
        service.signer = mine
        assert_refused(caller, service, "receipt-1")


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1")
    if isinstance(value, int):
        return value + 1
    return [] if isinstance(value, list) else {} if isinstance(value, dict) else "something"


EXAMPLE: Document = {
    "subject": None,
    "not_after": 1,
    "receipt_signing_keys": [{"key_id": "k", "algo": ED25519, "public_key": "00"}],
    "e2ee_public_keys": [{"key_id": "k", "algo": "x", "public_key": "00"}],
    "tls_public_keys": [{"spki_sha256": "00"}],
}
MEMBERS = ways(EXAMPLE)


@pytest.mark.parametrize("much", HOW_MUCH)
@pytest.mark.parametrize("way", MEMBERS, ids=lambda way: ".".join(map(str, way)))
def test_every_member_of_the_keyset_counts(service: AttestedService, way: Way, much: dict[str, bool]) -> None:
    honest = service.report_now(None)["attestation"]["workload_keyset"]
    assert set(MEMBERS) <= set(ways(honest))
    value = honest
    for key in way:
        value = value[key]
    changes = [replaced(honest, way, other(value)), removed(honest, way)]
    changes += [replaced(honest, (*way[:-1], "alg"), "none")] if isinstance(way[-1], str) else []
    for keyset in changes:

        def changed(reply: Reply, seen: Seen, keyset: Document = keyset) -> Reply:
            return reply.holding(with_keyset(reply.document, keyset, **much, nonce=seen.nonce))

        service.alter["report"] = changed
        assert refused_for(service)[0] in ("id-1", "id-2")


def test_every_member_was_there_to_be_changed(service: AttestedService) -> None:
    """The twin: the keyset written anew, as it was, is accepted."""
    service.alter["report"] = lambda reply, seen: reply.holding(
        with_keyset(
            reply.document,
            reply.document["attestation"]["workload_keyset"],
            digest=True,
            report_data=True,
            nonce=seen.nonce,
        )
    )
    assert verify_service(service.url, service.policy()).ok


@pytest.mark.parametrize("algo", ["ecdsa-secp256k1", "none", "ed25519ph", "Ed25519", "rsa", ""])
def test_a_service_without_a_key_of_a_known_algorithm_is_refused(service: AttestedService, algo: str) -> None:
    """Not a relay: the attested keyset itself lists the receipt key under another algorithm."""
    key = service.attester.workload_keys.receipt(1)
    signing = (PublicKey(key.key_id, algo, key.public_key_hex),)
    service.keyset = service.attested_keyset(receipt_signing_keys=signing)
    with asking(service) as caller:
        error = assert_refused(caller, service, "id-1", prompts=0)
    assert "ed25519" in error.message


def test_a_receipt_under_an_entry_of_an_unknown_algorithm_is_refused(service: AttestedService) -> None:
    """The entry alone decides the algorithm: a signature by its key does not make it an Ed25519 key."""
    known, unknown = service.attester.workload_keys.receipt(1), service.attester.workload_keys.receipt(2)
    service.keyset = service.attested_keyset(
        receipt_signing_keys=(
            PublicKey(unknown.key_id, "ed25519-v2", unknown.public_key_hex),
            PublicKey(known.key_id, ED25519, known.public_key_hex),
        )
    )
    with asking(service) as caller:
        assert caller.ask() == ANSWER
        service.signer = unknown
        error = assert_refused(caller, service, "receipt-1")
    assert "key_id" in error.message


@pytest.mark.parametrize("member", ["alg", "algo", "algorithm", "key", "jwk", "x5c", "public_key", "kid"])
def test_a_receipt_does_not_choose_its_own_key_or_algorithm(service: AttestedService, member: str) -> None:
    mine = Ed25519Signer(service.signer.key_id)
    value = {"alg": "none", "algo": "none", "algorithm": "none"}.get(member, mine.public_hex)
    with asking(service) as caller:
        # Signed by its service, a member that nobody knows is ignored.
        service.alter["receipt"] = lambda reply, _: reply.but(service.sign(reply.document | {member: value}))
        assert caller.ask() == ANSWER
        # Put in on the way, or signed by the key that it names, it is refused.
        service.alter["receipt"] = lambda reply, _: reply.holding(reply.document | {member: value})
        assert_refused(caller, service, "receipt-1")
        caller.reset()
        service.alter["receipt"] = lambda reply, _: reply.but(service.sign(reply.document | {member: value}, mine))
        assert_refused(caller, service, "receipt-1")


def test_a_receipt_key_in_a_second_role_is_refused(service: AttestedService) -> None:
    """A key that also unseals, or serves TLS, could be made to sign by what it is given there."""
    key = service.attester.workload_keys.receipt(1)
    service.keyset = service.attested_keyset(e2ee_public_keys=(PublicKey("e2ee-1", "x", key.public_key_hex),))
    with asking(service, SYNC) as caller:
        error = assert_refused(caller, service, "id-1", prompts=0)
    assert "second role" in error.message


def test_the_root_in_the_report_is_never_the_one_that_is_trusted(service: AttestedService, tmp_path: Path) -> None:
    """The attacker runs a simulated TEE of their own: all is well-formed and signed, and ends in their root."""
    attackers = AttestedService(tmp_path, tls=False)

    def all_mine(reply: Reply, seen: Seen) -> Reply:
        return reply.holding(attackers.report_now(seen.nonce))

    service.alter["report"] = all_mine
    service.signer = attackers.signer
    with asking(service) as caller:
        error = assert_refused(caller, service, "id-1", prompts=0)
    assert "tdx.root" in error.message
    assert sha256(attackers.root.read_bytes()).hexdigest() != sha256(service.root.read_bytes()).hexdigest()
    # The twin: whoever pins that root believes it, and says so.
    with asking(service, policy=attackers.policy()) as caller:
        service.alter["receipt"] = lambda reply, _: reply.but(
            attackers.sign(reply.document | {"workload_keyset_digest": attackers.keyset.digest()})
        )
        assert caller.ask() == ANSWER
