"""kill -9, of the service and of its engine: what was promised before holds after (wire contract 5.6, 2.7)."""

import hashlib
import json
import os
import re
import select
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI

from confide.protocol.signature import Algo, verify_text
from e2e.engine_process import engines_of, needs_proc
from outside import Verifier
from running import Running, home_with_weights, running

pytestmark = pytest.mark.engine

DONE = b"data: [DONE]\n\n"
MODEL = "confide/smollm2-135m"
HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}]}
NO_END = {"logit_bias": {"2": -100}, "max_tokens": 3000, "stream": True}  # 2 is the token that ends SmolLM2's turn
BACK_WITHIN_S = 5.0
GONE_WITHIN_S = 2.0


@dataclass(frozen=True)
class Exchanged:
    """The bytes of a request and of its whole answer, as the client saw them, and the id of its receipt."""

    sent: bytes
    received: bytes
    receipt_id: str = ""

    @property
    def id(self) -> str:
        found = re.search(rb'"id":"(chatcmpl-[0-9a-f]{32})"', self.received)
        assert found is not None
        return found[1].decode()

    @property
    def text(self) -> str:
        """What the signature must be over (wire contract 5.1)."""
        return f"{hashlib.sha256(self.sent).hexdigest()}:{hashlib.sha256(self.received).hexdigest()}"


@contextmanager
def posted(service: Running, body: bytes) -> Iterator[httpx2.Response]:
    """The answer to a chat request, its body not read yet."""
    with httpx2.stream("POST", service.url + "/v1/chat/completions", content=body, timeout=60) as response:
        assert response.status_code == 200
        yield response


def killed_at_the_last_byte(service: Running, number: int) -> Exchanged:
    """Ask, read, and kill the service in the instant in which the last byte is here; every other answer streams."""
    sent = json.dumps({**HELLO, "max_tokens": 1 + number % 3, "stream": number % 2 == 0}).encode()
    with posted(service, sent) as response:
        length = int(response.headers.get("content-length", -1))
        received = b""
        for data in response.iter_raw():
            received += data
            if len(received) == length or received.endswith(DONE):
                service.process.kill()
                break
    service.process.wait(10)
    return Exchanged(sent, received, response.headers["x-receipt-id"])


def check_signatures(service: Running, exchanged: Exchanged) -> set[str]:
    """Both signatures are there, over these bytes, by the addresses that they name; the addresses."""
    addresses = set()
    for algo in Algo:
        proof = httpx2.get(f"{service.url}/v1/signature/{exchanged.id}", params={"signing_algo": algo.value})
        assert proof.status_code == 200, proof.text
        document = proof.json()
        assert document["text"] == exchanged.text
        addresses.add(verify_text(document["text"], document["signature"], document["signing_address"], algo))
    return addresses


def check_receipt(service: Running, verifier: Verifier, exchanged: Exchanged) -> str:
    """The receipt proves this exchange as complete, by either of its ids; the digest of the keyset it names."""
    by_its_id, by_chat_id = (
        httpx2.get(f"{service.url}/v1/aci/receipts/{each}") for each in (exchanged.receipt_id, exchanged.id)
    )
    assert by_its_id.status_code == 200, by_its_id.text
    assert by_chat_id.content == by_its_id.content
    receipt = verifier.proven(
        by_its_id.content,
        receipt_id=exchanged.receipt_id,
        sent=exchanged.sent,
        response_sha256=hashlib.sha256(exchanged.received).digest(),
    )
    assert receipt.outcome == "complete"
    return receipt.members.workload_keyset_digest


def fresh_report(service: Running, verifier: Verifier) -> str:
    """Ask the service for its report and verify it; the digest of its keyset."""
    nonce = os.urandom(32).hex()
    report = httpx2.get(f"{service.url}/v1/aci/attestation", params={"nonce": nonce})
    assert report.status_code == 200
    return verifier.believe(report.content, nonce)


def archived_report(service: Running, digest: str) -> bytes:
    report = httpx2.get(f"{service.url}/v1/aci/keysets/{digest}")
    assert report.status_code == 200, report.text
    return report.content


