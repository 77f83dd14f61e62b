"""Keysets that are replaced while clients ask: the clock is the test's, service and client are the real ones."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

import confide
from confide.client.receipts import Exchange, verify_receipt
from confide.config import Attester, Config, Model, Server
from confide.evidence.result import Status, Verdict
from confide.verifier.appraisal import Connection, ServiceVerification, verify_report
from gateway_app import MODEL, ScriptedGateway, answering, serving_scripted, token
from scripted import Script, sse_head

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
LIFETIME_S, PERIOD_S = 1000, 800
CONFIG = Config(
    server=Server(tls="attested"),
    attester=Attester(keyset_lifetime_s=LIFETIME_S),
    model=(Model(id=MODEL, upstream_model="scripted"),),
)


class Clock:
    """One clock for both sides; it begins where a keyset does, near the present, in which the collateral is good."""

    def __init__(self) -> None:
        self.now = int(time.time()) // PERIOD_S * PERIOD_S + 1

    def __call__(self) -> int:
        return self.now

    def rotate(self) -> None:
        self.now += PERIOD_S


class Asking:
    """A service and a client of it, and the digests of the keysets that were reported to it."""

    def __init__(
        self, gateway: ScriptedGateway, http: confide.AsyncClient, clock: Clock, policy: confide.Policy
    ) -> None:
        self.gateway = gateway
        self.http = http
        self.clock = clock
        self.policy = policy
        self.reports: list[bytes] = []
        self.sdk = AsyncOpenAI(base_url=gateway.url + "/v1", api_key="any", http_client=http, timeout=20)

    @property
    def digest(self) -> str:
        """Of the keyset that stands."""
        return self.gateway.app.keyset().epoch.digest

    async def ask(self) -> confide.Proof:
        return proven(await self.sdk.chat.completions.create(model=MODEL, messages=HELLO))

    async def stream(self) -> Any:
        return await self.sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)


def proven(answer: object) -> confide.Proof:
    proof = confide.proof(answer)
    assert proof.verdict is Verdict.VERIFIED
    return proof


@asynccontextmanager
async def asking(home: Path, monkeypatch: pytest.MonkeyPatch, *scripts: Script) -> AsyncIterator[Asking]:
    clock = Clock()
    async with serving_scripted(home, *scripts, config=CONFIG, now=clock) as gateway:
        policy = confide.Policy(trust_roots=(home / "simulator" / "root.pem",))
        async with confide.AsyncClient(policy, now=clock) as http:
            asker = Asking(gateway, http, clock, policy)
            attest = gateway.attester.attest

            async def counted(report_data: bytes) -> Any:
                asker.reports.append(report_data)
                return await attest(report_data)

            monkeypatch.setattr(gateway.attester, "attest", counted)
            yield asker


async def test_a_client_from_before_a_rotation_keeps_working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asking(tmp_path, monkeypatch, answering("Hi")) as asker:
        digests = []
        for _ in range(3):
            proof = await asker.ask()
            assert proof.facts["keyset_digest"] == asker.digest
            assert (await asker.ask()).facts["keyset_digest"] == asker.digest
            digests.append(asker.digest)
            asker.clock.rotate()
        assert len(set(digests)) == 3
        assert len(asker.reports) == 3  # one for each keyset


async def test_a_new_keyset_is_asked_for_before_the_old_one_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(tmp_path, monkeypatch, answering("Hi")) as asker:
        await asker.ask()
        asker.clock.now += LIFETIME_S - 50  # the client was idle for that long
        assert (await asker.ask()).facts["keyset_digest"] == asker.digest
        assert len(asker.reports) == 2


async def test_a_stream_across_a_rotation_is_proven_under_the_keyset_that_it_began_under(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    paused = [sse_head(), token("Hi"), gate, *answering(" there")[1:]]
    async with asking(tmp_path, monkeypatch, paused, paused, answering("Hi")) as asker:
        before = asker.digest
        streams = [await asker.stream() for _ in range(2)]
        for stream in streams:
            await anext(stream)
        asker.clock.rotate()
        assert asker.digest != before
        assert (await asker.ask()).facts["keyset_digest"] == asker.digest
        gate.set()
        for stream in streams:
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hi there"
            proof = proven(stream)
            assert proof.facts["keyset_digest"] == before
            assert proof.facts["served_at"] == asker.clock.now


async def test_a_stream_that_nobody_interrupts_needs_no_second_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    async with asking(tmp_path, monkeypatch, [sse_head(), token("Hi"), gate, *answering("")[1:]]) as asker:
        stream = await asker.stream()
        await anext(stream)
        asker.clock.rotate()
        gate.set()
        assert [chunk async for chunk in stream]
        proven(stream)
        assert len(asker.reports) == 1


async def test_a_stream_that_outlives_its_keyset_is_not_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    async with asking(tmp_path, monkeypatch, [sse_head(), token("Hi"), gate, *answering("")[1:]]) as asker:
        stream = await asker.stream()
        await anext(stream)
        asker.clock.now += LIFETIME_S
        gate.set()
        with pytest.raises(confide.VerificationError) as caught:
            [chunk async for chunk in stream]
        assert caught.value.check == "receipt-2"


async def test_receipts_from_before_are_verified_with_the_report_that_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(tmp_path, monkeypatch, answering("Hi")) as asker:
        await asker.gateway.app.archive.keep_current()
        old = await asker.ask()
        digest = asker.digest
        asker.clock.rotate()
        await asker.gateway.app.archive.keep_current()
        new = await asker.ask()
        assert old.facts["keyset_digest"] == digest != new.facts["keyset_digest"] == asker.digest
        for proof in (old, new):
            service = await archived(asker, str(proof.facts["keyset_digest"]))
            assert service.ok
            assert "freshness is not shown" in next(check.reason for check in service.checks if check.name == "id-2")
            assert {
                check.name for check in await checked_again(asker, proof, service) if check.status is Status.FAIL
            } == set()
        other = await archived(asker, asker.digest)
        failed = {check.name for check in await checked_again(asker, old, other) if check.status is Status.FAIL}
        assert failed == {"receipt-2"}


async def archived(asker: Asking, digest: str) -> ServiceVerification:
    """The report that the service kept of this keyset, verified without a nonce."""
    response = await asker.http.get(f"{asker.gateway.url}/v1/aci/keysets/{digest}")
    assert response.status_code == 200
    tls = asker.gateway.attester.workload_keys.tls.spki_sha256
    return verify_report(
        response.content,
        nonce=None,
        policy=asker.policy,
        now=asker.clock.now,
        connection=Connection(host="127.0.0.1", spki_sha256=tls),
        url=asker.gateway.url,
    )


async def checked_again(asker: Asking, proof: confide.Proof, service: ServiceVerification) -> tuple[confide.Check, ...]:
    """The checks of the receipt, fetched anew."""
    response = await asker.http.get(
        f"{asker.gateway.url}/v1/aci/receipts/{proof.receipt_id}", headers={"authorization": "Bearer any"}
    )
    assert response.content == proof.receipt
    assert proof.answer is not None
    exchange = Exchange(
        endpoint="/v1/chat/completions",
        receipt_id=proof.receipt_id,
        request_sha256=bytes.fromhex(proof.answer.request_sha256),
        response_sha256=bytes.fromhex(proof.answer.response_sha256),
    )
    assert service.report is not None
    services = {service.report.keyset_digest: service}
    checks, _ = verify_receipt(response.content, exchange, services=services, policy=asker.policy)
    return checks


async def test_bundles_from_both_sides_of_a_rotation_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asking(tmp_path, monkeypatch, answering("Hi")) as asker:
        old = await asker.ask()
        asker.clock.rotate()
        new = await asker.ask()
        for name, proof in (("old", old), ("new", new)):
            path = proof.bundle(tmp_path / f"{name}.json")
            assert confide.verify_bundle(path, asker.policy, now=asker.clock.now).ok


async def test_an_answer_under_a_keyset_that_cannot_be_verified_is_not_given_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(tmp_path, monkeypatch, answering("Hi")) as asker:
        await asker.ask()
        asker.clock.rotate()
        monkeypatch.setattr(asker.gateway.attester, "_max_waiting", 0)
        with pytest.raises(confide.VerificationError, match="got an answer under another keyset") as caught:
            await asker.ask()
        assert caught.value.check == "id-1"
        assert isinstance(caught.value.__cause__, httpx2.ConnectError)
        assert len(asker.gateway.engine.requests) == 2  # the prompt was sent once, and no SDK sends it again
