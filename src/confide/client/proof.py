"""The proof of one answer, kept so that `confide.proof(answer)` finds it, and written to a file (docs/bundle.md)."""

import base64
import contextlib
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from confide.client.receipts import REQUIRED, SESSION, Exchange
from confide.errors import ConfideError, ConfigError
from confide.evidence.result import Check, Verification
from confide.protocol.bundle import AnswerProof, ServiceProof, write_bundle
from confide.protocol.receipt import Receipt
from confide.verifier.appraisal import ServiceVerification
from confide.verifier.policy import Policy

KEPT = 1024  # proofs that `confide.proof` finds, the newest
KEPT_BYTES = 256 * 1024 * 1024  # of bodies and receipts in them


class NoProof(ConfideError):
    """Nothing is kept about this answer."""


@dataclass(frozen=True)
class Proof(Verification):
    """What was checked about one answer; iterating gives the checks.

    `receipt_id`, `chat_id`: what the answer is found by. `receipt`: the signed document, as it came.
    """

    receipt_id: str = ""
    chat_id: str | None = None
    receipt: bytes = b""
    service_proof: ServiceProof | None = None
    answer: AnswerProof | None = None

    @property
    def size_bytes(self) -> int:
        """What this exchange alone holds on to; the service's report is shared."""
        bodies = () if self.answer is None else (self.answer.request_b64, self.answer.response_b64)
        return len(self.receipt) + sum(len(body) for body in bodies if body is not None)

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def __len__(self) -> int:
        return len(self.checks)

    def bundle(self, path: str | os.PathLike[str]) -> Path:
        """Write everything that is needed to check this answer again, without any network, to one JSON file.

        `confide audit FILE` and `confide.verify_bundle` read it. Holds the bodies only if the client was made with
        keep_bodies=True. Written whole or not at all, 0600. Raises OSError, and ConfigError where there is no such
        directory.
        """
        assert self.service_proof is not None
        assert self.answer is not None
        return write_private(Path(path), write_bundle(self.service_proof, (self.answer,)))


def answer_proof(
    service: ServiceVerification,
    checks: tuple[Check, ...],
    receipt: Receipt | None,
    raw: bytes,
    exchange: Exchange,
    *,
    policy: Policy,
    request: bytes | None = None,
    response: bytes | None = None,
) -> Proof:
    """The proof of an answer under a verified service: its checks and the service's, with all that a bundle keeps."""
    members = None if receipt is None else receipt.members
    chat_id = None if members is None else members.chat_id
    facts = dict(service.facts)
    if receipt is not None:
        facts |= {"served_at": receipt.members.served_at, "model": receipt.members.model, "outcome": receipt.outcome}
    return Proof(
        service.now,
        (*checks, *service.checks),
        service.anchors,
        facts,
        required=service.required | required_of(service, policy),
        desired=service.desired,
        lacking=service.lacking,
        receipt_id=exchange.receipt_id,
        chat_id=chat_id,
        receipt=raw,
        service_proof=service.proof,
        answer=AnswerProof(
            endpoint=exchange.endpoint,
            receipt=raw.decode(errors="replace"),
            request_sha256=exchange.request_sha256.hex(),
            response_sha256=exchange.response_sha256.hex(),
            receipt_id=exchange.receipt_id,
            chat_id=chat_id,
            status=exchange.status,
            request_b64=None if request is None else base64.b64encode(request).decode(),
            response_b64=None if response is None else base64.b64encode(response).decode(),
            sessions=tuple(document.decode(errors="replace") for document in exchange.sessions.values()),
        ),
    )


def required_of(service: ServiceVerification, policy: Policy) -> frozenset[str]:
    """The checks without which no answer of this service is proven: behind a second hop its session too."""
    is_direct = service.report is not None and service.report.serving == "direct"
    return REQUIRED if is_direct else REQUIRED | {SESSION}


class KeptProofs:
    """The newest proofs of this process, by receipt id and by response id. Threads may share it."""

    def __init__(self, most: int = KEPT, most_bytes: int = KEPT_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._size_bytes = 0
        self._lock = threading.Lock()
        self._proofs: dict[str, Proof] = {}  # the oldest first
        self._receipt_ids: dict[str, str] = {}

    def keep(self, proof: Proof) -> None:
        """Forget the oldest ones when there are too many, or too large ones; the newest is there in any case."""
        with self._lock:
            self._forget(proof.receipt_id)
            self._proofs[proof.receipt_id] = proof
            self._size_bytes += proof.size_bytes
            if proof.chat_id is not None:
                self._receipt_ids[proof.chat_id] = proof.receipt_id
            while len(self._proofs) > self._most or (len(self._proofs) > 1 and self._size_bytes > self._most_bytes):
                self._forget(next(iter(self._proofs)))

    def find(self, name: str) -> Proof | None:
        """By receipt id or response id."""
        with self._lock:
            return self._proofs.get(name if name in self._proofs else self._receipt_ids.get(name, ""))

    def _forget(self, receipt_id: str) -> None:
        forgotten = self._proofs.pop(receipt_id, None)
        if forgotten is None:
            return
        self._size_bytes -= forgotten.size_bytes
        if forgotten.chat_id is None:
            return
        if self._receipt_ids.get(forgotten.chat_id) == receipt_id:  # a newer answer may have had the same id
            del self._receipt_ids[forgotten.chat_id]


KEPT_PROOFS = KeptProofs()


def proof(answer: object) -> Proof:
    """What was checked about `answer`: an object of an SDK, a stream, a chunk of one, an HTTP response, or an id.

    A stream's proof is there once the stream has ended. Raises NoProof where nothing is kept: the answer did not come
    through a confide client, is not complete, or 1,024 others came since; fewer where large bodies are kept.
    """
    for holder in (answer, getattr(answer, "http_response", None), getattr(answer, "response", None)):
        extensions = getattr(holder, "extensions", None)
        if isinstance(extensions, dict) and "confide.proof" in extensions:
            found = extensions["confide.proof"]
            break  # what its headers name may be another's
    else:
        kept = map(KEPT_PROOFS.find, names_of(answer))
        found = next((proof for proof in kept if proof is not None), None)
    if isinstance(found, Proof):
        return found
    raise NoProof(
        "no proof of this answer is kept",
        remedy="Pass what the SDK returned, after the end of a stream; the client must be a confide.Client.",
    )


def names_of(answer: object) -> Iterator[str]:
    """What an answer may be found by. The receipt id first: the response id is not everywhere."""
    if isinstance(answer, str):
        yield answer
        return
    headers, request_id = getattr(answer, "headers", None), getattr(answer, "_request_id", None)
    candidates = [request_id]
    if request_id is None:  # else it says which request that was, and an `id` in the body may be anybody's
        candidates.append(getattr(answer, "id", None))
    if isinstance(headers, Mapping):
        candidates.insert(0, headers.get("x-receipt-id"))
    yield from (each for each in candidates if isinstance(each, str))


def write_private(path: Path, content: bytes) -> Path:
    """The file with this content and mode 0600, whole or not at all. Raises OSError."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}", remedy="Name a file in a directory that exists."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it is not there, or what went wrong is on its way already
            draft.unlink()
    return path