def reports_on_disk(home: Path) -> set[str]:
    """The digests of the keysets whose reports a service that was killed has left in its store."""
    with closing(sqlite3.connect(f"file:{home / 'confide.db'}?mode=ro", uri=True)) as db:
        return {digest for (digest,) in db.execute("SELECT digest FROM reports")}


@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_every_proof_is_there_after_a_kill_at_the_last_byte(engine_home: Path, tmp_path: Path, rounds: int) -> None:
    """The receipt of each answer that a client saw the end of, its signature, and the report of its keyset."""
    home = home_with_weights(tmp_path, engine_home)
    answers: list[Exchanged] = []
    digests: list[str] = []
    for number in range(rounds):
        with running(home) as service:
            verifier = Verifier(service.url, home)
            digests.append(fresh_report(service, verifier))
            for answer in answers[-1:]:
                check_signatures(service, answer)
                check_receipt(service, verifier, answer)
            answers.append(killed_at_the_last_byte(service, number))
        assert digests[-1] in reports_on_disk(home)
    with running(home) as service:
        later = Verifier(service.url, home)  # of the keyset it sees what was kept, and no fresh report
        for digest in dict.fromkeys(digests):
            assert later.believe(archived_report(service, digest), None) == digest
        addresses = [check_signatures(service, answer) for answer in answers]
        named = [check_receipt(service, later, answer) for answer in answers]
    assert len({answer.receipt_id for answer in answers}) == rounds
    assert addresses == addresses[:1] * rounds  # the keys outlive the process too
    assert named == digests == digests[:1] * rounds  # and so does the keyset, within its time


def is_gone(process: int, within_s: float) -> bool:
    """Whether the process of this descriptor ends in time."""
    return bool(select.select([process], [], [], within_s)[0])


@needs_proc
def test_kill_in_mid_stream_leaves_no_engine_and_nothing_that_looks_whole(engine_home: Path, tmp_path: Path) -> None:
    home = home_with_weights(tmp_path, engine_home)
    sent = json.dumps({**HELLO, **NO_END}).encode()
    with running(home) as service, ExitStack() as closing:
        [engine] = [os.pidfd_open(pid) for pid in engines_of(service)]
        closing.callback(os.close, engine)
        received = b""
        with posted(service, sent) as response:
            parts = response.iter_raw()
            while received.count(b"data: ") < 5:
                received += next(parts)
            service.process.kill()
            with pytest.raises(httpx2.RemoteProtocolError):  # not an end: the last chunk is missing
                b"".join(parts)
        assert is_gone(engine, GONE_WITHIN_S)
    with running(home) as service:
        proof = httpx2.get(f"{service.url}/v1/signature/{Exchanged(sent, received).id}")
    assert proof.status_code == 404


@needs_proc
def test_kill_of_the_engine_ends_the_stream_with_an_error_and_the_service_goes_on(
    engine_home: Path, tmp_path: Path
) -> None:
    sent = json.dumps({**HELLO, **NO_END}).encode()
    began = time.monotonic()
    with running(home_with_weights(tmp_path, engine_home)) as service:
        # A machine on which a whole start takes longer than usual gets as much longer.
        back_within_s = max(BACK_WITHIN_S, 2 * (time.monotonic() - began))
        [engine] = engines_of(service)
        received = b""
        with posted(service, sent) as response:
            for data in response.iter_raw():
                if received.count(b"data: ") < 5 <= (received + data).count(b"data: "):
                    os.kill(engine, signal.SIGKILL)
                    killed_at = time.monotonic()
                received += data
        with OpenAI(base_url=service.url + "/v1", api_key="any", max_retries=10) as client:  # it waits as it is told
            answer = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=1
            )
        assert time.monotonic() - killed_at < back_within_s
        assert answer.choices[0].finish_reason == "length"
        *_, tail, done, rest = received.split(b"\n\n")
        assert (done, rest) == (b"data: [DONE]", b"")
        error = json.loads(tail.removeprefix(b"data: "))["error"]
        assert (error["type"], error["code"], error["param"]) == ("upstream_error", 502, None)
        check_signatures(service, Exchanged(sent, received))  # it attests the bytes, not that they are all
        assert len(engines_of(service)) == 1
