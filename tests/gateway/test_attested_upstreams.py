"""Upstreams behind a second hop: verified before a prompt leaves, cited in receipts, refused otherwise (7.4 to 7.8)."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

import confide
from attested_service import ANSWER, MODEL, AttestedService, Reply, Seen, serving
from confide.attester.seed import load_seed
from confide.protocol.session import parse_session, session_id
from confide.simulator.pccs import SimulatedPccs
from confide.simulator.tdx import SimulatedTdxPlatform
from relay_app import (
    RelayGateway,
    answered,
    completion,
    model,
    serving_upstreams,
    upstream,
)
from scripted import ScriptedUpstream
from vendors import Vendors
from vendors import serving as listening_vendors

ATTESTED = '[server]\ntls = "attested"\n'


@pytest.fixture
def service(tmp_path: Path) -> Iterator[AttestedService]:
    with serving(tmp_path / "service", tls=True) as service:
        yield service


def aci(service: AttestedService, name: str = "second", **keys: Any) -> str:
    root = str(service.root)
    return upstream(name, "aci", service.url, **{"trust_roots": [root], "probe": "none", **keys})


@contextlib.asynccontextmanager
async def aggregating(home: Path, text: str, **options: Any) -> AsyncIterator[RelayGateway]:
    (home / "gateway").mkdir()
    async with serving_upstreams(home / "gateway", text, **options) as gateway:
        yield gateway


@pytest.fixture
async def gateway(tmp_path: Path, service: AttestedService) -> AsyncIterator[RelayGateway]:
    async with aggregating(tmp_path, ATTESTED + aci(service) + model('"second"')) as gateway:
        yield gateway


def broken_report(reply: Reply, _: Seen) -> Reply:
    document = reply.document
    document["attestation"]["report_data"] = "00" * 32
    return reply.holding(document)


def error_type(answer: httpx2.Response) -> str:
    kind: str = answer.json()["error"]["type"]
    return kind


async def current(gateway: RelayGateway, query: str = "") -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = (await gateway.client.get(f"/v1/aci/sessions{query}")).json()["sessions"]
    return listed


async def test_an_answer_cites_the_session_that_it_was_served_in(
    gateway: RelayGateway, service: AttestedService
) -> None:
    answer = await gateway.post()
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER
    receipt = await gateway.receipt(answer)
    [event] = receipt.upstream
    assert (event.result, event.required, event.model_id) == ("verified", True, MODEL)
    assert event.session_id is not None
    document = await gateway.client.get(f"/v1/aci/sessions/{event.session_id}")
    session = parse_session(document.content, event.session_id)
    assert session.established_at <= receipt.members.served_at <= session.expires_at
    [binding] = session.channel_binding
    assert binding.spki_sha256 == service.attester.workload_keys.tls.spki_sha256.hex()
    attested = session.claims.tee_attested
    assert (attested.status, attested.source) == ("asserted", "operator_asserted")
    assert str(attested.reason).startswith("SIMULATED TEE, no hardware protection: ")
    assert session.claims.extra["simulated"] is True
    assert session.claims.model_weights_provenance.status == "unknown"
    [listed] = await current(gateway)
    assert listed["session_id"] == event.session_id == session_id(document.json())
    assert "data" not in listed["evidence"]
    report = (await gateway.client.get("/v1/aci/attestation")).json()
    assert report["service_capabilities"]["serving"] == "aggregator"


async def test_sessions_are_found_by_upstream_and_by_model(gateway: RelayGateway) -> None:
    await gateway.post()
    assert len(await current(gateway, "?upstream_name=second")) == 1
    assert len(await current(gateway, "?provider=second&model=vendor/model")) == 1
    assert await current(gateway, "?upstream_name=other") == []
    assert await current(gateway, "?model=other") == []
    assert (await gateway.client.get(f"/v1/aci/sessions/{'0' * 64}")).status_code == 404
    assert (await gateway.client.get("/v1/aci/sessions/x")).status_code == 404


@dataclass
class Caller:
    """A verifying client of the gateway."""

    client: confide.AsyncClient
    root: Path

    async def ask(self, **members: object) -> httpx2.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "?"}], **members}
        return await self.client.post("/v1/chat/completions", json=body)


@contextlib.asynccontextmanager
async def calling(gateway: RelayGateway, home: Path, **policy: Any) -> AsyncIterator[Caller]:
    root = home / "gateway" / "simulator" / "root.pem"
    wanted = confide.Policy(trust_roots=(root,), **policy)
    async with confide.AsyncClient(wanted, base_url=gateway.url) as client:
        yield Caller(client, root)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_verifying_client_accepts_it_and_so_does_an_audit(
    gateway: RelayGateway, tmp_path: Path, stream: bool
) -> None:
    async with calling(gateway, tmp_path) as caller:
        answer = await caller.ask(stream=stream)
        proof = confide.proof(answer)
        assert proof is not None
        assert {check.name: check.status.value for check in proof.checks}["upstream-2"] == "pass"
        proof.bundle(tmp_path / "proof.json")
        audited = confide.verify_bundle(tmp_path / "proof.json", confide.Policy(trust_roots=(caller.root,)))
        assert audited.ok
        assert {check.name: check.status.value for check in audited.checks}["upstream-1"] == "pass"


async def test_a_policy_may_pin_the_session(gateway: RelayGateway, tmp_path: Path) -> None:
    await gateway.post()
    [listed] = await current(gateway)
    async with calling(gateway, tmp_path, session_ids=(listed["session_id"],)) as caller:
        assert (await caller.ask()).status_code == 200
    async with calling(gateway, tmp_path, session_ids=("0" * 64,)) as caller:
        with pytest.raises(confide.VerificationError, match="upstream-2"):
            await caller.ask()


async def test_pinned_sessions_are_honoured_and_checked_again_after_a_new_verification(
    gateway: RelayGateway, service: AttestedService
) -> None:
    await gateway.post()
    [listed] = await current(gateway)
    pinned = {"aci_session_ids": [listed["session_id"]]}
    assert (await gateway.post(provider=pinned)).status_code == 200
    assert "provider" not in json.loads(service.prompts[-1].body)
    prompts = len(service.prompts)
    other = await gateway.post(provider={"aci_session_ids": ["0" * 64]})
    assert (other.status_code, error_type(other)) == (412, "session_not_accepted")

    await gateway.attested("second").verify()
    [renewed] = await current(gateway)
    assert renewed["session_id"] != listed["session_id"]
    assert (await gateway.client.get(f"/v1/aci/sessions/{listed['session_id']}")).status_code == 200
    refused = await gateway.post(provider=pinned)
    assert (refused.status_code, error_type(refused)) == (412, "session_not_accepted")
    assert len(service.prompts) == prompts
    events = await gateway.events(refused)
    assert [event["type"] for event in events] == [
        "request.received",
        "upstream.verified",
        "response.returned",
        "response.outcome",
    ]
    assert (events[1]["result"], events[1]["required"], events[1]["model_id"]) == ("failed", True, MODEL)
    assert "session_id" not in events[1]


async def test_an_upstream_that_loses_its_attestation_gets_no_prompt(
    gateway: RelayGateway, service: AttestedService
) -> None:
    assert (await gateway.post()).status_code == 200
    prompts, received = len(service.prompts), len(service.seen)
    service.alter["report"] = broken_report
    await gateway.attested("second").verify()
    for _ in range(3):
        answer = await gateway.post(stream=True)
        assert (answer.status_code, error_type(answer)) == (503, "upstream_verification_failed")
        events = await gateway.events(answer)
        assert [event["type"] for event in events][1:-1] == ["upstream.verified", "response.returned"]
        assert (events[1]["result"], events[1]["required"]) == ("failed", True)
        assert (await gateway.receipt(answer)).outcome == "refused"
    assert len(service.prompts) == prompts
    assert len(service.seen) > received  # it was asked to prove itself, and no more
    assert await current(gateway) == []
    assert not gateway.attested("second").is_ready

    del service.alter["report"]
    assert (await gateway.post()).status_code == 200


async def test_an_upstream_that_never_proved_itself_gets_no_prompt(tmp_path: Path, service: AttestedService) -> None:
    service.alter["report"] = broken_report
    async with aggregating(tmp_path, aci(service) + model('"second"')) as gateway:
        assert (await gateway.post()).status_code == 503
        assert service.prompts == []


@pytest.mark.parametrize(
    "keys",
    [{"trust_roots": ["intel"]}, {"compose_hashes": ["00" * 32]}, {"required_gpus": 1}, {"claims": ["gpu_attested"]}],
    ids=str,
)
async def test_what_the_operator_demands_of_an_upstream_is_demanded(
    tmp_path: Path, service: AttestedService, keys: dict[str, Any]
) -> None:
    async with aggregating(tmp_path, aci(service, **keys) + model('"second"')) as gateway:
        assert error_type(await gateway.post()) == "upstream_verification_failed"
        assert service.prompts == []


async def test_a_second_hop_of_its_own_is_accepted_only_where_that_was_said(
    tmp_path: Path, service: AttestedService
) -> None:
    service.serving = "aggregator"
    async with aggregating(tmp_path, aci(service) + model('"second"')) as gateway:
        assert (await gateway.post()).status_code == 503
    (tmp_path / "other").mkdir()
    async with aggregating(tmp_path / "other", aci(service, accept_aggregator=True) + model('"second"')) as gateway:
        assert (await gateway.post()).status_code == 200


async def test_another_key_is_verified_at_once_before_anything_is_sent(
    gateway: RelayGateway, service: AttestedService
) -> None:
    await gateway.post()
    [before] = await current(gateway)
    gateway.attested("second").relays[-1].channel.pin(frozenset({bytes(32)}))  # as if the service had been replaced
    answer = await gateway.post()
    assert answer.status_code == 200
    [after] = await current(gateway)
    assert after["session_id"] != before["session_id"]
    events = await gateway.events(answer)
    assert [event["type"] for event in events][2:4] == ["upstream.attempt", "upstream.verified"]
    assert events[3]["session_id"] == after["session_id"]

    gateway.attested("second").relays[-1].channel.pin(frozenset({bytes(32)}))
    service.alter["report"] = broken_report
    prompts = len(service.prompts)
    assert (await gateway.post()).status_code in (502, 503)
    assert len(service.prompts) == prompts


async def test_many_prompts_wait_for_one_verification(tmp_path: Path, service: AttestedService) -> None:
    async with aggregating(tmp_path, aci(service) + model('"second"')) as gateway:
        answers = await asyncio.gather(*(gateway.post() for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        assert len([seen for seen in service.seen if seen.nonce is not None]) == 1


class Clock:
    """Moves when told to."""

    def __init__(self) -> None:
        self.began_s = time.time()
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return self.began_s + self.ahead_s


async def test_a_verification_that_is_over_is_made_again_or_nothing_is_sent(
    tmp_path: Path, service: AttestedService
) -> None:
    clock = Clock()
    text = aci(service, session_s=600) + model('"second"')
    async with aggregating(tmp_path, text, now=clock) as gateway:
        await gateway.post()
        [first] = await current(gateway)
        assert first["expires_at"] - first["established_at"] == 600 + 900
        clock.ahead_s = 560
        await gateway.post()
        assert await current(gateway) == [first]
        clock.ahead_s = 610
        await gateway.post()
        [second] = await current(gateway)
        assert second["session_id"] != first["session_id"]
        service.alter["report"] = lambda reply, _: reply.but(b"{}", status=503)
        prompts = len(service.prompts)
        clock.ahead_s = 1170
        assert (await gateway.post()).status_code == 200  # it could not be asked: what was verified still stands
        clock.ahead_s = 1300
        assert error_type(await gateway.post()) == "upstream_verification_failed"
        assert len(service.prompts) == prompts + 1


async def test_no_answer_outlives_the_session_that_its_receipt_cites(
    tmp_path: Path, service: AttestedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upstream's keyset is over in five seconds; an answer that takes longer is cut then."""
    honest = service.answer

    async def slow(seen: Seen) -> tuple[str, Reply]:
        if seen.method == "POST":
            await asyncio.sleep(8)
        return await honest(seen)

    monkeypatch.setattr(service, "answer", slow)
    service.keyset = service.attested_keyset(not_after=int(time.time()) + 5)
    async with aggregating(tmp_path, aci(service) + model('"second"')) as gateway:
        answer = await gateway.post()
        assert answer.status_code == 504
        [event] = (await gateway.receipt(answer)).upstream
        assert event.session_id is not None
        document = await gateway.client.get(f"/v1/aci/sessions/{event.session_id}")
        session = parse_session(document.content, event.session_id)
        assert session.expires_at == service.keyset.not_after
        assert time.time() <= session.expires_at + 1


