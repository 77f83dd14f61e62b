"""More requests than slots: who waits, who is told to come back, and in which order they are served."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import pytest

from confide.config import Config, Engine, Limits, Model
from gateway_app import MODEL, ScriptedGateway, answering, assert_receipted, chat, serving_scripted

SLOTS = 4
MODELS = (Model(id=MODEL, upstream_model="scripted"),)
PATH = "/v1/chat/completions"


def ask(gateway: ScriptedGateway, text: str = "Hello", **members: object) -> "asyncio.Task[httpx2.Response]":
    return asyncio.create_task(gateway.client.post(PATH, json=chat(text, **members)))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


def error_of(answer: httpx2.Response) -> dict[str, object]:
    error: dict[str, object] = answer.json()["error"]
    return error


def prompts(gateway: ScriptedGateway) -> list[str]:
    """What the engine was asked, in order."""
    return [json.loads(request.body)["messages"][0]["content"] for request in gateway.engine.requests]


def assert_free(gateway: ScriptedGateway) -> None:
    assert (gateway.slots.free, gateway.slots.waiting, gateway.channel.live) == (SLOTS, 0, 0)


class Busy:
    """A gateway whose slots are taken until `release`."""

    def __init__(self, gateway: ScriptedGateway, gate: asyncio.Event) -> None:
        self.gateway = gateway
        self._gate = gate
        self.held: list[asyncio.Task[httpx2.Response]] = []

    async def take_slots(self) -> None:
        self.held = [ask(self.gateway, f"held {number}") for number in range(SLOTS)]
        await self.gateway.engine.asked(SLOTS)

    async def wait_in_line(self, text: str, **members: object) -> "asyncio.Task[httpx2.Response]":
        """Ask, and return once the request waits for a slot."""
        before = self.gateway.slots.waiting
        asking = ask(self.gateway, text, **members)
        await until(lambda: self.gateway.slots.waiting > before)
        return asking

    async def release(self) -> None:
        self._gate.set()
        assert [(await each).status_code for each in self.held] == [200] * SLOTS


@contextlib.asynccontextmanager
async def busy(home: Path, *, queue: int = 32, queue_timeout_s: float = 60.0) -> AsyncIterator[Busy]:
    gate = asyncio.Event()
    config = Config(
        model=MODELS, engine=Engine(slots=SLOTS), limits=Limits(queue=queue, queue_timeout_s=queue_timeout_s)
    )
    async with serving_scripted(home, [gate, *answering("Hi")], config=config) as gateway:
        busy = Busy(gateway, gate)
        await busy.take_slots()
        yield busy


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_is_a_429_that_says_when_to_come_back(tmp_path: Path, stream: bool) -> None:
    async with busy(tmp_path, queue=2) as service:
        gateway = service.gateway
        waiting = [await service.wait_in_line("first"), await service.wait_in_line("second", stream=stream)]
        refused = await ask(gateway, "third", stream=stream)
        assert refused.status_code == 429
        assert error_of(refused)["type"] == "rate_limit_error"
        assert error_of(refused)["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) > 0
        assert gateway.outcomes() == ["refused"]
        receipt = await assert_receipted(gateway, refused.content, "refused", is_forwarded=False)
        assert refused.headers["x-receipt-id"] == receipt.members.receipt_id
        await service.release()
        assert [(await each).status_code for each in waiting] == [200, 200]
        assert "third" not in prompts(gateway)
        assert_free(gateway)


@pytest.mark.parametrize("stream", [False, True])
async def test_who_waited_too_long_is_told_503_and_never_starts(tmp_path: Path, stream: bool) -> None:
    async with busy(tmp_path, queue_timeout_s=0.02) as service:
        late = await ask(service.gateway, "late", stream=stream)
        assert late.status_code == 503
        assert error_of(late)["type"] == "service_unavailable"
        assert int(late.headers["retry-after"]) > 0
        assert service.gateway.outcomes() == ["refused"]
        receipt = await assert_receipted(service.gateway, late.content, "refused", is_forwarded=False)
        assert late.headers["x-receipt-id"] == receipt.members.receipt_id
        assert service.gateway.slots.waiting == 0
        await service.release()
        assert "late" not in prompts(service.gateway)
        assert_free(service.gateway)


async def test_first_come_first_served(tmp_path: Path) -> None:
    async with busy(tmp_path) as service:
        names = [f"guest {number}" for number in range(8)]
        waiting = [await service.wait_in_line(name) for name in names]
        await service.release()
        assert [(await each).status_code for each in waiting] == [200] * len(names)
        assert prompts(service.gateway)[SLOTS:] == names
        assert_free(service.gateway)


async def test_who_leaves_the_queue_makes_room_and_holds_nobody_up(tmp_path: Path) -> None:
    async with busy(tmp_path, queue=3) as service:
        gateway = service.gateway
        first, second, third = [await service.wait_in_line(name) for name in ("first", "second", "third")]
        second.cancel()
        await until(lambda: gateway.slots.waiting == 2)
        fourth = await service.wait_in_line("fourth")
        await service.release()
        assert [(await each).status_code for each in (first, third, fourth)] == [200, 200, 200]
        assert prompts(gateway)[SLOTS:] == ["first", "third", "fourth"]
        assert_free(gateway)


async def test_each_choice_takes_a_slot_of_its_own(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with serving_scripted(tmp_path, [gate, *answering("Hi")]) as gateway:
        six = ask(gateway, n=6)
        await gateway.engine.asked(SLOTS)
        await until(lambda: gateway.slots.waiting == 2)
        assert gateway.slots.free == 0
        gate.set()
        assert len((await six).json()["choices"]) == 6
        assert_free(gateway)


async def test_a_request_that_finds_room_for_one_of_its_two_choices_is_refused_whole(tmp_path: Path) -> None:
    async with busy(tmp_path, queue=1) as service:
        refused = await ask(service.gateway, "pair", n=2)
        assert refused.status_code == 429
        assert service.gateway.slots.waiting == 0
        assert (await service.wait_in_line("single")) is not None
        await service.release()
        await service.gateway.outcome(SLOTS + 2)
        assert prompts(service.gateway).count("pair") == 0
        assert_free(service.gateway)


async def test_many_at_once_do_not_overrun_the_queue(tmp_path: Path) -> None:
    """Each of these finds room when it is admitted, before the choices of any have taken theirs."""
    gate = asyncio.Event()
    config = Config(model=MODELS, engine=Engine(slots=SLOTS), limits=Limits(queue=2))
    async with serving_scripted(tmp_path, [gate, *answering("Hi")], config=config) as gateway:
        asking = [ask(gateway, n=3) for _ in range(6)]
        await gateway.engine.asked(3)
        await until(lambda: len(gateway.outcomes()) >= 4)
        assert gateway.slots.waiting <= 2
        gate.set()
        statuses = [(await each).status_code for each in asking]
        assert set(statuses) == {200, 429}
        assert_free(gateway)


async def test_more_choices_than_could_ever_wait_are_a_400(tmp_path: Path) -> None:
    config = Config(model=MODELS, engine=Engine(slots=1), limits=Limits(queue=2))
    async with serving_scripted(tmp_path, answering("Hi"), config=config) as gateway:
        refused = await ask(gateway, n=4)
        assert refused.status_code == 400
        assert error_of(refused)["param"] == "n"
        assert len((await ask(gateway, n=3)).json()["choices"]) == 3


async def test_an_engine_that_went_down_while_a_request_waited_is_not_asked(tmp_path: Path) -> None:
    async with busy(tmp_path) as service:
        waiting = await service.wait_in_line("patient")
        service.gateway.switch.is_ready = False
        await service.release()
        assert (await waiting).status_code == 503
        assert "patient" not in prompts(service.gateway)
        assert_free(service.gateway)
