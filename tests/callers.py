"""Callers of a service: the official SDKs with a confide client, blocking and asyncio, buffered and streamed.

All have one shape, so that an attack is tried on each of them: `ask` gives the text of the answer or raises what the
SDK raises, `client` is the confide client.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import pytest
from openai import AsyncOpenAI, OpenAI

import confide
from attested_service import API_KEY, MODEL, AttestedService
from confide.verifier.policy import Policy

PROMPT = "What is the answer? SECRET-PROMPT"


class Caller(Protocol):
    """`ask`: one question; the text of its answer. `answer`: what the SDK gave last, an object or the last chunk of a
    stream. `texts`: of the chunks.
    """

    client: Any
    sdk: Any
    answer: Any
    texts: list[str]

    def ask(self, prompt: str = PROMPT) -> str: ...
    def reset(self) -> None: ...
    def close(self) -> None: ...


class Sync:
    """openai.OpenAI."""

    def __init__(self, url: str, policy: Policy, *, stream: bool, **options: Any) -> None:
        self.client: Any = confide.Client(policy, **options)
        self.sdk: Any = OpenAI(base_url=url + "/v1", api_key=API_KEY, http_client=self.client)
        self.stream = stream
        self.answer: Any = None
        self.texts: list[str] = []

    def ask(self, prompt: str = PROMPT) -> str:
        self.texts, self.answer = [], None
        if not self.stream:
            self.answer = self.sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": prompt}])
            return self.answer.choices[0].message.content or ""
        with self.sdk.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}], stream=True
        ) as chunks:
            for chunk in chunks:
                self.answer = chunk
                self.texts.append(chunk.choices[0].delta.content or "")
        return "".join(self.texts)

    def reset(self) -> None:
        self.client.reset()

    def close(self) -> None:
        self.sdk.close()


class Async:
    """openai.AsyncOpenAI, in a loop that lives as long as the caller."""

    def __init__(self, url: str, policy: Policy, *, stream: bool, **options: Any) -> None:
        self.runner = asyncio.Runner()
        self.client: Any = confide.AsyncClient(policy, **options)
        self.sdk: Any = AsyncOpenAI(base_url=url + "/v1", api_key=API_KEY, http_client=self.client)
        self.stream = stream
        self.answer: Any = None
        self.texts: list[str] = []

    def ask(self, prompt: str = PROMPT) -> str:
        return self.runner.run(self._ask(prompt))

    async def _ask(self, prompt: str) -> str:
        self.texts, self.answer = [], None
        if not self.stream:
            self.answer = await self.sdk.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": prompt}]
            )
            return self.answer.choices[0].message.content or ""
        chunks = await self.sdk.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}], stream=True
        )
        async with chunks:
            async for chunk in chunks:
                self.answer = chunk
                self.texts.append(chunk.choices[0].delta.content or "")
        return "".join(self.texts)

    def reset(self) -> None:
        self.client.reset()

    def close(self) -> None:
        self.runner.run(self.sdk.close())
        self.runner.close()


Kind = Callable[..., Caller]


def kind(made: type[Sync] | type[Async], *, stream: bool) -> Kind:
    return lambda url, policy, **options: made(url, policy, stream=stream, **options)


SYNC, SYNC_STREAM = kind(Sync, stream=False), kind(Sync, stream=True)
ASYNC, ASYNC_STREAM = kind(Async, stream=False), kind(Async, stream=True)

BUFFERED = [pytest.param(SYNC, id="blocking"), pytest.param(ASYNC, id="asyncio")]
STREAMED = [pytest.param(SYNC_STREAM, id="blocking, streamed"), pytest.param(ASYNC_STREAM, id="asyncio, streamed")]
EVERY = BUFFERED + STREAMED


@contextmanager
def asking(
    service: AttestedService, kind: Kind = SYNC, *, url: str | None = None, policy: Policy | None = None, **options: Any
) -> Iterator[Caller]:
    """A caller of this service, by its own address or another, under a policy that the honest service meets."""
    caller = kind(url or service.url, policy or service.policy(), **options)
    try:
        yield caller
    finally:
        caller.close()


def refusal(ask: Callable[[], object], check: str) -> confide.VerificationError:
    """Ask; it has to be refused, naming this check, in a text that holds neither prompt nor credential."""
    with pytest.raises(confide.VerificationError) as caught:
        ask()
    error = caught.value
    assert error.check == check, error.message
    assert f"{check}: " in error.message
    assert error.remedy
    for secret in ("SECRET-PROMPT", API_KEY, "Bearer"):
        assert secret not in f"{error.message} {error.remedy}"
    return error


def assert_refused(
    caller: Caller, service: AttestedService, check: str, *, prompts: int = 1
) -> confide.VerificationError:
    """The question is refused for this check, after so many prompts reached the service, and the client is latched."""
    before = len(service.prompts)
    error = refusal(caller.ask, check)
    assert len(service.prompts) - before == prompts
    assert_latched(caller, service, check)
    return error


def assert_latched(caller: Caller, service: AttestedService, check: str) -> None:
    """The next question is refused for the same check, and nothing at all is sent for it."""
    seen = len(service.seen)
    assert "nothing was sent" in refusal(caller.ask, check).message
    assert len(service.seen) == seen
