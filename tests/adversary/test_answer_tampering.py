"""The attacker sits between client and service: reads and rewrites every byte, and runs a simulated TEE of their own.

They want `confide ask --signature` to call something verified that the attested key did not sign, or signed for
another exchange. They cannot make the client trust another root. The twin of every attack is the same relay that
changes nothing.
"""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typer.testing import CliRunner

from confide.cli.main import app
from confide.errors import ConfideError
from confide.gateway.app import Gateway
from confide.protocol.signature import Algo, signature_text
from gateway_app import ScriptedGateway, answering, chat, listening, serving_scripted

QUESTION = "What is the answer?"
ANSWER = ("The answer", " is ", "42.")

Alter = Callable[["Scene", Request, bytes], Awaitable[bytes]]
Document = dict[str, Any]


@dataclass
class Scene:
    """The honest service, and another one that the attacker runs."""

    honest: ScriptedGateway
    attackers: ScriptedGateway
    sent: bytes = b""
    received: bytes = b""


@dataclass
class Attack:
    """What is changed on the way: by default nothing."""

    question: Alter | None = None
    answer: Alter | None = None
    signature: Alter | None = None
    report: Alter | None = None

    def of_response(self, path: str) -> Alter | None:
        kinds = {"/v1/chat": self.answer, "/v1/sign": self.signature, "/v1/atte": self.report}
        return kinds.get(path[:8])


class ManInTheMiddle:
    """Relays to the honest service as an ASGI application, and alters what the attack names."""

    def __init__(self, scene: Scene, attack: Attack) -> None:
        self._scene = scene
        self._attack = attack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        if request.method == "POST":
            self._scene.sent = body
            body = await self._altered(self._attack.question, request, body)
        response = await self._scene.honest.client.request(
            request.method,
            f"{request.url.path}?{request.url.query}",
            content=body,
            headers={"content-type": "application/json"},
        )
        alter = self._attack.of_response(request.url.path)
        answer = await self._altered(alter, request, response.content)
        if request.method == "POST":
            self._scene.received = answer
        headers = {"content-type": response.headers["content-type"]}
        status = response.status_code if alter is None else 200
        await Response(answer, status_code=status, headers=headers)(scope, receive, send)

    async def _altered(self, alter: Alter | None, request: Request, body: bytes) -> bytes:
        return body if alter is None else await alter(self._scene, request, body)


@dataclass
class Outcome:
    """How `confide ask --json` ended: exit status, its JSON object (empty when it printed none), and why."""

    status: int
    document: Document
    error: ConfideError | None = None

    def ids(self, status: str) -> set[str]:
        return {check["name"] for check in self.document.get("checks", []) if check["status"] == status}


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with contextlib.AsyncExitStack() as stack:
        honest, attackers = tmp_path / "honest", tmp_path / "attackers"
        honest.mkdir()
        attackers.mkdir()
        yield Scene(
            await stack.enter_async_context(serving_scripted(honest, answering(*ANSWER))),
            await stack.enter_async_context(serving_scripted(attackers, answering(*ANSWER))),
        )


async def ask(scene: Scene, home: Path, attack: Attack, *arguments: str) -> Outcome:
    """The command, through the man in the middle. `home`: where the honest simulator's root is."""
    async with listening(cast("Gateway", ManInTheMiddle(scene, attack))) as url:
        proof = [] if "--signature" in arguments else ["--signature", "ecdsa"]
        command = ["ask", QUESTION, "--json", "--offline", "--base-url", url, *proof, *arguments]
        environ = {"CONFIDE_HOME": str(home), "CONFIDE_API_KEY": None}
        result = await asyncio.to_thread(CliRunner().invoke, app, command, env=environ)
    document = json.loads(result.stdout) if result.stdout else {}
    if result.exception is None:
        return Outcome(result.exit_code, document)
    assert isinstance(result.exception, ConfideError), result.exception
    return Outcome(result.exception.exit_status, document, result.exception)


# The changes, each as small as it can be.


async def one_letter_of_the_answer(_: Scene, __: Request, body: bytes) -> bytes:
    assert b"42." in body
    return body.replace(b"42.", b"43.")


async def one_space_more_at_the_end(_: Scene, __: Request, body: bytes) -> bytes:
    return body + b"\n"


async def one_letter_of_the_question(_: Scene, __: Request, body: bytes) -> bytes:
    assert b"answer" in body
    return body.replace(b"answer", b"Answer")


async def one_event_less(_: Scene, __: Request, body: bytes) -> bytes:
    events = body.split(b"\n\n")
    assert len(events) > 4
    return b"\n\n".join(events[:2] + events[3:])


async def the_last_event_missing(_: Scene, __: Request, body: bytes) -> bytes:
    return body.removesuffix(b"data: [DONE]\n\n")


async def signature_of_another_answer(scene: Scene, request: Request, _: bytes) -> bytes:
    other = await scene.honest.client.post("/v1/chat/completions", json=chat("Something else"))
    return (await scene.honest.client.get(f"/v1/signature/{other.json()['id']}?{request.url.query}")).content


