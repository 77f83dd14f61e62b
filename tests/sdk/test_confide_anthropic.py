"""The official Anthropic SDK through the client that verifies: it tries again what it does not know."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, APIConnectionError, AsyncAnthropic
from anthropic.types import MessageParam

import confide
from attested_service import ANSWER, API_KEY, MESSAGES, MODEL, RECEIPTS, AttestedService, serving
from confide.client.proof import NoProof
from confide.evidence.result import Verdict

HELLO: list[MessageParam] = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[AttestedService]:
    with serving(tmp_path, tls=True) as started:
        yield started


@pytest.fixture
def client(service: AttestedService) -> Iterator[Anthropic]:
    with Anthropic(base_url=service.url, api_key=API_KEY, http_client=confide.Client(service.policy())) as opened:
        yield opened


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK tries again without a pause."""
    monkeypatch.setattr(anthropic._base_client.BaseClient, "_calculate_retry_timeout", lambda *_: 0)


def verified(answer: object) -> confide.Proof:
    proof = confide.proof(answer)
    assert proof.verdict is Verdict.VERIFIED
    assert proof.answer is not None
    assert proof.answer.endpoint == MESSAGES
    return proof


def test_a_message_is_proven_by_a_receipt_that_its_key_may_read(service: AttestedService, client: Anthropic) -> None:
    message = client.messages.create(model=MODEL, max_tokens=5, messages=HELLO)
    assert message.content[0].type == "text"
    assert message.content[0].text == ANSWER
    assert verified(message).chat_id == message.id
    [asked] = [seen for seen in service.seen if seen.path.startswith(RECEIPTS)]
    assert asked.headers["authorization"] == service.prompts[0].headers["authorization"] == f"Bearer {API_KEY}"


def test_a_streamed_message_is_proven_before_its_stop(client: Anthropic) -> None:
    with client.messages.stream(model=MODEL, max_tokens=5, messages=HELLO) as stream:
        kinds = []
        for event in stream:
            if event.type == "message_stop":
                verified(event.message)
            elif event.type == "message_start":
                with pytest.raises(NoProof):
                    confide.proof(event.message)
            kinds.append(event.type)
        assert kinds[-1] == "message_stop"
        assert stream.get_final_text() == ANSWER
        verified(stream.get_final_message())
        verified(stream)


async def test_the_same_holds_for_asyncio(service: AttestedService) -> None:
    async with AsyncAnthropic(
        base_url=service.url, api_key=API_KEY, http_client=confide.AsyncClient(service.policy())
    ) as client:
        verified(await client.messages.create(model=MODEL, max_tokens=5, messages=HELLO))
        async with client.messages.stream(model=MODEL, max_tokens=5, messages=HELLO) as stream:
            assert await stream.get_final_text() == ANSWER
        verified(stream)


def test_what_is_not_proven_is_tried_again_by_the_sdk_and_sent_once(
    service: AttestedService, client: Anthropic
) -> None:
    service.alter["answer"] = lambda reply, _: reply.replacing(b"42", b"43")
    with pytest.raises(APIConnectionError) as caught:
        client.messages.create(model=MODEL, max_tokens=5, messages=HELLO)
    assert isinstance(caught.value.__cause__, confide.VerificationError)
    assert caught.value.__cause__.check == "receipt-4"
    assert len(service.prompts) == 1


def test_a_stream_that_is_not_proven_has_no_stop(service: AttestedService, client: Anthropic) -> None:
    service.alter["answer"] = lambda reply, _: reply.but(*reply.parts[:3], *reply.parts[4:])
    kinds: list[str] = []

    def read() -> None:
        with client.messages.stream(model=MODEL, max_tokens=5, messages=HELLO) as stream:
            for event in stream:
                kinds.append(event.type)

    with pytest.raises(confide.VerificationError) as caught:
        read()
    assert caught.value.check == "receipt-4"
    assert "message_start" in kinds
    assert "message_stop" not in kinds


def test_the_service_is_verified_before_it_gets_a_prompt(service: AttestedService) -> None:
    with (
        Anthropic(base_url=service.url, api_key=API_KEY, http_client=confide.Client()) as client,
        pytest.raises(APIConnectionError) as caught,
    ):
        client.messages.create(model=MODEL, max_tokens=5, messages=HELLO)
    cause: Any = caught.value.__cause__
    assert cause.check == "id-1"
    assert service.prompts == []
    assert len(service.seen) == 1