async def test_the_next_upstream_serves_when_the_first_cannot_be_verified(
    tmp_path: Path, service: AttestedService
) -> None:
    with serving(tmp_path / "other", tls=True) as other:
        service.alter["report"] = broken_report
        text = ATTESTED + aci(service, "first") + aci(other, "spare") + model('["first", "spare"]')
        async with aggregating(tmp_path, text) as gateway, calling(gateway, tmp_path) as caller:
            answer = await caller.ask()
            assert answer.status_code == 200
            assert service.prompts == []
            events = [event for event in await gateway.events(answer) if event["type"].startswith("upstream.")]
            assert [(event["result"], event.get("upstream_name")) for event in events] == [
                ("failed", "first"),
                ("verified", None),
            ]


async def test_the_older_report_will_do_where_it_binds_the_tls_key(tmp_path: Path) -> None:
    """The service before it is another gateway, which has both reports."""
    (tmp_path / "inner").mkdir()
    async with ScriptedUpstream(answered(completion())) as engine:
        inner_text = ATTESTED + upstream("engine", "local", f"http://127.0.0.1:{engine.port}/v1") + model('"engine"')
        async with serving_upstreams(tmp_path / "inner", inner_text) as inner:
            inner_root = str(tmp_path / "inner" / "simulator" / "root.pem")
            text = upstream("older", "legacy-proxy", inner.url, trust_roots=[inner_root], probe="none")
            async with aggregating(tmp_path, text + model('"older"')) as gateway:
                answer = await gateway.post()
                assert answer.status_code == 200
                [event] = (await gateway.receipt(answer)).upstream
                [listed] = await current(gateway)
                assert (event.result, event.session_id) == ("verified", listed["session_id"])
                assert listed["identity"]["signing_address"].startswith("0x")
                assert listed["claims"]["tee_attested"]["status"] == "asserted"


