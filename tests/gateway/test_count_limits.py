"""Counts of tokens are seen in the log, and a flood of them keeps neither the engine nor a prompt from its work."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from attested_service import serving
from confide.config import Config, Limits, Model, Server
from confide.protocol.chat import parse_chat
from confide.telemetry.logs import ALLOWED
from gateway.test_attested_upstreams import aci, aggregating, broken_report
from gateway_app import (
    MODEL,
    RawConnection,
    ScriptedGateway,
    answering,
    bearer,
    raw_connection,
    raw_post,
    serving_scripted,
)
from relay_app import RelayGateway, answered, completion, local, model, serving_upstreams
from scripted import CLOSE, HANG, Script, ScriptedUpstream, SeenRequest, response

COUNT = "/v1/messages/count_tokens"
CANARY = "canary-5d1e"
SEVEN = answered(b'{"input_tokens": 7}')
TEMPLATED = response(b'{"prompt":"<s>Hello"}')
THREE = response(b'{"tokens":[1,2,3]}')


def body(**members: object) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": CANARY}], **members}


async def count(gateway: Any, headers: dict[str, str] | None = None, **members: object) -> httpx2.Response:
    answer: httpx2.Response = await gateway.client.post(COUNT, json=body(**members), headers=headers or {})
    return answer


def raw_count(**members: object) -> bytes:
    return raw_post(json.dumps(body(**members)).encode(), target=COUNT.encode())


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


# The line


def line_of(gateway: Any) -> dict[str, Any]:
    """The last line of a request, which every ended one has left by now."""
    text: str = gateway.written.getvalue()
    assert CANARY not in text
    lines = [json.loads(line) for line in text.splitlines()]
    line: dict[str, Any] = [line for line in lines if line["event"] == "request"][-1]
    assert set(line) - {"at", "event"} <= ALLOWED
    assert (line["endpoint"], line["stream"], line["receipt"], line["id"]) == (COUNT, False, None, None)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (0, 0)  # nothing was inferred
    return line


def counted(seen: SeenRequest) -> Script:
    """What the embedded engine does with the questions of a count."""
    return [TEMPLATED] if seen.target == b"/apply-template" else [THREE]


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    limits, server = Limits(queue=1, queue_timeout_s=30), Server(max_body_bytes=500_000)
    config = Config(model=(Model(id=MODEL, upstream_model="scripted"),), limits=limits, server=server)
    async with serving_scripted(tmp_path, answering("Hi"), config=config) as gateway:
        gateway.engine.choose = counted
        yield gateway


async def test_a_count_leaves_the_line_that_a_prompt_does(gateway: ScriptedGateway) -> None:
    key = await gateway.new_key()
    assert (await count(gateway, bearer(key))).status_code == 200
    line = line_of(gateway)
    assert (line["outcome"], line["reason"], line["status"], line["model"]) == ("complete", None, 200, MODEL)
    assert line["key_id"].startswith("key_")
    assert line["ms"] >= 0
    gateway.engine.choose = None
    await gateway.client.post("/v1/chat/completions", json=body(), headers=bearer(key))
    assert set(gateway.last_line()) == set(line)
    assert key not in gateway.log_text()


@pytest.mark.parametrize(
    ("members", "status", "reason"),
    [
        ({"model": "none"}, 404, "model_not_found"),
        ({"max_tokens": 1}, 400, "invalid_request_error"),
        ({"system": "x" * 600_000}, 413, "invalid_request_error"),
        ({"system": "x" * 300_000}, 400, "invalid_request_error"),
        ({"provider": {"aci_session_ids": ["0" * 64]}}, 412, "session_not_accepted"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_so_does_one_that_is_refused(
    gateway: ScriptedGateway, members: dict[str, Any], status: int, reason: str
) -> None:
    assert (await count(gateway, **members)).status_code == status
    line = line_of(gateway)
    assert (line["outcome"], line["reason"], line["status"]) == ("refused", reason, status)


async def test_so_does_one_without_a_key_and_one_while_shutting_down(gateway: ScriptedGateway) -> None:
    await gateway.new_key()
    assert (await count(gateway)).status_code == 401
    line = line_of(gateway)
    assert (line["outcome"], line["reason"], line["key_id"], line["model"]) == (
        "refused",
        "authentication_error",
        None,
        None,
    )
    await gateway.lifecycle.drain(0.01)
    assert (await count(gateway)).status_code == 503
    assert (line_of(gateway)["outcome"], line_of(gateway)["reason"]) == ("refused", "service_unavailable")


async def test_so_does_one_that_fails(gateway: ScriptedGateway) -> None:
    gateway.engine.choose = lambda _: [CLOSE]
    assert (await count(gateway)).status_code == 502
    assert (line_of(gateway)["outcome"], line_of(gateway)["reason"]) == ("failed", "upstream_error")


async def test_so_does_one_whose_client_left(gateway: ScriptedGateway) -> None:
    gate = asyncio.Event()
    gateway.engine.choose = lambda _: [gate, TEMPLATED]
    async with raw_connection(gateway.url) as client:
        await client.send(raw_count())
        await gateway.engine.asked(1)
    await until(lambda: "client_closed" in gateway.log_text())
    line = line_of(gateway)
    assert (line["outcome"], line["reason"], line["status"]) == ("client_closed", "nothing_sent", None)
    gate.set()


async def test_so_does_one_that_no_verified_upstream_may_have(tmp_path: Path) -> None:
    with serving(tmp_path / "service", tls=True) as service:
        service.alter["report"] = broken_report
        text = aci(service, surfaces=["messages"]) + model('"second"')
        async with aggregating(tmp_path, text) as gateway:
            assert (await count(gateway)).status_code == 503
            line = line_of(gateway)
            assert (line["outcome"], line["reason"]) == ("refused", "upstream_verification_failed")


async def test_so_does_one_of_an_upstream_and_each_attempt_has_its_own(tmp_path: Path) -> None:
    async with ScriptedUpstream(answered(b"{}", status=b"500 No")) as first, ScriptedUpstream(SEVEN) as spare:
        text = speaking(first, "first") + speaking(spare, "spare") + model('["first", "spare"]')
        async with serving_upstreams(tmp_path, text) as gateway:
            assert (await count(gateway)).status_code == 200
            assert (line_of(gateway)["outcome"], line_of(gateway)["model"]) == ("complete", MODEL)
            [attempt] = gateway.lines("attempt")
            assert (attempt["name"], attempt["reason"]) == ("first", "status 500")


# The embedded engine counts one at a time


class Gates:
    """Holds the engine's answers to the first question of each count."""

    def __init__(self, gateway: ScriptedGateway) -> None:
        self.gateway = gateway
        self.open: list[asyncio.Event] = []
        gateway.engine.choose = self.script

    def script(self, seen: SeenRequest) -> Script:
        if seen.target != b"/apply-template":
            return [THREE]
        self.open.append(asyncio.Event())
        return [self.open[-1], TEMPLATED]

    @property
    def begun(self) -> int:
        return len(self.open)


