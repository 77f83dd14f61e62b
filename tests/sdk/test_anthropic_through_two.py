"""The official Anthropic SDK before a Confide that stands in front of another one, which speaks Messages itself.

The inner one has a scripted engine, attested TLS and keys; the outer one verifies it, and has a key of its own for it.
"""

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anthropic
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import MessageParam
from anthropic.types.beta import BetaMessageParam

import confide
from confide.config import Config, Model, Server
from confide.protocol.receipt import FORWARDED, RECEIVED, parse_receipt
from gateway_app import MODEL, ScriptedGateway, answering, serving_scripted
from relay_app import RelayGateway, model, serving_upstreams, upstream
from scripted import response

HELLO: list[MessageParam] = [{"role": "user", "content": "Hello"}]
BETA_HELLO: list[BetaMessageParam] = [{"role": "user", "content": "Hello"}]
OUTER = '[server]\ntls = "attested"\n'


@dataclass
class Pair:
    """`outer` asks `inner`. `root`: of the outer one's simulated TEE."""

    inner: ScriptedGateway
    outer: RelayGateway
    root: Path

    @contextlib.asynccontextmanager
    async def sdk(self) -> AsyncIterator[AsyncAnthropic]:
        """The SDK, with a client that verifies the outer one and every answer."""
        policy = confide.Policy(trust_roots=(self.root,))
        async with AsyncAnthropic(
            base_url=self.outer.url, api_key="sk-of-the-client", max_retries=0, http_client=confide.AsyncClient(policy)
        ) as sdk:
            yield sdk


@pytest.fixture(params=["authorization", "x-api-key"])
async def pair(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    config = Config(model=(Model(id=MODEL, upstream_model="scripted"),), server=Server(tls="attested"))
    async with serving_scripted(inside, answering("Hel", "lo."), config=config) as inner:
        (outside / "key").write_text(await inner.new_key())
        text = upstream(
            "inner",
            "aci",
            inner.url,
            trust_roots=[str(inside / "simulator/root.pem")],
            probe="none",
            surfaces=["chat", "messages"],
            key_file=str(outside / "key"),
            key_header=request.param,
        )
        async with serving_upstreams(outside, OUTER + text + model('"inner"')) as outer:
            yield Pair(inner, outer, outside / "simulator/root.pem")


async def test_a_message_passes_through_both_and_is_proven(pair: Pair) -> None:
    async with pair.sdk() as sdk:
        message = await sdk.messages.create(model=MODEL, max_tokens=9, messages=HELLO)
        assert [block.text for block in message.content if block.type == "text"] == ["Hello."]
        proof = confide.proof(message)
        assert {check.name: check.status.value for check in proof.checks}["upstream-2"] == "pass"
        inner, outer = pair.inner.last_line(), pair.outer.lines("request")[-1]
        assert (inner["endpoint"], inner["outcome"], outer["outcome"]) == ("/v1/messages", "complete", "complete")
        assert inner["key_id"] is not None


async def test_a_stream_passes_through_both_and_is_proven(pair: Pair) -> None:
    async with pair.sdk() as sdk:
        async with sdk.messages.stream(model=MODEL, max_tokens=9, messages=HELLO) as stream:
            assert await stream.get_final_text() == "Hello."
            message = await stream.get_final_message()
        assert confide.proof(message).answer is not None


async def test_betas_pass_and_change_nothing_that_is_receipted(pair: Pair) -> None:
    async with pair.sdk() as sdk:
        asked = sdk.beta.messages.with_raw_response
        answer = await asked.create(model=MODEL, max_tokens=9, messages=BETA_HELLO, betas=["context-1m-2025-08-07"])
        assert answer.http_response.status_code == 200
        [receipt_id] = [value for name, value in answer.headers.items() if name.lower() == "x-receipt-id"]
        proof = await pair.outer.store.proof(receipt_id, now=0)
        assert proof is not None
        receipt = parse_receipt(proof.receipt)
        assert receipt.body_hash(RECEIVED) == receipt.body_hash(FORWARDED)


async def test_a_count_is_that_of_the_inner_ones_engine(pair: Pair) -> None:
    async with pair.sdk() as sdk:
        for length in (3, 5):
            tokens = [response(b'{"tokens":%b}' % json.dumps(list(range(length))).encode())]
            pair.inner.follow([response(b'{"prompt":"<s>Hello"}')], tokens)
            counted = await sdk.messages.count_tokens(model=MODEL, messages=HELLO, system="Be brief.")
            assert counted.input_tokens == length
        pair.inner.follow([response(b'{"prompt":"<s>Hello"}')], tokens)
        counted_beta = await sdk.beta.messages.count_tokens(model=MODEL, messages=BETA_HELLO)
        assert counted_beta.input_tokens == 5


async def test_what_the_inner_one_has_against_a_count_is_the_sdks_own_error(pair: Pair) -> None:
    async with pair.sdk() as sdk:
        with pytest.raises(anthropic.BadRequestError) as caught:
            await sdk.messages.count_tokens(model=MODEL, messages=HELLO, extra_body={"max_tokens": 1})
        assert caught.value.type == "invalid_request_error"
        assert "max_tokens" in str(caught.value.api_message)
        pair.inner.switch.is_ready = False
        with pytest.raises(anthropic.InternalServerError) as caught_busy:
            await sdk.messages.count_tokens(model=MODEL, messages=HELLO)
        assert caught_busy.value.status_code == 503
