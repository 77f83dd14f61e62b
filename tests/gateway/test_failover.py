"""Several upstreams for one model: which is asked, what happens when one does not serve, and what the receipt says."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from confide.protocol.canonical import digest_of
from confide.protocol.receipt import FORWARDED
from confide.upstream.health import FAILURES_MOST
from confide.upstream.probe import probe
from relay_app import (
    DONE,
    MODEL,
    RelayGateway,
    answered,
    completion,
    delta,
    local,
    model,
    serving_upstreams,
    streamed,
)
from scripted import CLOSE, HANG, Script, ScriptedUpstream, chunk, sse_head

HI = answered(completion("from the spare"))
DOWN = answered(b"{}", status=b"500 Oops")


@contextlib.asynccontextmanager
async def pair(
    home: Path, first: Script, spare: Script, choice: str = '["first", "spare"]', **keys: object
) -> AsyncIterator[tuple[RelayGateway, ScriptedUpstream, ScriptedUpstream]]:
    async with ScriptedUpstream(first) as one, ScriptedUpstream(spare) as other:
        text = local(one.port, "first") + local(other.port, "spare") + model(choice, **keys)
        async with serving_upstreams(home, text) as gateway:
            yield gateway, one, other


FAILURES = {
    "500": DOWN,
    "503": answered(b"{}", status=b"503 Busy"),
    "429": answered(b"{}", b"Retry-After: 9", status=b"429 Busy"),
    "its key is refused": answered(b"{}", status=b"401 No"),
    "a body cut": [b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", CLOSE],
    "no answer": answered(b"[]"),
}


@pytest.mark.parametrize("script", list(FAILURES.values()), ids=list(FAILURES))
async def test_the_next_one_serves_and_the_receipt_names_the_attempt(tmp_path: Path, script: Script) -> None:
    async with pair(tmp_path, script, HI) as (gateway, first, spare):
        answer = await gateway.post()
        assert answer.content == completion("from the spare")
        assert (len(first.requests), len(spare.requests)) == (1, 1)
        attempt = (await gateway.events(answer))[2]
        assert attempt["type"] == "upstream.attempt"
        assert "upstream_name" not in attempt  # what is inside the workload is nobody's business
        receipt = await gateway.receipt(answer)
        assert receipt.body_hash(FORWARDED) == digest_of(spare.requests[0].body)
        assert len(gateway.lines("request")) == 1


async def test_each_upstream_has_its_own_name_for_the_model(tmp_path: Path) -> None:
    choice = '[{ name = "first", upstream_model = "a" }, { name = "spare", upstream_model = "b" }]'
    async with pair(tmp_path, DOWN, answered(completion(model="b")), choice) as (gateway, first, spare):
        answer = await gateway.post()
        assert answer.json()["model"] == MODEL
        assert b'"a"' in first.requests[0].body
        assert b'"b"' in spare.requests[0].body
        assert (await gateway.receipt(answer)).body_hash(FORWARDED) == digest_of(spare.requests[0].body)


async def test_a_stream_that_breaks_before_its_first_byte_goes_elsewhere(tmp_path: Path) -> None:
    whole = streamed(delta("Hi"), delta("", finish="stop"), DONE)
    async with pair(tmp_path, [sse_head(), chunk(delta("Hi")[:20]), CLOSE], whole) as (gateway, _, spare):
        answer = await gateway.post(stream=True)
        assert answer.content == delta("Hi") + delta("", finish="stop") + DONE
        assert len(spare.requests) == 1


async def test_nobody_else_is_asked_once_a_byte_has_left(tmp_path: Path) -> None:
    async with pair(tmp_path, [sse_head(), chunk(delta("Hi")), CLOSE], HI) as (gateway, _, spare):
        answer = await gateway.post(stream=True)
        assert answer.content.startswith(delta("Hi"))
        assert (await gateway.receipt(answer)).outcome == "truncated"
        assert spare.requests == []


async def test_what_is_wrong_with_the_request_is_asked_once(tmp_path: Path) -> None:
    async with pair(tmp_path, answered(b"{}", status=b"400 Bad"), HI) as (gateway, _, spare):
        assert (await gateway.post()).status_code == 400
        assert spare.requests == []


async def test_all_that_fail_are_one_error_and_one_receipt(tmp_path: Path) -> None:
    busy = answered(b"{}", b"Retry-After: 9", status=b"429 Busy")
    async with pair(tmp_path, DOWN, busy) as (gateway, *_):
        answer = await gateway.post()
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "9")
        types = [event["type"] for event in await gateway.events(answer)]
        assert types.count("upstream.attempt") == 2
        assert types.count("request.forwarded") == 1


async def test_one_that_asks_for_rest_is_given_it(tmp_path: Path) -> None:
    busy = answered(b"{}", b"Retry-After: 9", status=b"503 Busy")
    async with pair(tmp_path, busy, HI) as (gateway, first, _):
        for _ in range(3):
            assert (await gateway.post()).status_code == 200
        assert len(first.requests) == 1


async def test_one_that_keeps_failing_is_left_alone_until_a_probe_finds_it_well(tmp_path: Path) -> None:
    async with pair(tmp_path, DOWN, HI) as (gateway, first, _):
        for _ in range(FAILURES_MOST + 3):
            assert (await gateway.post()).status_code == 200
        assert len(first.requests) == FAILURES_MOST
        first.scripts = (HI,)
        opened = gateway.upstreams.opened["first"]
        relay = opened._relay()
        assert relay is not None
        await probe(relay, "/v1/models")
        seen = first.requests[-1]
        assert (seen.method, seen.target, seen.body) == (b"GET", b"/v1/models", b"")
        assert (await gateway.post()).status_code == 200
        assert len(first.requests) == FAILURES_MOST + 2


async def test_without_anyone_to_ask_the_answer_comes_at_once(tmp_path: Path) -> None:
    async with (
        ScriptedUpstream(DOWN) as engine,
        serving_upstreams(tmp_path, local(engine.port) + model('"engine"')) as gateway,
    ):
        statuses = [(await gateway.post()).status_code for _ in range(FAILURES_MOST + 1)]
        assert statuses == [502] * FAILURES_MOST + [503]
        answer = await gateway.post()
        assert int(answer.headers["retry-after"]) >= 1
        assert (await gateway.receipt(answer)).body_hash(FORWARDED) is None
        assert len(engine.requests) == FAILURES_MOST
        assert (await gateway.client.get("/health/ready")).json() == {"status": "degraded"}


async def test_a_pooled_connection_that_was_ended_is_no_failure(tmp_path: Path) -> None:
    async with (
        ScriptedUpstream(HI, [CLOSE], HI) as engine,
        serving_upstreams(tmp_path, local(engine.port) + model('"engine"')) as gateway,
    ):
        assert [(await gateway.post()).status_code for _ in range(2)] == [200, 200]
        assert len(engine.requests) == 3


async def test_what_met_an_ended_connection_is_asked_over_a_new_one(tmp_path: Path) -> None:
    """All that were pooled have ended when an upstream was replaced: the next pooled one would fail alike."""
    both = asyncio.Event()
    async with (
        ScriptedUpstream([both, *HI], [both, *HI], [CLOSE], HI) as engine,
        serving_upstreams(tmp_path, local(engine.port) + model('"engine"')) as gateway,
    ):
        first = asyncio.gather(gateway.post(), gateway.post())
        async with asyncio.timeout(5):
            while len(engine.requests) < 2:
                await asyncio.sleep(0.005)
        both.set()
        await first
        assert (await gateway.post()).status_code == 200
        assert sorted(seen.connection for seen in engine.requests[:2]) == [1, 2]
        assert engine.requests[3].connection == 3


async def test_a_stalled_upstream_is_not_repeated_elsewhere(tmp_path: Path) -> None:
    async with ScriptedUpstream([HANG]) as slow, ScriptedUpstream(HI) as spare:
        text = local(slow.port, "slow", first_byte_timeout_s=0.1) + local(spare.port, "spare")
        async with serving_upstreams(tmp_path, text + model('["slow", "spare"]')) as gateway:
            assert (await gateway.post()).status_code == 504
            assert spare.requests == []


async def test_prompts_are_spread_by_weight(tmp_path: Path) -> None:
    choice = '[{ name = "first", weight = 3 }, { name = "spare", weight = 1 }]'
    async with pair(tmp_path, answered(completion("a")), answered(completion("b")), choice) as (gateway, *_):
        texts = [(await gateway.post()).json()["choices"][0]["message"]["content"] for _ in range(16)]
        assert Counter(texts) == {"a": 12, "b": 4}


async def test_a_conversation_stays_where_its_beginning_is_cached(tmp_path: Path) -> None:
    async with pair(tmp_path, answered(completion("a")), answered(completion("b")), affinity=True) as (gateway, *_):
        chosen: dict[str, set[str]] = {}
        for index in range(8):
            for _ in range(3):
                answer = await gateway.post(messages=[{"role": "user", "content": f"{index}" * 50}])
                chosen.setdefault(str(index), set()).add(answer.json()["choices"][0]["message"]["content"])
        assert all(len(texts) == 1 for texts in chosen.values())
        assert {text for texts in chosen.values() for text in texts} == {"a", "b"}


async def test_many_prompts_at_once_leave_nothing_behind(tmp_path: Path) -> None:
    async with pair(tmp_path, DOWN, HI) as (gateway, first, spare):
        answers = await asyncio.gather(*(gateway.post() for _ in range(40)))
        assert {answer.status_code for answer in answers} == {200}
        assert len(spare.requests) == 40
        for opened in gateway.upstreams.opened.values():
            relay = opened._relay()
            assert relay is not None
            assert relay.channel.live == 0
        assert gateway.lifecycle.in_flight == 0
        assert len(first.requests) <= 40
