"""Every surface through the official SDKs and the client that verifies, before the real program with the real model:
each answer has its proof, which holds without a network, and one byte that is altered on the way leaves no answer.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic, APIConnectionError, AsyncAnthropic
from openai import AsyncOpenAI, OpenAI

import confide
from cli.outcome import run
from confide.evidence.result import Verdict
from running import Running, home_with_weights, running
from sdk.adversary import Adversary, before, root_of
from sdk.builders import CONFIG
from sdk.surfaces import EVERY_WAY, Sdks, Surface

pytestmark = pytest.mark.engine

ATTESTED = CONFIG.replace("[server]", '[server]\ntls = "attested"')
WAYS = {False: "buffered", True: "streamed"}
EACH = pytest.mark.parametrize(
    ("surface", "stream"), EVERY_WAY, ids=[f"{surface.name}-{WAYS[stream]}" for surface, stream in EVERY_WAY]
)
EACH_STREAM = pytest.mark.parametrize("surface", [surface for surface, stream in EVERY_WAY if stream], ids=str)


@pytest.fixture(scope="module")
def attested(engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Over TLS that ends in the workload."""
    with running(home_with_weights(tmp_path_factory.mktemp("attested"), engine_home), config=ATTESTED) as service:
        yield service


# Proven.


@pytest.fixture
def sdks(attested: Running) -> Iterator[Sdks]:
    policy = confide.Policy(trust_roots=(root_of(attested),))
    with confide.Client(policy=policy, keep_bodies=True) as http:
        yield sdks_at(attested.url, http)


@pytest.fixture
async def async_sdks(attested: Running) -> AsyncIterator[Sdks]:
    policy = confide.Policy(trust_roots=(root_of(attested),))
    async with confide.AsyncClient(policy=policy, keep_bodies=True) as http:
        yield async_sdks_at(attested.url, http)


def sdks_at(url: str, http: confide.Client) -> Sdks:
    options: Any = {"api_key": "any", "max_retries": 0, "http_client": http}
    return Sdks(OpenAI(base_url=url + "/v1", **options), Anthropic(base_url=url, **options))


def async_sdks_at(url: str, http: confide.AsyncClient) -> Sdks:
    options: Any = {"api_key": "any", "max_retries": 0, "http_client": http}
    return Sdks(AsyncOpenAI(base_url=url + "/v1", **options), AsyncAnthropic(base_url=url, **options))


async def assert_proven(answer: Any, surface: Surface, service: Running, directory: Path) -> None:
    """The answer leads to its proof, and the proof's bundle is enough for whoever has nothing else."""
    proof = confide.proof(answer)
    assert proof.verdict is Verdict.VERIFIED
    assert proof.answer is not None
    assert proof.answer.endpoint == surface.endpoint
    bundle = proof.bundle(directory / "answer.json")
    audited = await run("audit", str(bundle), "--trust-root", str(root_of(service)), home=directory)
    assert audited.status == 0, audited.error
    assert audited.lines[-2].startswith("VERIFIED ")


@EACH
async def test_an_answer_is_proven(
    attested: Running, sdks: Sdks, surface: Surface, stream: bool, tmp_path: Path
) -> None:
    answer = surface.ask(sdks, stream=stream)
    if stream:
        events = list(answer)
        assert events
        assert surface.is_end(events[-1]) is surface.shows_end
    await assert_proven(answer, surface, attested, tmp_path)


@EACH
async def test_an_answer_is_proven_to_asyncio(
    attested: Running, async_sdks: Sdks, surface: Surface, stream: bool, tmp_path: Path
) -> None:
    answer = await surface.ask(async_sdks, stream=stream)
    if stream:
        events = [event async for event in answer]
        assert events
        assert surface.is_end(events[-1]) is surface.shows_end
    await assert_proven(answer, surface, attested, tmp_path)


# Altered on the way.


@pytest.fixture
def adversary(service: Running) -> Iterator[Adversary]:
    with before(service) as found:
        yield found


@pytest.fixture
def deceived(adversary: Adversary) -> Iterator[Sdks]:
    """The SDKs, with the adversary before a service that was verified."""
    with confide.Client(policy=adversary.policy) as http:
        http.verify(adversary.url + "/v1")
        adversary.begin()
        yield sdks_at(adversary.url, http)


@pytest.fixture
async def async_deceived(adversary: Adversary) -> AsyncIterator[Sdks]:
    async with confide.AsyncClient(policy=adversary.policy) as http:
        await http.verify(adversary.url + "/v1")
        adversary.begin()
        yield async_sdks_at(adversary.url, http)


def assert_refused(caught: BaseException, adversary: Adversary) -> None:
    """By what the receipt says. Anthropic's SDK wraps what a transport raises."""
    failure = caught.__cause__ if isinstance(caught, APIConnectionError) else caught
    assert isinstance(failure, confide.VerificationError)
    assert failure.check == "receipt-4"
    assert adversary.changed == 1


@EACH
def test_an_altered_answer_is_refused(adversary: Adversary, deceived: Sdks, surface: Surface, stream: bool) -> None:
    events: list[Any] = []

    def ask() -> None:
        answer = surface.ask(deceived, stream=stream)
        if stream:
            events.extend(answer)
        events.append(answer)

    with pytest.raises((confide.VerificationError, APIConnectionError)) as caught:
        ask()
    assert_refused(caught.value, adversary)
    assert not any(map(surface.is_end, events))


@EACH
async def test_an_altered_answer_is_refused_to_asyncio(
    adversary: Adversary, async_deceived: Sdks, surface: Surface, stream: bool
) -> None:
    events: list[Any] = []

    async def ask() -> None:
        answer = await surface.ask(async_deceived, stream=stream)
        if stream:
            async for event in answer:
                events.append(event)
        events.append(answer)

    with pytest.raises((confide.VerificationError, APIConnectionError)) as caught:
        await ask()
    assert_refused(caught.value, adversary)
    assert not any(map(surface.is_end, events))


@EACH_STREAM
def test_of_an_altered_stream_the_last_event_never_comes(adversary: Adversary, surface: Surface) -> None:
    """On the wire, where no SDK hides it; the honest twin has one."""
    with confide.Client(policy=adversary.policy) as http:
        honest, altered = bytearray(), bytearray()
        read(http, adversary.url, surface, honest)
        adversary.begin()
        with pytest.raises(confide.VerificationError) as caught:
            read(http, adversary.url, surface, altered)
    assert_refused(caught.value, adversary)
    assert has_end(bytes(honest), surface)
    assert altered
    assert not has_end(bytes(altered), surface)


def read(http: confide.Client, url: str, surface: Surface, into: bytearray) -> None:
    """All that a reader gets of a stream."""
    content = surface.content(stream=True)
    with http.stream(
        "POST", url + surface.endpoint, content=content, headers={"authorization": "Bearer any"}
    ) as answer:
        for data in answer.iter_raw():
            into.extend(data)


def has_end(body: bytes, surface: Surface) -> bool:
    return any(end.encode() in body for end in surface.ends)
