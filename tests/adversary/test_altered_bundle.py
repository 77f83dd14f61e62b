"""The attacker hands over a bundle, the file that proves an answer, after changing it; nobody can be asked any more.

Every member of it, and every member of the report and the receipt in it, is changed and taken out, one by one. Each
change is refused, but for those named in IRRELEVANT: what nothing is concluded from, so that to lie there proves
nothing else. The twin: the file as it was written.
"""

import base64
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import confide
from aci_documents import Way, removed, replaced, ways
from attested_service import ANSWER, AttestedService, Document, Ed25519Signer, serving
from callers import SYNC, SYNC_STREAM, Kind, asking
from confide import VerificationError, verify_bundle
from confide.evidence.result import Status
from confide.protocol.canonical import canonical
from confide.verifier.policy import Policy

ANSWERED = ("answers", 0)
REPORT: Way = ("service", "report")
RECEIPT: Way = (*ANSWERED, "receipt")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttestedService]:
    with serving(tmp_path_factory.mktemp("service"), tls=True) as service:
        yield service


@pytest.fixture(scope="module")
def bundle(service: AttestedService, tmp_path_factory: pytest.TempPathFactory) -> Document:
    """An honest bundle, with bodies."""
    return written(service, SYNC, tmp_path_factory.mktemp("bundle") / "bundle.json", keep_bodies=True)


def written(service: AttestedService, kind: Kind, path: Path, **options: Any) -> Document:
    with asking(service, kind, **options) as caller:
        assert caller.ask() == ANSWER
        confide.proof(caller.answer).bundle(path)
    document: Document = json.loads(path.read_bytes())
    return document


class Auditor:
    """Checks documents as files, under the service's policy."""

    def __init__(self, path: Path, policy: Policy) -> None:
        self.path, self.policy = path, policy

    def failures(self, document: Document, **options: Any) -> list[str]:
        """The names of the checks that failed, in order; `bundle` where it is none; nothing when it holds."""
        self.path.write_text(json.dumps(document))
        try:
            result = verify_bundle(self.path, self.policy, **options)
        except VerificationError as error:
            return [error.check]
        failed = [check.name for check in result.checks if check.status is Status.FAIL]
        skipped = [check.name for check in result.checks if check.status is Status.SKIP]
        return failed or ([] if result.ok else [name for name in skipped if name in result.required])


@pytest.fixture
def auditor(service: AttestedService, tmp_path: Path) -> Auditor:
    return Auditor(tmp_path / "bundle.json", service.policy())


@pytest.mark.parametrize("kind", [SYNC, SYNC_STREAM])
@pytest.mark.parametrize("keep_bodies", [False, True])
def test_a_bundle_holds_as_it_was_written(
    service: AttestedService, auditor: Auditor, tmp_path: Path, kind: Kind, keep_bodies: bool
) -> None:
    path = tmp_path / "written.json"
    document = written(service, kind, path, keep_bodies=keep_bodies)
    assert verify_bundle(path, service.policy()).verdict == "VERIFIED"
    assert auditor.failures(document) == []