async def signature_by_the_attacker(scene: Scene, request: Request, _: bytes) -> bytes:
    """A correct signature over the right hashes, by keys in the attacker's own simulated TEE."""
    algo = Algo(request.query_params["signing_algo"])
    keys = scene.attackers.attester.keys
    text = signature_text(hashlib.sha256(scene.sent).digest(), hashlib.sha256(scene.received).digest())
    return json.dumps(
        {
            "text": text,
            "signature": keys.sign(text, algo),
            "signing_address": keys.address(algo),
            "signing_algo": algo.value,
        }
    ).encode()


async def attackers_address_on_the_signature(scene: Scene, _: Request, body: bytes) -> bytes:
    document = json.loads(body)
    return json.dumps({**document, "signing_address": scene.attackers.attester.keys.address(Algo.ECDSA)}).encode()


async def no_signature(_: Scene, __: Request, body: bytes) -> bytes:
    return json.dumps({name: value for name, value in json.loads(body).items() if name != "signature"}).encode()


async def fetched(client: httpx2.AsyncClient, request: Request, **changes: str) -> bytes:
    """A report for the client's own query, with changes."""
    query = {**request.query_params, **changes}
    response = await client.get(
        "/v1/attestation/report", params={name: value for name, value in query.items() if value}
    )
    assert response.status_code == 200
    return response.content


async def report_with_an_old_nonce(scene: Scene, request: Request, _: bytes) -> bytes:
    return await fetched(scene.honest.client, request, nonce="ab" * 32)


async def old_report_relabelled_with_the_new_nonce(scene: Scene, request: Request, _: bytes) -> bytes:
    old = await fetched(scene.honest.client, request, nonce="ab" * 32)
    nonce = request.query_params["nonce"]
    payload = json.dumps({"nonce": nonce, "evidence_list": [], "arch": "HOPPER"})
    return relabelled(old, request_nonce=nonce, nvidia_payload=payload)


async def old_report_patched_to_the_last_byte(scene: Scene, request: Request, _: bytes) -> bytes:
    """The new nonce also where the quote holds it, which breaks the quote's signature."""
    old = await fetched(scene.honest.client, request, nonce="ab" * 32)
    return old.replace(b"ab" * 32, request.query_params["nonce"].encode())


def relabelled(report: bytes, **members: str) -> bytes:
    """The report with these members set in every attestation object."""

    def renamed(value: object) -> object:
        if isinstance(value, dict):
            return {name: members.get(name) or renamed(member) for name, member in value.items()}
        return [renamed(member) for member in value] if isinstance(value, list) else value

    return json.dumps(renamed(json.loads(report))).encode()


async def report_of_another_service(scene: Scene, request: Request, _: bytes) -> bytes:
    return await fetched(scene.attackers.client, request, signing_address="")


async def report_of_another_service_under_the_signers_name(scene: Scene, request: Request, _: bytes) -> bytes:
    theirs = await fetched(scene.attackers.client, request, signing_address="")
    return relabelled(theirs, signing_address=scene.honest.attester.keys.address(Algo.ECDSA))


async def honest_quote_under_the_attackers_name(scene: Scene, request: Request, _: bytes) -> bytes:
    ours = await fetched(scene.honest.client, request, signing_address="")
    return relabelled(ours, signing_address=scene.attackers.attester.keys.address(Algo.ECDSA))


async def quote_of_the_other_key(scene: Scene, request: Request, _: bytes) -> bytes:
    """The same TEE, the Ed25519 key's quote under the ECDSA key's name."""
    other = await fetched(scene.honest.client, request, signing_algo="ed25519", signing_address="")
    return relabelled(other, signing_address=scene.honest.attester.keys.address(Algo.ECDSA), signing_algo="ecdsa")


async def attackers_own_report(scene: Scene, request: Request, _: bytes) -> bytes:
    return await fetched(scene.attackers.client, request)


async def nothing_attested(_: Scene, __: Request, ___: bytes) -> bytes:
    return b"{}"


async def no_collateral(_: Scene, __: Request, body: bytes) -> bytes:
    return json.dumps(without_collateral(json.loads(body))).encode()


def without_collateral(value: object) -> object:
    if isinstance(value, dict):
        return {name: without_collateral(member) for name, member in value.items() if name != "collateral"}
    return [without_collateral(member) for member in value] if isinstance(value, list) else value


async def other_software_shown(_: Scene, __: Request, body: bytes) -> bytes:
    assert b"image: confide-simulated" in body
    return body.replace(b"image: confide-simulated", b"image: audited-simulation")


