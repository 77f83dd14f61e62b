"""The attacker is a tenant with a key of their own, or nobody, and has got hold of another tenant's receipt id.

They want the receipt: what was asked for which model and when, and hashes to test guesses of a prompt against. Against
the real gateway: a stranger's receipt and one that never was are the same bytes to them, with the official client too.
The twin: its owner gets it, with the same key however it is sent.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx2
import pytest

import confide
from attested_service import AttestedService
from callers import refusal
from confide.protocol.receipt import parse_receipt
from confide.verifier.policy import Policy
from gateway_app import ScriptedGateway, answering, bearer, chat, serving_scripted
from man_in_the_middle import between

NEVER = "rcpt-000000000000000000000000"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path, answering("Done")) as gateway:
        yield gateway


def comparable(response: httpx2.Response) -> tuple[int, bytes, list[tuple[str, str]]]:
    """Everything that a tenant can see of a response, but for the time."""
    headers = [(name, value) for name, value in response.headers.multi_items() if name != "date"]
    return response.status_code, response.content, headers


async def test_the_owner_gets_the_receipt_by_either_id_and_header(gateway: ScriptedGateway) -> None:
    key = await gateway.new_key("alice")
    answer = await gateway.client.post("/v1/chat/completions", json=chat("Hello"), headers=bearer(key))
    for name in (answer.headers["x-receipt-id"], answer.json()["id"]):
        for headers in (bearer(key), {"x-api-key": key}):
            found = await gateway.client.get(f"/v1/aci/receipts/{name}", headers=headers)
            assert found.status_code == 200
            assert parse_receipt(found.content).members.receipt_id == answer.headers["x-receipt-id"]


async def test_to_another_tenant_it_is_not_there(gateway: ScriptedGateway) -> None:
    alice, mallory = await gateway.new_key("alice"), await gateway.new_key("mallory")
    answer = await gateway.client.post("/v1/chat/completions", json=chat("Hello"), headers=bearer(alice))
    never = await gateway.client.get(f"/v1/aci/receipts/{NEVER}", headers=bearer(mallory))
    assert never.status_code == 404
    for name in (answer.headers["x-receipt-id"], answer.json()["id"]):
        for stranger in (mallory, "sk-made-up", alice.upper(), alice[:-1], alice + "x"):
            found = await gateway.client.get(f"/v1/aci/receipts/{name}", headers=bearer(stranger))
            assert comparable(found) == comparable(never)


async def test_to_nobody_it_asks_for_a_credential_and_says_nothing_else(gateway: ScriptedGateway) -> None:
    alice = await gateway.new_key("alice")
    answer = await gateway.client.post("/v1/chat/completions", json=chat("Hello"), headers=bearer(alice))
    found = await gateway.client.get(f"/v1/aci/receipts/{answer.headers['x-receipt-id']}")
    assert found.status_code == 401
    assert found.json()["error"]["type"] == "unauthorized"
    assert b"sha256" not in found.content


async def test_the_client_of_another_tenant_has_nothing_proven_by_it(gateway: ScriptedGateway, tmp_path: Path) -> None:
    """Alice's prompt, asked in Mallory's name by a relay that swapped the keys: Alice's client refuses the answer."""
    alice, mallory = await gateway.new_key("alice"), await gateway.new_key("mallory")
    policy = Policy(trust_roots=(tmp_path / "simulator/root.pem",), require_channel=False)

    there = SimpleNamespace(tls=False, port=httpx2.URL(gateway.url).port)
    with between(cast("AttestedService", there)) as relay, confide.Client(policy, headers=bearer(alice)) as client:

        def ask() -> httpx2.Response:
            return client.post(relay.url + "/v1/chat/completions", json=chat("Hello"))

        assert confide.proof(await asyncio.to_thread(ask)).ok
        assert len(alice) == len(mallory)
        relay.to_service = lambda data: (
            data.replace(alice.encode(), mallory.encode()) if data.startswith(b"POST") else data
        )
        error = await asyncio.to_thread(lambda: refusal(ask, "receipt-1"))
    assert "status 404" in error.message