def other(value: Any) -> Any:
    """Another value of the same kind and, for texts, of the same form where it can be."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, str):
        middle = len(value) // 2
        return value[:middle] + ("0" if value[middle : middle + 1] != "0" else "1") + value[middle + 1 :]
    if isinstance(value, int):
        return value + 1
    return [] if isinstance(value, list) else {}


def at(document: Any, way: Way) -> Any:
    for key in way:
        document = document[key]
    return document


# Nothing is concluded from these alone. `url`: whoever made the bundle names it; its host decides where TLS keys are
# listed for hosts. `verified_at`: the time to check as of, which the result says is theirs. `status`: a claim.
# Bodies may be left out, the hashes stay.
IRRELEVANT = {("service", "url"), ("service", "verified_at"), (*ANSWERED, "status")}
MAY_GO = {(*ANSWERED, "request_b64"), (*ANSWERED, "response_b64"), ("answers",), ANSWERED}


def test_every_member_of_the_bundle_counts(bundle: Document, auditor: Auditor) -> None:
    held = set()
    for way in ways(bundle):
        if way != REPORT and not auditor.failures(replaced(bundle, way, other(at(bundle, way)))):
            held.add(way)
    # Without its answers it is the bundle of a service, which proves no answer.
    assert held == IRRELEVANT | {("answers",)}


def test_every_member_of_the_bundle_is_needed(bundle: Document, auditor: Auditor) -> None:
    held = {way for way in ways(bundle) if not auditor.failures(removed(bundle, way))}
    assert held == MAY_GO


ALTERED = [
    (("format",), "confide-bundle/2", "bundle"),
    (("service", "nonce"), "ab" * 32, "id-2"),
    (("service", "nonce"), None, "id-2"),
    (("service", "spki_sha256"), "ab" * 32, "id-6"),
    (("service", "spki_sha256"), None, "id-6"),
    (("service", "url"), "nowhere", "bundle"),
    (("service", "verified_at"), 4_000_000_000, "bundle-time"),
    (("service", "verified_at"), 1_767_300_000, "id-1"),  # before the collateral was
    (("service", "verified_at"), -1, "bundle-time"),
    ((*ANSWERED, "endpoint"), "/v1/messages", "receipt-2"),
    ((*ANSWERED, "receipt_id"), "rcpt-000000000000000000000000", "receipt-2"),
    ((*ANSWERED, "chat_id"), "chatcmpl-another", "receipt-2"),
    ((*ANSWERED, "chat_id"), None, "receipt-2"),
    ((*ANSWERED, "request_b64"), base64.b64encode(b"another").decode(), "bundle"),
    ((*ANSWERED, "response_b64"), base64.b64encode(b"another").decode(), "bundle"),
    ((*ANSWERED, "receipt"), "{}", "receipt-1"),
]


@pytest.mark.parametrize(("way", "value", "check"), ALTERED, ids=lambda each: str(each)[:30])
def test_what_was_altered_is_named(bundle: Document, auditor: Auditor, way: Way, value: object, check: str) -> None:
    assert auditor.failures(replaced(bundle, way, value))[0] == check


@pytest.mark.parametrize(
    ("hash_name", "body_name", "check"),
    [("request_sha256", "request_b64", "receipt-3"), ("response_sha256", "response_b64", "receipt-4")],
)
def test_another_body_with_its_own_hash_is_refused(
    bundle: Document, auditor: Auditor, hash_name: str, body_name: str, check: str
) -> None:
    body = base64.b64decode(bundle["answers"][0][body_name]).replace(b"answer", b"Answer")
    document = replaced(bundle, (*ANSWERED, body_name), base64.b64encode(body).decode())
    document = replaced(document, (*ANSWERED, hash_name), sha256(body).hexdigest())
    assert auditor.failures(document) == [check]


def within(bundle: Document, way: Way, document: object) -> Document:
    return replaced(bundle, way, json.dumps(document))


# Of the report: labels of the service's own that a policy may ask about and this one does not; what evidence there is
# besides the quote; `serving`, which the receipt decides about.
CAPABILITIES: Way = ("service_capabilities",)
SOURCE: Way = ("attestation", "source_provenance")
EVIDENCE: Way = ("attestation", "evidence")
LABELS = {
    SOURCE,
    *((*SOURCE, name) for name in ("repo_url", "repo_commit", "image_digest", "image_provenance")),
    (*CAPABILITIES, "supported_e2ee_versions"),
    (*EVIDENCE, "vm_config"),
    (*EVIDENCE, "simulated"),
}
# Their second certificate is a copy of the root, and never looked at: the root is the auditor's own. Of the first of
# them nothing is: the revocation list has to be signed by the issuer in the quote.
COLLATERAL: Way = (*EVIDENCE, "collateral")
ROOT_COPIES = [
    (*COLLATERAL, name) for name in ("pck_crl_issuer_chain", "qe_identity_issuer_chain", "tcb_info_issuer_chain")
]
# These may be taken out, and then show nothing: without the text of the application, id-4 is a skip.
LESS_SHOWN = {(*EVIDENCE, name) for name in ("app_compose", "event_log", "quote_report_data")}


def test_every_member_of_the_report_counts(bundle: Document, auditor: Auditor) -> None:
    report = json.loads(bundle["service"]["report"])
    held = set()
    for way in ways(report):
        if not auditor.failures(within(bundle, REPORT, replaced(report, way, other(at(report, way))))):
            held.add(way)
    assert held <= LABELS | set(ROOT_COPIES)
    assert held >= {(*SOURCE, "repo_url"), (*EVIDENCE, "simulated")}


@pytest.mark.parametrize("way", ROOT_COPIES, ids=lambda way: way[-1])
def test_of_an_issuer_chain_the_issuer_counts_and_the_copy_of_the_root_does_not(
    bundle: Document, auditor: Auditor, way: Way
) -> None:
    report = json.loads(bundle["service"]["report"])
    issuer, separator, copy = at(report, way).partition("-----END CERTIFICATE-----\n")
    mine = AttestedService(auditor.path.parent, tls=False).root.read_text()
    assert auditor.failures(within(bundle, REPORT, replaced(report, way, issuer + separator + mine))) == []
    failures = auditor.failures(within(bundle, REPORT, replaced(report, way, other(issuer) + separator + copy)))
    assert failures[:1] == ([] if way[-1] == "pck_crl_issuer_chain" else ["id-1"])


def test_every_member_of_the_report_is_needed(bundle: Document, auditor: Auditor) -> None:
    report = json.loads(bundle["service"]["report"])
    held = {way for way in ways(report) if not auditor.failures(within(bundle, REPORT, removed(report, way)))}
    assert held <= LABELS | LESS_SHOWN
    assert held >= LESS_SHOWN


def test_software_that_is_asked_for_has_to_be_shown(bundle: Document, service: AttestedService, tmp_path: Path) -> None:
    """The twin of LESS_SHOWN: under a policy that asks for the application, the report without it is refused."""
    report = json.loads(bundle["service"]["report"])
    compose = sha256(report["attestation"]["evidence"]["app_compose"].encode()).hexdigest()
    auditor = Auditor(tmp_path / "bundle.json", service.policy(compose_hashes=(compose,)))
    assert auditor.failures(bundle) == []
    assert auditor.failures(within(bundle, REPORT, removed(report, (*EVIDENCE, "app_compose")))) == ["policy-compose"]


def test_every_member_of_the_receipt_counts(bundle: Document, auditor: Auditor) -> None:
    receipt = json.loads(bundle["answers"][0]["receipt"])
    for way in ways(receipt):
        assert auditor.failures(within(bundle, RECEIPT, replaced(receipt, way, other(at(receipt, way))))), way
        assert auditor.failures(within(bundle, RECEIPT, removed(receipt, way))), way
    assert auditor.failures(within(bundle, RECEIPT, receipt)) == []


def test_every_bit_of_the_quote_counts_or_is_no_content(bundle: Document, auditor: Auditor) -> None:
    report = json.loads(bundle["service"]["report"])
    quote = bytes.fromhex(report["attestation"]["evidence"]["quote"])
    for index in range(0, len(quote), 97):
        altered = bytearray(quote)
        altered[index] ^= 1 << index % 8
        assert auditor.failures(within(bundle, REPORT, replaced(report, (*EVIDENCE, "quote"), bytes(altered).hex()))), (
            index
        )


def test_an_answer_that_somebody_else_signed_does_not_join_a_bundle(
    bundle: Document, service: AttestedService, auditor: Auditor
) -> None:
    """Two answers in one file: each has to hold, the honest one does not carry the other."""
    receipt = json.loads(bundle["answers"][0]["receipt"])
    forged = service.sign(receipt | {"receipt_id": "rcpt-ffffffffffffffffffffffff"}, Ed25519Signer(receipt["key_id"]))
    other_answer = bundle["answers"][0] | {"receipt": forged.decode(), "receipt_id": "rcpt-ffffffffffffffffffffffff"}
    assert auditor.failures(replaced(bundle, ("answers",), [bundle["answers"][0], other_answer])) == ["receipt-1"]
    genuine = bundle["answers"][0] | {
        "receipt": service.sign(receipt | {"receipt_id": "rcpt-ffffffffffffffffffffffff"}).decode(),
        "receipt_id": "rcpt-ffffffffffffffffffffffff",
    }
    assert auditor.failures(replaced(bundle, ("answers",), [bundle["answers"][0], genuine])) == []


def test_a_bundle_does_not_bring_its_own_root(bundle: Document, tmp_path: Path, service: AttestedService) -> None:
    """All of another simulated service's documents, well-formed: under the auditor's policy they end nowhere."""
    home = tmp_path / "attackers"
    with serving(home, tls=True) as attackers:
        theirs = written(attackers, SYNC, tmp_path / "theirs.json")
        theirs["root"] = theirs["service"]["root"] = attackers.root.read_text()
        assert "tdx.root" in Auditor(tmp_path / "b.json", service.policy()).failures(theirs)
        assert Auditor(tmp_path / "b.json", attackers.policy()).failures(theirs) == []
        # And neither service's answers pass under the other's report.
        mixed = replaced(bundle, ("service",), theirs["service"])
        assert Auditor(tmp_path / "b.json", attackers.policy()).failures(mixed)[0] == "receipt-2"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"format":"confide-bundle/1","format":"confide-bundle/1"}',
        b"\xff",
        b'{"format":"confide-bundle/1","service":null}',
    ],
    ids=lambda raw: repr(raw[:30]),
)
def test_what_is_no_bundle_is_named_so(raw: bytes, tmp_path: Path, service: AttestedService) -> None:
    path = tmp_path / "bundle.json"
    path.write_bytes(raw)
    with pytest.raises(VerificationError) as caught:
        verify_bundle(path, service.policy())
    assert caught.value.check == "bundle"
    assert caught.value.remedy


def test_a_member_twice_in_any_document_of_the_bundle_is_refused(bundle: Document, auditor: Auditor) -> None:
    for way, check in ((REPORT, "id-1"), (RECEIPT, "receipt-1")):
        text = at(bundle, way)
        document = replaced(bundle, way, '{"api_version":"aci/1",' + text[1:])
        assert check in auditor.failures(document)
        assert "id-1" in auditor.failures(replaced(bundle, REPORT, "{}"))
    auditor.path.write_bytes(b'{"format":"confide-bundle/1",' + canonical(bundle)[1:])
    with pytest.raises(VerificationError):
        verify_bundle(auditor.path, auditor.policy)