async def test_the_older_report_without_the_tls_key_is_not_enough(tmp_path: Path, service: AttestedService) -> None:
    """This service has no such report at all."""
    text = upstream("older", "legacy-proxy", service.url, trust_roots=[str(service.root)], probe="none")
    async with aggregating(tmp_path, text + model('"older"')) as gateway:
        assert error_type(await gateway.post()) == "upstream_verification_failed"
        assert service.prompts == []


async def test_an_ordinary_provider_is_recorded_as_what_it_is(tmp_path: Path) -> None:
    async with ScriptedUpstream(answered(completion())) as provider:
        url = f"http://127.0.0.1:{provider.port}/v1"
        text = ATTESTED + upstream("plain", "openai", url, allow_unverified=True, probe="none") + model('"plain"')
        async with aggregating(tmp_path, text) as gateway:
            answer = await gateway.post()
            assert answer.status_code == 200
            [event] = (await gateway.receipt(answer)).upstream
            assert (event.result, event.required, event.session_id) == ("failed", False, None)
            assert event.reason == "this upstream offers no attestation"
            listed = (await gateway.client.get("/v1/models")).json()["data"][0]
            assert listed["is_tee"] is False

            asked = len(provider.requests)
            for constraint in ({"aci_verified": True}, {"aci_session_ids": ["0" * 64]}):
                refused = await gateway.post(provider=constraint)
                assert refused.status_code in (412, 503)
                [event] = (await gateway.receipt(refused)).upstream
                assert (event.result, event.required) == ("failed", True)
            assert len(provider.requests) == asked
            async with calling(gateway, tmp_path) as caller:
                with pytest.raises(confide.VerificationError, match="upstream-1"):
                    await caller.ask()


