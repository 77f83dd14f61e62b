"""A flood of counts before the real engine: prompts are answered all the same."""

import asyncio
from pathlib import Path

import httpx2
import pytest

from running import home_with_weights, running

MODEL = "confide/smollm2-135m"
COUNTS, PROMPTS = 40, 4

pytestmark = [pytest.mark.engine, pytest.mark.long]


async def test_counts_leave_prompts_their_connections(engine_home: Path, tmp_path: Path) -> None:
    """One slot means two connections to the engine, which counts once had all of."""
    home = home_with_weights(tmp_path, engine_home)
    long = {"model": MODEL, "messages": [{"role": "user", "content": "hello world " * 5000}]}
    short = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    with running(home, config="[engine]\nslots = 1\n[limits]\nqueue = 8\n") as service:
        async with httpx2.AsyncClient(base_url=service.url, timeout=60) as client:
            counts = [client.post("/v1/messages/count_tokens", json=long) for _ in range(COUNTS)]
            prompts = [client.post("/v1/chat/completions", json=short) for _ in range(PROMPTS)]
            answers = await asyncio.gather(*counts, *prompts)
    counted, answered = answers[:COUNTS], answers[COUNTS:]
    assert [answer.status_code for answer in answered] == [200] * PROMPTS
    assert 200 in {answer.status_code for answer in counted} <= {200, 429}
    assert len({answer.content for answer in counted if answer.status_code == 200}) == 1
    assert all("retry-after" in answer.headers for answer in counted if answer.status_code == 429)
