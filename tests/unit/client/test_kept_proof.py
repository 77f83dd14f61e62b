"""The proof of an answer: how it is found again, and the file it is written to."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest

import confide
from aci_service import CHAT_ID, RECEIPT_ID, RECEIVED, SENT, AciService, exchange
from confide.client import proof as proofs
from confide.client.proof import KEPT_PROOFS, KeptProofs, NoProof, Proof, answer_proof, write_private
from confide.client.receipts import verify_receipt
from confide.errors import ConfigError
from confide.evidence.result import passed
from confide.protocol.bundle import parse_bundle
from confide.verifier.policy import Policy
from proof_builders import NOW

Trusting = Callable[..., Policy]


def made(receipt_id: str, chat_id: str | None = None) -> Proof:
    return Proof(NOW, (passed("receipt-1", "signed"),), receipt_id=receipt_id, chat_id=chat_id)


@pytest.fixture
def whole(service: AciService, trusting: Trusting) -> Proof:
    """The proof of a real exchange."""
    policy = trusting()
    verified = service.verified(policy)
    checks, receipt = verify_receipt(service.receipt(), exchange(), services={service.digest: verified}, policy=policy)
    return answer_proof(
        verified, checks, receipt, service.receipt(), exchange(), policy=policy, request=SENT, response=RECEIVED
    )


# The registry.


def test_a_proof_is_found_by_receipt_id_and_by_response_id() -> None:
    kept = KeptProofs()
    first, second = made("r-1", "c-1"), made("r-2")
    kept.keep(first)
    kept.keep(second)
    assert kept.find("r-1") is kept.find("c-1") is first
    assert kept.find("r-2") is second
    assert kept.find("c-2") is None
    assert kept.find("") is None


def test_the_oldest_is_forgotten_under_both_names() -> None:
    kept = KeptProofs(most=2)
    for number in range(3):
        kept.keep(made(f"r-{number}", f"c-{number}"))
    assert kept.find("r-0") is kept.find("c-0") is None
    assert [kept.find(f"c-{number}") is not None for number in range(3)] == [False, True, True]


def test_a_proof_that_is_kept_again_counts_as_new() -> None:
    kept = KeptProofs(most=2)
    for receipt_id in ("r-1", "r-2", "r-1", "r-3"):
        kept.keep(made(receipt_id))
    assert kept.find("r-1") is not None
    assert kept.find("r-2") is None


def test_a_response_id_that_came_twice_leads_to_the_newer_answer() -> None:
    kept = KeptProofs(most=2)
    kept.keep(made("r-1", "c"))
    newer = made("r-2", "c")
    kept.keep(newer)
    assert kept.find("c") is newer
    kept.keep(made("r-3", "other"))  # the first one is forgotten, and takes nothing of the second along
    assert kept.find("c") is newer
    assert kept.find("r-1") is None


def test_a_service_that_repeats_its_receipt_id_does_not_fill_memory() -> None:
    kept = KeptProofs(most=2)
    for number in range(100):
        kept.keep(made("r", f"c-{number}"))
    assert kept.find("c-98") is None
    assert kept.find("c-99") is kept.find("r")
    assert len(kept._proofs) == len(kept._receipt_ids) == 1


def test_large_bodies_do_not_fill_memory() -> None:
    kept = KeptProofs(most_bytes=100)

    def large(receipt_id: str, size: int) -> Proof:
        return Proof(NOW, (), receipt_id=receipt_id, receipt=b"r" * size)

    for number in range(4):
        kept.keep(large(f"r-{number}", 40))
    assert [kept.find(f"r-{number}") is not None for number in range(4)] == [False, False, True, True]
    kept.keep(large("r-4", 1000))  # the newest answer can always be asked about
    assert [kept.find(f"r-{number}") is not None for number in range(5)] == [False, False, False, False, True]
    kept.keep(large("r-5", 60))
    kept.keep(large("r-6", 40))
    assert kept.find("r-5") is not None
    assert kept.find("r-4") is None


def test_the_size_of_a_proof_is_that_of_receipt_and_bodies(whole: Proof) -> None:
    assert whole.answer is not None
    assert whole.answer.request_b64 is not None
    assert whole.answer.response_b64 is not None
    bodies = len(whole.answer.request_b64) + len(whole.answer.response_b64)
    assert whole.size_bytes == len(whole.receipt) + bodies
    assert made("r").size_bytes == 0


# confide.proof


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Proof:
    """A proof in the registry of this process."""
    proof = made(RECEIPT_ID, CHAT_ID)
    monkeypatch.setattr("confide.client.proof.KEPT_PROOFS", KeptProofs())
    proofs.KEPT_PROOFS.keep(proof)
    return proof


@pytest.mark.parametrize(
    "answer",
    [
        RECEIPT_ID,
        CHAT_ID,
        SimpleNamespace(_request_id=RECEIPT_ID, id="another"),
        SimpleNamespace(_request_id=None, id=CHAT_ID),
        SimpleNamespace(id=CHAT_ID),
        httpx2.Response(200, headers={"X-Receipt-Id": RECEIPT_ID}),
    ],
    ids=["receipt id", "response id", "SDK object", "SDK object without its id", "chunk", "response"],
)
def test_an_answer_in_any_form_leads_to_its_proof(kept: Proof, answer: object) -> None:
    assert confide.proof(answer) is kept


def test_what_carries_its_proof_needs_no_registry() -> None:
    proof = made("r-9")
    response = httpx2.Response(200, extensions={"confide.proof": proof})
    for answer in (response, SimpleNamespace(http_response=response), SimpleNamespace(response=response)):
        assert confide.proof(answer) is proof


@pytest.mark.parametrize(
    "answer",
    [
        "chatcmpl-unknown",
        "",
        None,
        5,
        object(),
        SimpleNamespace(id=5, _request_id=b"x", headers="x-receipt-id", extensions=[]),
        SimpleNamespace(response=None, http_response="x"),
        SimpleNamespace(_request_id="another", id=CHAT_ID),  # the body may say any id
        httpx2.Response(200, headers={"X-Receipt-Id": RECEIPT_ID}, extensions={"confide.proof": None}),
        httpx2.Response(200, extensions={"confide.proof": "forged"}),
    ],
    ids=range(10),
)
def test_without_a_proof_it_says_what_to_do(kept: Proof, answer: object) -> None:
    with pytest.raises(NoProof) as caught:
        confide.proof(answer)
    assert caught.value.remedy
    assert isinstance(caught.value, confide.ConfideError)


# The bundle.


def test_a_bundle_holds_all_that_is_needed_to_check_again(whole: Proof, tmp_path: Path, trusting: Trusting) -> None:
    path = whole.bundle(tmp_path / "answer.json")
    bundle = parse_bundle(path.read_bytes())
    assert bundle.service == whole.service_proof
    assert bundle.answers == (whole.answer,)
    assert path.read_text().startswith("{\n  ")
    assert confide.verify_bundle(path, trusting(), now=NOW).ok


def test_a_bundle_is_readable_by_its_owner_alone_whatever_the_umask(whole: Proof, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = whole.bundle(str(tmp_path / "answer.json"))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_bundle_replaces_an_earlier_one_and_its_mode(whole: Proof, tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text("earlier")
    path.chmod(0o644)
    whole.bundle(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["format"] == "confide-bundle/1"
    assert os.listdir(tmp_path) == ["answer.json"]


def test_a_bundle_does_not_follow_a_link_to_another_file(whole: Proof, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("untouched")
    (tmp_path / "answer.json").symlink_to(tmp_path / "other")
    whole.bundle(tmp_path / "answer.json")
    assert (tmp_path / "other").read_text() == "untouched"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answer.json"
    path.write_text("earlier")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_private(path, b"new")
    assert path.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["answer.json"]


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing" / "answer.json", tmp_path / "file" / "answer.json", tmp_path):
        with pytest.raises(ConfigError, match="cannot be written") as caught:
            write_private(path, b"")
        assert caught.value.remedy == "Name a file in a directory that exists."


def test_the_registry_of_the_process_is_bounded() -> None:
    assert KEPT_PROOFS._most == 1024
