"""The open proof (wire contract 7): the report and its nonces, keysets that stood before, sessions, and the headers of
every response.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from confide.config import Attester, Config, Model, Server
from confide.protocol.receipt import parse_receipt, signature_fault
from gateway_app import (
    MODEL,
    ScriptedGateway,
    answering,
    bearer,
    chat,
    raw_connection,
    raw_post,
    serving_scripted,
    token,
)
from scripted import sse_head
from shared_data import VECTORS

NONCE = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
REPORT = "/v1/aci/attestation"
MODELS = (Model(id=MODEL, upstream_model="scripted"),)
DOMAIN = "api.example.com"
ATTESTED = Config(model=MODELS, server=Server(tls="attested", domain=DOMAIN))

Document = dict[str, Any]


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        yield gateway


def nonce_cases(name: str) -> list[Any]:
    """A list of the public vectors, read in place; empty where they are not there."""
    file = VECTORS / "aci-nonce-cases.json"
    return json.loads(file.read_bytes())[name] if file.exists() else []


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(value: object) -> bytes:
    """Wire contract 0.2, rule 6."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def assert_binds(report: Document, nonce: str | None) -> None:
    """Steps 1 and 2 of wire contract 9.3, from its text alone; the hardware's own signature is the evidence tests'."""
    attestation = report["attestation"]
    digest = f"sha256:{sha256(canonical(attestation['workload_keyset']))}"
    assert report["workload_keyset_digest"] == digest
    quoted_nonce = "null" if nonce is None else f'"{nonce}"'
    statement = f'{{"keyset_digest":"{digest}","nonce":{quoted_nonce},"purpose":"aci.report_data.v1"}}'
    assert attestation["report_data"] == sha256(statement.encode())
    slot = attestation["report_data"] + "00" * 32
    evidence = attestation["evidence"]
    assert bytes.fromhex(evidence["quote"])[568:632].hex() == slot  # header 48, then the TD report (wire contract 6.3)
    assert evidence["quote_report_data"] == slot


async def report(gateway: ScriptedGateway, **query: str) -> Document:
    answer = await gateway.client.get(REPORT, params=query)
    assert answer.status_code == 200, answer.text
    document: Document = answer.json()
    return document


# The report.


async def test_a_report_binds_the_keyset_to_the_nonce(gateway: ScriptedGateway) -> None:
    assert_binds(await report(gateway, nonce=NONCE), NONCE)


async def test_a_report_without_a_nonce_shows_binding_only(gateway: ScriptedGateway) -> None:
    assert_binds(await report(gateway), None)


async def test_a_report_has_the_members_of_the_contract_and_no_others(gateway: ScriptedGateway) -> None:
    document = await report(gateway, nonce=NONCE)
    assert set(document) == {"api_version", "workload_keyset_digest", "attestation", "service_capabilities"}
    assert document["api_version"] == "aci/1"
    assert document["service_capabilities"] == {"supported_e2ee_versions": [], "serving": "direct"}
    attestation = document["attestation"]
    assert set(attestation) == {"tee_type", "workload_keyset", "report_data", "source_provenance", "evidence"}
    assert attestation["tee_type"] == "tdx"
    assert set(attestation["source_provenance"]) == {"repo_url", "repo_commit", "image_digest", "image_provenance"}
    keyset = attestation["workload_keyset"]
    assert set(keyset) == {
        "subject", "not_after", "receipt_signing_keys", "e2ee_public_keys", "tls_public_keys",
    }  # fmt: skip
    (key,) = keyset["receipt_signing_keys"]
    assert (key["algo"], len(key["public_key"])) == ("ed25519", 64)
    evidence = attestation["evidence"]
    assert evidence["simulated"] is True  # nothing that this service says may be taken for hardware
    json.loads(evidence["event_log"])
    assert sha256(evidence["app_compose"].encode()) in evidence["event_log"]


async def test_a_report_with_a_nonce_is_made_anew_and_not_to_be_stored(gateway: ScriptedGateway) -> None:
    first = await gateway.client.get(REPORT, params={"nonce": NONCE})
    second = await gateway.client.get(REPORT, params={"nonce": NONCE[::-1]})
    assert first.headers["cache-control"] == second.headers["cache-control"] == "no-store"
    assert_binds(second.json(), NONCE[::-1])
    assert first.json()["workload_keyset_digest"] == second.json()["workload_keyset_digest"]


