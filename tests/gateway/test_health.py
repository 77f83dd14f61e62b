"""Liveness and readiness (wire contract 1): cheap, open, and silent about everything else."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway_app import ScriptedGateway, answering, bearer, chat, serving_scripted, token
from scripted import HANG, sse_head


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        yield gateway


async def readiness(gateway: ScriptedGateway) -> tuple[int, dict[str, str]]:
    answer = await gateway.client.get("/health/ready")
    return answer.status_code, answer.json()


async def test_a_service_that_can_answer_is_ready(gateway: ScriptedGateway) -> None:
    assert await readiness(gateway) == (200, {"status": "ready"})


async def test_a_service_whose_engine_is_down_is_degraded_but_alive(gateway: ScriptedGateway) -> None:
    gateway.switch.is_ready = False
    assert await readiness(gateway) == (503, {"status": "degraded"})
    assert (await gateway.client.get("/health")).json() == {"status": "ok"}
    gateway.switch.is_ready = True
    assert await readiness(gateway) == (200, {"status": "ready"})


async def test_a_service_that_ends_is_draining_but_alive(gateway: ScriptedGateway) -> None:
    await gateway.lifecycle.drain(0, grace_s=0)
    assert await readiness(gateway) == (503, {"status": "draining"})
    assert (await gateway.client.get("/health")).status_code == 200


async def test_health_costs_no_token_and_asks_no_engine(gateway: ScriptedGateway) -> None:
    for path in ("/health", "/health/ready", "/", "/llms.txt"):
        assert (await gateway.client.get(path)).status_code == 200
    assert gateway.engine.accepted == 0


async def test_health_is_answered_while_every_slot_is_busy(gateway: ScriptedGateway) -> None:
    gateway.follow([sse_head(), token("x"), HANG])
    async with asyncio.TaskGroup() as busy:
        tasks = [busy.create_task(gateway.post()) for _ in range(6)]
        await gateway.engine.asked(4)
        assert gateway.slots.free == 0
        assert (await gateway.client.get("/health")).json() == {"status": "ok"}
        assert await readiness(gateway) == (200, {"status": "ready"})
        for task in tasks:
            task.cancel()


async def test_health_is_open_and_a_credential_is_ignored(gateway: ScriptedGateway) -> None:
    token_of_honest = await gateway.new_key()
    for headers in ({}, bearer(token_of_honest), bearer("wrong"), {"Authorization": "nonsense", "x-api-key": "a"}):
        for path in ("/health", "/health/ready", "/", "/llms.txt"):
            assert (await gateway.client.get(path, headers=headers)).status_code == 200
    assert (await gateway.client.post("/v1/chat/completions", json=chat())).status_code == 401


async def test_outsiders_learn_nothing_more_from_it(gateway: ScriptedGateway) -> None:
    seen = ""
    for path in ("/health", "/health/ready"):
        answer = await gateway.client.get(path)
        assert answer.headers["content-type"] == "application/json"
        seen += answer.text
    assert seen == '{"status":"ok"}{"status":"ready"}'
