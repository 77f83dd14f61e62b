"""Clients that leave at random moments, against the real program: no slot is lost, and the next answer is right.

How free slots are seen from outside. An engine whose slots are all free uses no processor time, one that still
generates uses as much as it gets: so its time is read when the half second is over and again later. This holds on a
machine that others use too, where the time of an answer tells little. Then as many short requests as there are slots
run together; each abandoned one would run for minutes, and a slot that it kept would keep the last of them waiting.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from e2e.engine_process import cpu_s, engines_of, needs_proc
from running import Running, home_with_weights, running

pytestmark = pytest.mark.engine

SLOTS = 4
STREAMS = 8
FREE_WITHIN_S = 0.5
NOTHING_S = 0.02  # two clock ticks of threads that look around
SECONDS = 30
CHATS = "/v1/chat/completions"
HELLO = {"model": "confide/smollm2-135m", "messages": [{"role": "user", "content": "Hi"}]}
NO_END = {"logit_bias": {"2": -100}, "max_tokens": 3000}  # 2 is the token that ends SmolLM2's turn: minutes of text
RIGHT = {"max_tokens": 16, "seed": 7}


@asynccontextmanager
async def talking(service: Running) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=service.url, timeout=60) as client:
        yield client


async def answer(client: httpx2.AsyncClient) -> str:
    """The answer that one seed gives."""
    response = await client.post(CHATS, json={**HELLO, **RIGHT})
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


async def fill_slots(client: httpx2.AsyncClient) -> None:
    """As many requests together as there are slots; each is answered in seconds."""
    async with asyncio.timeout(SECONDS):
        responses = await asyncio.gather(
            *(client.post(CHATS, json={**HELLO, "max_tokens": 1}) for _ in range(SLOTS)),
        )
    assert [response.status_code for response in responses] == [200] * SLOTS


async def busy_s(engine: int) -> float:
    """Processor time that the engine uses in half a second, from half a second from now on."""
    await asyncio.sleep(FREE_WITHIN_S)  # the time that it was promised, and then the time of the measurement
    before = cpu_s(engine)
    await asyncio.sleep(0.5)
    return cpu_s(engine) - before


class Visit:
    """A request on a connection of its own, so that leaving is closing the socket and nothing else."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def events(self, count: int) -> None:
        """Wait until the answer had so many events."""
        for _ in range(count):
            line = await self._reader.readuntil(b"\n\n")
            assert b"data: " in line, line

    async def stay(self, seconds: float) -> None:
        """Read what comes for so long. The answer must not end by itself."""
        try:
            async with asyncio.timeout(seconds):
                body = await self._reader.read(-1)
        except TimeoutError:
            return
        raise AssertionError(f"the service closed the connection: {body[:500]!r}")

    def leave(self) -> None:
        """Close the socket now."""
        self._writer.transport.abort()


async def visit(url: str, *, stream: bool) -> Visit:
    """Send a request whose answer has no end."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**20)
    body = json.dumps({**HELLO, **NO_END, "stream": stream}).encode()
    writer.write(
        b"POST %b HTTP/1.1\r\nHost: confide\r\nContent-Length: %d\r\n\r\n" % (CHATS.encode(), len(body)) + body
    )
    return Visit(reader, writer)


async def leave_at_some_moment(url: str, moment: int, draw: random.Random) -> None:
    """`moment` 0: before the first byte; 1: some time, queued or not; 2: mid-stream; 3: some time, buffered."""
    visitor = await visit(url, stream=moment != 3)
    try:
        if moment == 0:
            await visitor.stay(draw.uniform(0, 0.05))
        elif moment == 2:
            await visitor.events(draw.randint(1, 8))
        else:
            await visitor.stay(draw.uniform(0, 1))
    finally:
        visitor.leave()


async def storm(url: str, count: int, draw: random.Random) -> None:
    """So many clients that leave, eight at a time."""
    numbers = iter(range(count))

    async def one_after_another() -> None:
        for number in numbers:
            await leave_at_some_moment(url, number % 4, draw)

    async with asyncio.TaskGroup() as group:
        for _ in range(STREAMS):
            group.create_task(one_after_another())


async def leave_together(url: str) -> None:
    """Eight streams, four of them running and four waiting, whose clients leave at one instant."""
    visitors = [await visit(url, stream=True) for _ in range(STREAMS)]
    try:
        await asyncio.gather(*(visitor.events(3) for visitor in visitors[:SLOTS]))
    finally:
        for visitor in visitors:
            visitor.leave()


def outcomes(service: Running) -> list[str]:
    """The outcome of each request so far."""
    lines = [json.loads(line) for line in service.stderr.read_text().splitlines() if line.startswith("{")]
    return [line["outcome"] for line in lines if line["event"] == "request"]


@needs_proc
@pytest.mark.parametrize("count", [20, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(300)])])
async def test_every_slot_is_free_again_after_random_aborts(engine_home: Path, tmp_path: Path, count: int) -> None:
    with running(home_with_weights(tmp_path, engine_home)) as service:
        [engine] = engines_of(service)
        async with talking(service) as client:
            before = await answer(client)
            await storm(service.url, count - STREAMS, random.Random(count))
            used = cpu_s(engine)
            await leave_together(service.url)
            assert cpu_s(engine) - used > NOTHING_S  # else the next line would say nothing
            assert await busy_s(engine) <= NOTHING_S
            await fill_slots(client)
            assert await answer(client) == before
    # One line each: nobody vanished, and nobody's answer was taken for whole.
    assert Counter(outcomes(service)) == {"client_closed": count, "complete": 2 + SLOTS}


async def test_clients_that_stay_all_get_their_answer(engine_home: Path, tmp_path: Path) -> None:
    """The twin: twice as many clients as slots, one request after another, and nobody leaves."""
    with running(home_with_weights(tmp_path, engine_home)) as service:
        async with talking(service) as client:

            async def ask(times: int) -> list[int]:
                return [
                    (await client.post(CHATS, json={**HELLO, "max_tokens": 1, "stream": number % 2 == 0})).status_code
                    for number in range(times)
                ]

            statuses = await asyncio.gather(*(ask(4) for _ in range(STREAMS)))
    assert [status for each in statuses for status in each] == [200] * (4 * STREAMS)