async def test_a_report_without_a_nonce_is_the_same_for_everyone(gateway: ScriptedGateway) -> None:
    key = await gateway.new_key()
    answers = [await gateway.client.get(REPORT, headers=headers) for headers in ({}, bearer(key), bearer("wrong"))]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.content for answer in answers}) == 1
    assert "cache-control" not in answers[0].headers


@pytest.mark.skipif(not VECTORS.exists(), reason="the public vectors are not beside this checkout")
def test_the_vectors_of_nonces_are_there_to_be_tried() -> None:
    assert len(nonce_cases("accept")) >= 2
    assert len(nonce_cases("reject_400_invalid_request_error")) >= 8


@pytest.mark.parametrize("nonce", nonce_cases("accept"), ids=repr)
async def test_a_nonce_that_the_vectors_accept(gateway: ScriptedGateway, nonce: str | None) -> None:
    assert_binds(await report(gateway, **({} if nonce is None else {"nonce": nonce})), nonce)


@pytest.mark.parametrize("nonce", nonce_cases("reject_400_invalid_request_error"), ids=repr)
async def test_a_nonce_that_the_vectors_refuse(gateway: ScriptedGateway, nonce: str) -> None:
    await assert_nonce_refused(gateway, f"nonce={nonce}")


@pytest.mark.parametrize(
    "query",
    [
        "nonce=",
        f"nonce={NONCE.upper()}",
        f"nonce={NONCE[:-1]}",
        f"nonce=0x{NONCE[2:]}",
        f"nonce={NONCE}%0a",
        "nonce=%D9%A3" + "%D9%A3" * 63,
        f"nonce={NONCE}&nonce={NONCE}",
        f"nonce={NONCE}&nonce=",
        "nonce=%22,%22x%22:%22",
    ],
)
async def test_any_other_nonce_is_refused_without_being_repeated(gateway: ScriptedGateway, query: str) -> None:
    await assert_nonce_refused(gateway, query)


async def assert_nonce_refused(gateway: ScriptedGateway, query: str) -> None:
    answer = await gateway.client.get(f"{REPORT}?{query}")
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "nonce", None)
    assert NONCE not in answer.text.lower()


# The host, where the TLS key is listed for one (wire contract 7.3).


@pytest.mark.parametrize("host", [DOMAIN, f"{DOMAIN}:8443", f"{DOMAIN}.", "API.Example.COM", f"{DOMAIN}.:1"])
async def test_a_listed_host_selects_its_tls_key(tmp_path: Path, host: str) -> None:
    async with serving_scripted(tmp_path, answering("Hi"), config=ATTESTED) as gateway:
        for query in ({}, {"nonce": NONCE}):
            answer = await gateway.client.get(REPORT, params=query, headers={"Host": host})
            assert answer.status_code == 200, answer.text
            assert_binds(answer.json(), query.get("nonce"))
            attestation = answer.json()["attestation"]
            spki = gateway.attester.workload_keys.tls.spki_sha256.hex()
            listed = {"spki_sha256": spki, "domain": DOMAIN}
            assert attestation["workload_keyset"]["tls_public_keys"] == [listed]
            assert attestation["evidence"]["downstream_tls_binding"] == listed


@pytest.mark.parametrize("host", ["127.0.0.1", "example.com", f"x.{DOMAIN}", f"{DOMAIN}@evil", f"{DOMAIN},evil", ""])
async def test_a_host_that_is_not_listed_has_no_report(tmp_path: Path, host: str) -> None:
    async with serving_scripted(tmp_path, answering("Hi"), config=ATTESTED) as gateway:
        answer = await gateway.client.get(REPORT, headers={"Host": host})
        assert answer.status_code == 404
        assert answer.json()["error"]["type"] == "not_found"
        assert "evil" not in answer.text


async def test_where_no_host_is_listed_any_will_do(tmp_path: Path) -> None:
    config = Config(model=MODELS, server=Server(tls="attested"))
    async with serving_scripted(tmp_path, answering("Hi"), config=config) as gateway:
        document = await report(gateway, nonce=NONCE)
        (key,) = document["attestation"]["workload_keyset"]["tls_public_keys"]
        assert set(key) == {"spki_sha256"}
        assert "downstream_tls_binding" not in document["attestation"]["evidence"]