ATTACKS = [
    pytest.param(Attack(answer=one_letter_of_the_answer), ["--stream"], {"response-hash"}, id="answer, streamed"),
    pytest.param(Attack(answer=one_letter_of_the_answer), ["--no-stream"], {"response-hash"}, id="answer, buffered"),
    pytest.param(Attack(answer=one_space_more_at_the_end), ["--no-stream"], {"response-hash"}, id="a space more"),
    pytest.param(Attack(question=one_letter_of_the_question), ["--stream"], {"request-hash"}, id="question"),
    pytest.param(Attack(answer=one_event_less), ["--stream"], {"response-hash"}, id="event dropped"),
    pytest.param(Attack(answer=the_last_event_missing), ["--stream"], {"response-hash"}, id="end dropped"),
    pytest.param(
        Attack(signature=signature_of_another_answer), [], {"request-hash", "response-hash"}, id="other answer's proof"
    ),
    pytest.param(
        Attack(answer=one_letter_of_the_answer, signature=signature_by_the_attacker, report=attackers_own_report),
        [],
        {"tdx.root"},
        id="all of it by the attacker's TEE",
    ),
    pytest.param(
        Attack(
            answer=one_letter_of_the_answer,
            signature=signature_by_the_attacker,
            report=honest_quote_under_the_attackers_name,
        ),
        [],
        {"binding.report-data"},
        id="attacker's key beside the honest quote",
    ),
    pytest.param(Attack(report=report_with_an_old_nonce), [], {"binding.report-data", "nonce", "gpu"}, id="old report"),
    pytest.param(
        Attack(report=old_report_relabelled_with_the_new_nonce),
        [],
        {"binding.report-data"},
        id="old report, relabelled",
    ),
    pytest.param(Attack(report=old_report_patched_to_the_last_byte), [], {"tdx.quote"}, id="old report, patched"),
    pytest.param(
        Attack(report=report_of_another_service), [], {"signer", "tdx.parse", "nonce"}, id="other service's report"
    ),
    pytest.param(
        Attack(report=report_of_another_service_under_the_signers_name),
        [],
        {"tdx.root", "binding.report-data"},
        id="other service's report, relabelled",
    ),
    pytest.param(
        Attack(report=honest_quote_under_the_attackers_name), [], {"signer", "tdx.parse", "nonce"}, id="other address"
    ),
    pytest.param(
        Attack(signature=attackers_address_on_the_signature, report=attackers_own_report),
        [],
        {"signature", "tdx.root"},
        id="attacker's address on the honest signature",
    ),
    pytest.param(Attack(report=quote_of_the_other_key), [], {"binding.report-data"}, id="other key's quote"),
    pytest.param(Attack(report=nothing_attested), [], {"signer", "tdx.parse", "nonce"}, id="empty report"),
    pytest.param(
        Attack(signature=no_signature),
        [],
        {"request-hash", "response-hash", "signature", "tdx.parse", "nonce"},
        id="no signature",
    ),
    pytest.param(Attack(report=other_software_shown), [], {"software"}, id="other software shown"),
]


@pytest.mark.parametrize(("attack", "arguments", "failed"), ATTACKS)
async def test_what_was_altered_is_named_and_not_verified(
    scene: Scene, tmp_path: Path, attack: Attack, arguments: list[str], failed: set[str]
) -> None:
    altered = await ask(scene, tmp_path / "honest", attack, *arguments)
    assert altered.status == 1
    assert altered.ids("fail") == failed
    assert altered.document["verdict"] == "NOT VERIFIED"


@pytest.mark.parametrize(
    "arguments", [["--stream"], ["--no-stream"], ["--signature", "ed25519"]], ids=lambda each: each[-1]
)
async def test_the_honest_twin_is_verified(scene: Scene, tmp_path: Path, arguments: list[str]) -> None:
    honest = await ask(scene, tmp_path / "honest", Attack(), *arguments)
    assert (honest.status, honest.error) == (0, None)
    assert honest.ids("fail") == set()
    assert honest.document["verdict"] == "VERIFIED"
    assert honest.document["answer"] == "".join(ANSWER)


async def test_an_address_that_did_not_sign_has_no_attestation_here(scene: Scene, tmp_path: Path) -> None:
    altered = await ask(scene, tmp_path / "honest", Attack(signature=attackers_address_on_the_signature))
    assert altered.status == 1
    assert "Signing address not found" in str(altered.error)


async def test_without_collateral_nobody_can_tell(scene: Scene, tmp_path: Path) -> None:
    stripped = await ask(scene, tmp_path / "honest", Attack(report=no_collateral))
    assert stripped.status == 3
    assert stripped.document["verdict"] == "PARTIAL"
    assert {"tdx.quote", "tdx.collateral", "binding.report-data", "software"} <= stripped.ids("skip")
    assert "collateral" in str(stripped.error)


async def test_without_collateral_an_altered_answer_is_still_found(scene: Scene, tmp_path: Path) -> None:
    attack = Attack(answer=one_letter_of_the_answer, report=no_collateral)
    assert (await ask(scene, tmp_path / "honest", attack)).status == 1


async def test_a_root_that_the_client_did_not_pin_counts_for_nothing(scene: Scene, tmp_path: Path) -> None:
    unpinned = await ask(scene, tmp_path / "nowhere", Attack())
    assert unpinned.status == 1
    assert "tdx.root" in unpinned.ids("fail")
    assert unpinned.document["anchors"] == []
    pinned = await ask(
        scene, tmp_path / "nowhere", Attack(), "--trust-root", str(tmp_path / "honest/simulator/root.pem")
    )
    assert pinned.status == 0