@contextlib.asynccontextmanager
async def raw_counting(gateway: Any) -> AsyncIterator[RawConnection]:
    """A client that has asked for a count, and leaves."""
    async with raw_connection(gateway.url) as client:
        await client.send(raw_count())
        yield client


async def test_counts_take_turns_and_one_too_many_is_told_when_to_come_again(gateway: ScriptedGateway) -> None:
    gates = Gates(gateway)
    first = asyncio.create_task(count(gateway))
    await until(lambda: gates.begun == 1)
    second = asyncio.create_task(count(gateway))
    counting = counting_slots(gateway)
    await until(lambda: counting.waiting == 1)
    third = await count(gateway)
    assert (third.status_code, third.json()["error"]["type"]) == (429, "rate_limit_error")
    assert int(third.headers["retry-after"]) >= 1
    assert (line_of(gateway)["outcome"], line_of(gateway)["reason"]) == ("refused", "rate_limit_error")
    assert gates.begun == 1
    gates.open[0].set()
    assert (await first).json() == {"input_tokens": 3}
    await until(lambda: gates.begun == 2)
    gates.open[1].set()
    assert (await second).json() == {"input_tokens": 3}
    assert (counting.free, counting.waiting) == (1, 0)


def counting_slots(gateway: ScriptedGateway) -> Any:
    upstream: Any = gateway.app.models.models[0].route.candidates[0].upstream
    return upstream.counting


async def test_no_turn_in_time_is_a_503(tmp_path: Path) -> None:
    limits = Limits(queue=1, queue_timeout_s=0.1)
    config = Config(model=(Model(id=MODEL, upstream_model="scripted"),), limits=limits)
    async with serving_scripted(tmp_path, [HANG], config=config) as gateway:
        async with raw_counting(gateway):
            await gateway.engine.asked(1)
            answer = await count(gateway)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "api_error")
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_waiting_count_whose_client_left_never_begins(gateway: ScriptedGateway) -> None:
    gates = Gates(gateway)
    counting = counting_slots(gateway)
    first = asyncio.create_task(count(gateway))
    await until(lambda: gates.begun == 1)
    async with raw_counting(gateway):
        await until(lambda: counting.waiting == 1)
    await until(lambda: counting.waiting == 0)
    gates.open[0].set()
    assert (await first).status_code == 200
    await until(lambda: counting.free == 1)
    assert gates.begun == 1