async def test_a_key_from_a_file_is_not_listed(tmp_path: Path) -> None:
    config = Config(model=MODELS, server=Server(tls_cert="c.pem", tls_key="k.pem"))
    async with serving_scripted(tmp_path, answering("Hi"), config=config, tls_spki_sha256=b"\1" * 32) as gateway:
        assert (await report(gateway))["attestation"]["workload_keyset"]["tls_public_keys"] == []


# Keysets that stood before.


async def test_the_report_of_a_keyset_is_kept_under_its_digest(gateway: ScriptedGateway) -> None:
    await gateway.app.archive.keep_current()
    document = await report(gateway)
    answer = await gateway.client.get(f"/v1/aci/keysets/{document['workload_keyset_digest']}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert_binds(answer.json(), None)
    assert answer.json() == document


async def test_a_receipt_can_be_verified_after_the_keyset_was_rotated(tmp_path: Path) -> None:
    config = Config(model=MODELS, attester=Attester(keyset_lifetime_s=10))
    clock = Clock(1_790_000_000.0)
    async with serving_scripted(tmp_path, answering("Hi"), config=config, now=clock) as gateway:
        await gateway.app.archive.keep_current()
        answer = await gateway.post()
        clock.now += 11  # the keyset has expired, and the next one stands
        await gateway.app.archive.keep_current()
        receipt = (await gateway.client.get(f"/v1/aci/receipts/{answer.headers['x-receipt-id']}")).json()
        past = receipt["workload_keyset_digest"]
        assert past == answer.headers["x-aci-keyset-digest"]
        assert past != (await report(gateway))["workload_keyset_digest"]
        kept = (await gateway.client.get(f"/v1/aci/keysets/{past}")).json()
        assert_binds(kept, None)
        keys = kept["attestation"]["workload_keyset"]["receipt_signing_keys"]
        assert [key["key_id"] for key in keys] == [receipt["key_id"]]
        clock.now += 3600  # the receipt's time is over, and so is its keyset's
        assert (await gateway.client.get(f"/v1/aci/keysets/{past}")).status_code == 404


async def test_an_answer_that_outlives_its_keyset_is_receipted_under_the_one_it_began_with(tmp_path: Path) -> None:
    config = Config(model=MODELS, attester=Attester(keyset_lifetime_s=10))
    clock, gate = Clock(1_790_000_000.0), asyncio.Event()
    script = [sse_head(), token("x"), gate, *answering("y")[1:]]
    async with serving_scripted(tmp_path, script, config=config, now=clock) as gateway:
        began = gateway.app.keyset().epoch
        async with gateway.client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
            parts = answer.aiter_raw()
            await anext(parts)
            clock.now += 8
            gate.set()
            async for _ in parts:
                pass
        receipt = await gateway.client.get(f"/v1/aci/receipts/{answer.headers['x-receipt-id']}")
        assert answer.headers["x-aci-keyset-digest"] == receipt.json()["workload_keyset_digest"] == began.digest
        assert signature_fault(parse_receipt(receipt.content), began.keyset) is None
        assert receipt.headers["x-aci-keyset-digest"] != began.digest  # what is asked now is answered under the next


class Clock:
    """A clock that only the test moves."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("digest", ["sha256:" + "0" * 64, "0" * 64, "sha256:", "SHA256:" + "0" * 64, "x", "%00", "%ff"])
async def test_an_unknown_keyset_is_not_found(gateway: ScriptedGateway, digest: str) -> None:
    answer = await gateway.client.get(f"/v1/aci/keysets/{digest}")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found"


# Sessions: this service has no second hop.


@pytest.mark.parametrize("query", ["", "?model=vendor/model", "?upstream_name=x&model=y", "?provider=x"])
async def test_there_are_no_sessions(gateway: ScriptedGateway, query: str) -> None:
    answer = await gateway.client.get(f"/v1/aci/sessions{query}")
    assert (answer.status_code, answer.json()) == (200, {"api_version": "aci/1", "sessions": []})


@pytest.mark.parametrize("session_id", ["ab" * 32, "as_" + "ab" * 32, "x"])
async def test_no_session_is_found(gateway: ScriptedGateway, session_id: str) -> None:
    answer = await gateway.client.get(f"/v1/aci/sessions/{session_id}")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found")


# What the service says of itself.


async def test_the_front_page_names_the_keyset(gateway: ScriptedGateway) -> None:
    said = (await gateway.client.get("/")).json()
    assert said == {
        "api_version": "aci/1",
        "workload_keyset_digest": (await report(gateway))["workload_keyset_digest"],
    }


@pytest.mark.parametrize("path", [REPORT, "/v1/aci/sessions", "/v1/aci/keysets/x", "/v1/aci/sessions/x", "/"])
async def test_what_verifies_is_open_to_everyone(gateway: ScriptedGateway, path: str) -> None:
    await gateway.new_key()
    for headers in ({}, bearer("wrong"), {"Authorization": "Bearer a", "x-api-key": "b"}):
        assert (await gateway.client.get(path, headers=headers)).status_code in (200, 404)


# The headers of every response (wire contract 1).

RESPONSES = {
    "an answer": ("POST", "/v1/chat/completions", chat(), 200),
    "a stream": ("POST", "/v1/chat/completions", chat(stream=True), 200),
    "a request that breaks a rule": ("POST", "/v1/chat/completions", chat(temperature=9), 400),
    "an unknown model": ("POST", "/v1/chat/completions", chat() | {"model": "x"}, 404),
    "a wrong method": ("GET", "/v1/chat/completions", None, 405),
    "a wrong method elsewhere": ("DELETE", "/v1/models", None, 405),
    "an unknown path": ("GET", "/nowhere", None, 404),
    "an unknown receipt": ("GET", "/v1/aci/receipts/x", None, 404),
    "a preflight": ("OPTIONS", "/v1/chat/completions", None, 204),
    "a preflight to nowhere": ("OPTIONS", "/nowhere", None, 204),
    "a bad nonce": ("GET", f"{REPORT}?nonce=x", None, 400),
    "the catalogue": ("GET", "/v1/models", None, 200),
    "the legacy report": ("GET", "/v1/attestation/report", None, 200),
    "the front page": ("GET", "/", None, 200),
    "health": ("GET", "/health", None, 200),
}


@pytest.mark.parametrize(("method", "path", "body", "status"), list(RESPONSES.values()), ids=list(RESPONSES))
async def test_every_response_names_the_version_and_the_keyset(
    gateway: ScriptedGateway, method: str, path: str, body: Document | None, status: int
) -> None:
    answer = await gateway.client.request(method, path, json=body)
    assert answer.status_code == status
    assert_announced(gateway, answer)


async def test_so_do_a_refusal_for_its_size_and_one_for_its_key(tmp_path: Path) -> None:
    config = Config(model=MODELS, server=Server(max_body_bytes=1000))
    async with serving_scripted(tmp_path, answering("Hi"), config=config) as gateway:
        too_large = await gateway.client.post("/v1/chat/completions", json=chat("x" * 2000))
        assert too_large.status_code == 413
        assert_announced(gateway, too_large)
        await gateway.new_key()
        no_key = await gateway.post()
        assert no_key.status_code == 401
        assert_announced(gateway, no_key)


async def test_so_does_a_fault_outside_the_prompt_path(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(gateway.store, "report", broken)
    answer = await gateway.client.get("/v1/aci/keysets/sha256:" + "0" * 64)
    assert answer.status_code == 500
    assert_announced(gateway, answer)


async def test_so_does_the_answer_to_what_is_not_http(gateway: ScriptedGateway) -> None:
    async with raw_connection(gateway.url) as connection:
        await connection.send(b"SSH-2.0-client\r\n\r\n")
        answer = await connection.answer()
    assert answer.status == 400
    assert answer.header("x-aci-version") == "aci/1"
    assert answer.header("x-aci-keyset-digest") == gateway.app.keyset().epoch.digest


async def test_each_header_comes_once(gateway: ScriptedGateway) -> None:
    async with raw_connection(gateway.url) as connection:
        await connection.send(raw_post(json.dumps(chat()).encode()))
        answer = await connection.answer()
    names = [name for name, _ in answer.headers]
    for name in ("x-aci-version", "x-aci-keyset-digest", "x-receipt-id", "access-control-expose-headers"):
        assert names.count(name) == 1
    assert "x-aci-identity" not in names


def assert_announced(gateway: ScriptedGateway, answer: httpx2.Response) -> None:
    assert answer.headers["x-aci-version"] == "aci/1"
    assert answer.headers["x-aci-keyset-digest"] == gateway.app.keyset().epoch.digest
    assert "x-aci-keyset-digest" in answer.headers["access-control-expose-headers"].lower()
