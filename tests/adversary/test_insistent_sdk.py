"""The attacker fails a verification, and hopes that an SDK which tries again whatever fails sends the prompt again.

Each prompt that is sent to a service that has just failed is one more that may be read. Both official SDKs, blocking
and asyncio, with their own retries switched on: the prompt reaches the service once, the client is latched, and sends
nothing until it is reset. The twin: what is no failed verification is tried again, as ever.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from openai import OpenAI

import confide
from attested_service import (
    ANSWER,
    API_KEY,
    MODEL,
    Alter,
    AttestedService,
    Reply,
    Seen,
    error,
    serving,
)
from callers import EVERY, PROMPT, Kind, asking, assert_latched, assert_refused, refusal


@pytest.fixture
def service(tmp_path: Path) -> Iterator[AttestedService]:
    with serving(tmp_path) as service:
        yield service


def changed_answer(reply: Reply, _: Seen) -> Reply:
    return reply.replacing(b"42.", b"43.")


def no_report(reply: Reply, _: Seen) -> Reply:
    return reply.but(b"{}")


@contextmanager
def asking_messages(service: AttestedService, *, retries: int) -> Iterator[Callable[..., str]]:
    with (
        confide.Client(service.policy()) as http,
        anthropic.Anthropic(base_url=service.url, api_key=API_KEY, http_client=http, max_retries=retries) as sdk,
    ):
        messages: Any = [{"role": "user", "content": PROMPT}]

        def ask(*, stream: bool = False) -> str:
            if not stream:
                answer = sdk.messages.create(model=MODEL, max_tokens=9, messages=messages)
                return "".join(block.text for block in answer.content if block.type == "text")
            with sdk.messages.stream(model=MODEL, max_tokens=9, messages=messages) as events:
                return events.get_final_text()

        yield ask


def cause_of(ask: Callable[[], object]) -> confide.VerificationError:
    """The VerificationError behind what the SDK raises, or that itself."""
    with pytest.raises((anthropic.APIConnectionError, confide.VerificationError)) as caught:
        ask()
    found = caught.value if isinstance(caught.value, confide.VerificationError) else caught.value.__cause__
    assert isinstance(found, confide.VerificationError)
    return found


@pytest.mark.parametrize("kind", EVERY)
def test_openai_raises_the_error_itself_and_sends_the_prompt_once(service: AttestedService, kind: Kind) -> None:
    service.alter["answer"] = changed_answer
    with asking(service, kind) as caller:
        assert caller.sdk.max_retries == 2  # the SDK's own
        assert_refused(caller, service, "receipt-4")
        for _ in range(3):
            assert_latched(caller, service, "receipt-4")
        del service.alter["answer"]
        assert_latched(caller, service, "receipt-4")  # an honest answer now does not open it
        caller.reset()
        assert caller.ask() == ANSWER
    assert len(service.prompts) == 2


@pytest.mark.parametrize("kind", EVERY)
def test_a_service_that_does_not_hold_is_asked_once_and_told_nothing(service: AttestedService, kind: Kind) -> None:
    service.alter["report"] = no_report
    with asking(service, kind) as caller:
        assert_refused(caller, service, "id-1", prompts=0)
    assert len(service.seen) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
def test_anthropic_is_answered_by_an_honest_service(service: AttestedService, stream: bool) -> None:
    with asking_messages(service, retries=2) as ask:
        assert ask(stream=stream) == ANSWER
        assert ask(stream=stream) == ANSWER
    assert len(service.prompts) == 2


ATTACKS: list[tuple[str, Alter, str, int]] = [
    ("answer", changed_answer, "receipt-4", 1),
    ("receipt", lambda reply, _: reply.but(status=404), "receipt-1", 1),
    ("report", no_report, "id-1", 0),
]


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize(("what", "alter", "check", "prompts"), ATTACKS, ids=[each[0] for each in ATTACKS])
def test_anthropic_tries_again_and_the_prompt_is_sent_once(
    service: AttestedService, stream: bool, what: str, alter: Alter, check: str, prompts: int
) -> None:
    service.alter[what] = alter
    with asking_messages(service, retries=1) as ask:
        failure = cause_of(lambda: ask(stream=stream))
        assert failure.check == check
        assert f"{check}: " in failure.message
        assert len(service.prompts) == prompts


def test_anthropic_with_its_own_two_retries_sends_the_prompt_once(service: AttestedService) -> None:
    service.alter["answer"] = changed_answer
    with asking_messages(service, retries=2) as ask:
        failure = cause_of(ask)
    assert failure.check == "receipt-4"
    assert "nothing was sent" in failure.message
    assert len(service.prompts) == 1


def test_the_first_failure_stays_the_reason(service: AttestedService) -> None:
    with asking(service) as caller:
        service.alter["answer"] = changed_answer
        refusal(caller.ask, "receipt-4")
        service.alter["report"] = no_report
        refusal(lambda: caller.client.verify(service.url), "id-1")
        assert_latched(caller, service, "receipt-4")


def test_a_latched_client_sends_nothing_of_any_kind_to_any_service(service: AttestedService, tmp_path: Path) -> None:
    with serving(tmp_path / "other") as other, confide.Client(service.policy(trust_roots=())) as http:
        sdk = OpenAI(base_url=service.url + "/v1", api_key=API_KEY, http_client=http)
        refusal(lambda: sdk.models.list(), "id-1")
        seen = len(service.seen)
        for url in (service.url + "/v1/models", other.url + "/v1/models"):
            refusal(partial(http.get, url), "id-1")
            refusal(partial(http.post, url, json={}), "id-1")
        assert len(service.seen) == seen
        assert other.seen == []


def test_what_is_no_failed_verification_is_tried_again(service: AttestedService) -> None:
    """A 503 without a receipt says nothing about the service: the SDK asks again, and gets a proven answer."""
    tried: list[Seen] = []

    def busy_once(reply: Reply, seen: Seen) -> Reply:
        tried.append(seen)
        return error(503, "service_unavailable").but(retry_after_ms="1") if len(tried) == 1 else reply

    service.alter["answer"] = busy_once
    with asking(service) as caller:
        assert caller.ask() == ANSWER
    assert len(tried) == 2


def test_a_service_that_always_fails_is_told_as_the_sdk_tells_it(service: AttestedService) -> None:
    service.alter["answer"] = lambda reply, _: error(400, "invalid_request_error")
    with asking(service) as caller:
        with pytest.raises(openai.BadRequestError):
            caller.ask()
        del service.alter["answer"]
        assert caller.ask() == ANSWER