async def test_whoever_leaves_gives_the_turn_back_when_the_engine_is_done(gateway: ScriptedGateway) -> None:
    """The engine goes on when its client left: many that come and leave would have it count for all of them at once."""
    gates = Gates(gateway)
    counting = counting_slots(gateway)
    async with raw_counting(gateway):
        await until(lambda: gates.begun == 1)
    await until(lambda: gateway.lifecycle.in_flight == 0)
    second = asyncio.create_task(count(gateway))
    await until(lambda: counting.waiting == 1)
    assert (gates.begun, gateway.engine.departures) == (1, [])
    gates.open[0].set()
    await until(lambda: gates.begun == 2)
    gates.open[1].set()
    assert (await second).status_code == 200
    await until(lambda: counting.free == 1)


async def test_a_prompt_is_answered_while_counts_wait(gateway: ScriptedGateway) -> None:
    gates = Gates(gateway)
    held = [asyncio.create_task(count(gateway)) for _ in range(2)]
    await until(lambda: gates.begun == 1)
    gateway.engine.choose = lambda seen: answering("Hi") if b"chat" in seen.target else gates.script(seen)
    assert (await gateway.post()).status_code == 200
    for number in range(2):
        await until(lambda number=number: gates.begun == number + 1)
        gates.open[number].set()
    assert [(await each).status_code for each in held] == [200, 200]


async def test_a_prompt_is_made_into_a_question_beside_the_event_loop(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 20 MB in small messages that takes seconds."""
    threads: list[threading.Thread] = []

    def recorded(sent: bytes) -> Any:
        threads.append(threading.current_thread())
        return parse_chat(sent)

    monkeypatch.setattr("confide.upstream.kinds.embedded.parse_chat", recorded)
    assert (await count(gateway)).status_code == 200
    assert threads
    assert threading.current_thread() not in threads


async def test_a_fault_gives_the_turn_back(gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: bytes) -> Any:
        raise ValueError(CANARY)

    with monkeypatch.context() as patched:
        patched.setattr("confide.upstream.kinds.embedded.parse_chat", fail)
        answer = await count(gateway)
    assert answer.status_code == 500
    assert CANARY not in answer.text
    assert (line_of(gateway)["outcome"], line_of(gateway)["reason"]) == ("failed", "internal_error")
    assert (await count(gateway)).status_code == 200


# Upstreams: a part of the connections


def speaking(engine: ScriptedUpstream, name: str = "engine", **keys: Any) -> str:
    return local(engine.port, name, surfaces=["chat", "messages"], **keys)


@contextlib.asynccontextmanager
async def flooded(home: Path, engine: ScriptedUpstream, text: str) -> AsyncIterator[RelayGateway]:
    """A gateway whose upstream `engine`, of 8 connections, has as many counts under way as it may."""
    engine.choose = lambda seen: [HANG] if b"count" in seen.target else answered(completion())
    async with serving_upstreams(home, text) as gateway, raw_counting(gateway), raw_counting(gateway):
        await engine.asked(2)
        yield gateway


async def test_counts_have_a_part_of_the_connections_and_prompts_the_rest(tmp_path: Path) -> None:
    async with ScriptedUpstream() as engine:
        text = speaking(engine, max_connections=8) + model('"engine"')
        async with flooded(tmp_path, engine, text) as gateway:
            answer = await count(gateway)
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, "api_error")
            assert int(answer.headers["retry-after"]) >= 1
            assert (line_of(gateway)["outcome"], line_of(gateway)["reason"]) == ("refused", "service_unavailable")
            assert len(engine.requests) == 2
            assert [(await gateway.post()).status_code for _ in range(3)] == [200] * 3


async def test_where_one_has_enough_of_them_another_is_asked(tmp_path: Path) -> None:
    async with ScriptedUpstream() as engine, ScriptedUpstream(SEVEN) as spare:
        text = speaking(engine, max_connections=8) + speaking(spare, "spare") + model('["engine", "spare"]')
        async with flooded(tmp_path, engine, text) as gateway:
            assert (await count(gateway)).json() == {"input_tokens": 7}


async def test_those_that_leave_make_room_at_once(tmp_path: Path) -> None:
    async with ScriptedUpstream() as engine:
        text = speaking(engine, max_connections=8) + model('"engine"')
        async with serving_upstreams(tmp_path, text) as gateway:
            engine.choose = lambda _: [HANG]
            async with raw_counting(gateway), raw_counting(gateway):
                await engine.asked(2)
            await engine.left(2)
            engine.choose = lambda _: SEVEN
            await until(lambda: gateway.lifecycle.in_flight == 0)
            assert (await count(gateway)).status_code == 200


async def test_one_may_always_be_under_way(tmp_path: Path) -> None:
    async with ScriptedUpstream(SEVEN) as engine:
        text = speaking(engine, max_connections=1) + model('"engine"')
        async with serving_upstreams(tmp_path, text) as gateway:
            assert [(await count(gateway)).status_code for _ in range(3)] == [200] * 3
