"""What a caller asks of the serving itself, in `provider` (wire contract 7.4), of a service that answers itself."""

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from confide.errors import NotReady
from confide.protocol.receipt import FORWARDED, RECEIVED, Receipt, parse_receipt, signature_fault
from gateway_app import ScriptedGateway, answering, assert_receipted, chat, serving_scripted
from shared_data import VECTORS

SESSION = "95ad1cb4dd25445808c2e9d116caf420b05703730b506395e8fc1ca6faeae28f"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        yield gateway


def cases() -> list[Any]:
    """The public vectors, read in place; empty where they are not there."""
    file = VECTORS / "aci-provider-constraints.json"
    return json.loads(file.read_bytes())["cases"] if file.exists() else []


def error_of(answer: httpx2.Response) -> dict[str, object]:
    error: dict[str, object] = answer.json()["error"]
    return error


async def receipt_of(gateway: ScriptedGateway, answer: httpx2.Response) -> Receipt:
    document = await gateway.client.get(f"/v1/aci/receipts/{answer.headers['x-receipt-id']}")
    receipt = parse_receipt(document.content)
    assert signature_fault(receipt, gateway.app.keyset().epoch.keyset) is None
    return receipt


def digest(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


@pytest.mark.skipif(not VECTORS.exists(), reason="the public vectors are not beside this checkout")
def test_the_vectors_are_there_to_be_tried() -> None:
    assert len(cases()) >= 18


def status_for(result: str) -> int:
    """What a direct service answers where the vectors say this."""
    if result.startswith("400"):
        return 400
    return 412 if "pinned" in result else 200


@pytest.mark.parametrize("case", cases(), ids=lambda case: json.dumps(case["provider"])[:60])
async def test_a_direct_service_does_with_each_vector_what_it_must(
    gateway: ScriptedGateway, case: dict[str, Any]
) -> None:
    """Unconstrained and required are served: every answer comes from the attested workload. A pin never can be."""
    answer = await gateway.post(provider=case["provider"])
    expected = status_for(case["result"])
    assert answer.status_code == expected
    if expected == 400:
        assert error_of(answer)["type"] == "invalid_request_error"
        assert "x-receipt-id" not in answer.headers
    assert len(gateway.engine.requests) == (1 if expected == 200 else 0)


@pytest.mark.parametrize(
    ("member", "value", "param"),
    [
        ("aci_verified", 0, "provider.aci_verified"),
        ("aci_verified", "false", "provider.aci_verified"),
        ("aci_verified", None, "provider.aci_verified"),
        ("aci_session_ids", None, "provider.aci_session_ids"),
        ("aci_session_ids", [SESSION, 1], "provider.aci_session_ids"),
        ("aci_session_ids", [SESSION] * 1025, "provider.aci_session_ids"),
        ("aci_new_constraint", 1, "provider.aci_new_constraint"),
        ("aci_My own words", 1, "provider"),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_a_constraint_that_is_not_understood_is_refused_and_never_ignored(
    gateway: ScriptedGateway, member: str, value: object, param: str
) -> None:
    answer = await gateway.post(provider={"order": ["a"], member: value})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param
    assert "My own words" not in answer.text
    assert not gateway.engine.requests


@pytest.mark.parametrize("provider", [None, {}, {"order": ["a"], "zdr": True}])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_without_constraints_is_forwarded_untouched(
    gateway: ScriptedGateway, stream: bool, provider: object
) -> None:
    sent = json.dumps(chat("Hi", stream=stream, provider=provider), indent=1).encode()
    answer = await gateway.client.post("/v1/chat/completions", content=sent)
    receipt = await receipt_of(gateway, answer)
    assert receipt.body_hash(RECEIVED) == receipt.body_hash(FORWARDED) == digest(sent)


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_constraint_is_consumed_and_the_receipt_shows_it(
    gateway: ScriptedGateway, stream: bool, value: bool
) -> None:
    sent = json.dumps(chat("Hé", stream=stream, provider={"aci_verified": value}), indent=1).encode()
    answer = await gateway.client.post("/v1/chat/completions", content=sent)
    receipt = await receipt_of(gateway, answer)
    assert receipt.body_hash(RECEIVED) == digest(sent)
    without = json.dumps(chat("Hé", stream=stream), separators=(",", ":"), ensure_ascii=False).encode()
    assert receipt.body_hash(FORWARDED) == digest(without)
    assert receipt.body_hash(FORWARDED) != receipt.body_hash(RECEIVED)


async def test_what_else_the_provider_object_says_stays(gateway: ScriptedGateway) -> None:
    request = b'{"model":"vendor/model","messages":[{"role":"user","content":"Hi"}],"provider":%b}'
    sent, kept = request % b'{"order":["x"],"aci_verified":true}', request % b'{"order":["x"]}'
    receipt = await receipt_of(gateway, await gateway.client.post("/v1/chat/completions", content=sent))
    assert receipt.body_hash(FORWARDED) == digest(kept)


@pytest.mark.parametrize("stream", [False, True])
async def test_pinned_sessions_are_refused_before_anything_is_forwarded(gateway: ScriptedGateway, stream: bool) -> None:
    sent = json.dumps(chat(stream=stream, provider={"aci_session_ids": [SESSION]})).encode()
    answer = await gateway.client.post("/v1/chat/completions", content=sent)
    assert answer.status_code == 412
    assert error_of(answer) == {
        "message": error_of(answer)["message"],
        "type": "session_not_accepted",
        "code": None,
        "param": "provider.aci_session_ids",
    }
    assert SESSION not in answer.text
    assert not gateway.engine.requests
    receipt = await assert_receipted(gateway, answer.content, "refused", sent=sent, is_forwarded=False)
    assert receipt.members.receipt_id == answer.headers["x-receipt-id"]
    assert receipt.members.chat_id is None
    events = [event.type for event in receipt.members.event_log]
    assert events == ["request.received", "response.returned", "response.outcome"]
    assert receipt.upstream == ()


async def test_a_refusal_that_cannot_be_receipted_is_a_500(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refusing(_: object) -> None:
        raise NotReady("no room")

    monkeypatch.setattr(gateway.store, "commit", refusing)
    answer = await gateway.post(provider={"aci_session_ids": [SESSION]})
    assert answer.status_code == 500
    assert error_of(answer)["type"] == "internal_error"
    assert "x-receipt-id" not in answer.headers
    assert gateway.last_line()["receipt"] is None


async def test_a_pin_needs_a_key_and_a_model_like_any_other_request(gateway: ScriptedGateway) -> None:
    assert (await gateway.post(model="none", provider={"aci_session_ids": [SESSION]})).status_code == 404
    await gateway.new_key()
    assert (await gateway.post(provider={"aci_session_ids": [SESSION]})).status_code == 401