async def test_tee_only_keeps_prompts_from_what_is_not_attested(tmp_path: Path, service: AttestedService) -> None:
    async with ScriptedUpstream(answered(completion())) as provider:
        url = f"http://127.0.0.1:{provider.port}/v1"
        text = (
            aci(service)
            + upstream("plain", "openai", url, allow_unverified=True, probe="none")
            + model('["second", "plain"]', tee_only=True)
        )
        service.alter["report"] = broken_report
        async with aggregating(tmp_path, text) as gateway:
            assert error_type(await gateway.post()) == "upstream_verification_failed"
        assert (service.prompts, provider.requests) == ([], [])


@contextlib.contextmanager
def vendors_of(home: Path) -> Iterator[Vendors]:
    """Intel's service, for the simulated TEE under `home`."""
    now = int(time.time())
    platform = SimulatedTdxPlatform(load_seed(home / "simulator"), now=now)
    with listening_vendors(SimulatedPccs(platform, now=now - 3600)) as vendors:
        yield vendors


def without_collateral(reply: Reply, _: Seen) -> Reply:
    report = reply.document
    del report["attestation"]["evidence"]["collateral"]
    return reply.holding(report)


async def test_what_an_upstream_does_not_send_along_is_asked_of_the_vendor(
    tmp_path: Path, service: AttestedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "kept"))
    service.alter["report"] = without_collateral
    with vendors_of(service.root.parent.parent) as vendors:
        asking = f'[attester]\npccs_url = "{vendors.url}"\n'
        async with aggregating(tmp_path, asking + ATTESTED + aci(service) + model('"second"')) as gateway:
            assert (await gateway.post()).status_code == 200
        assert len(vendors.asked) == 4


async def test_where_vendors_may_not_be_asked_such_an_upstream_serves_nobody(
    tmp_path: Path, service: AttestedService
) -> None:
    service.alter["report"] = without_collateral
    async with aggregating(
        tmp_path, '[attester]\ncollateral = "none"\n' + ATTESTED + aci(service) + model('"second"')
    ) as gateway:
        refused = await gateway.post()
    assert (refused.status_code, error_type(refused)) == (503, "upstream_verification_failed")
    assert service.prompts == []
