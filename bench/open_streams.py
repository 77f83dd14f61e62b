"""Many open streams: what one keeps in memory, and whether a thousand of them on one core all end as they should."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import uvloop

from bench.answers import HELD, PACED, TOKENS, WHOLE, expected_text, question
from bench.engine import RELEASE
from bench.figures import Budget, Figure, Size
from bench.load import Address, Answer, BenchFailed, Connection, ask_once, closed_loop, connect, post
from bench.processes import Stage, Target, stage
from bench.report import progress

KIB_A_STREAM = Budget(64)
ALL_WHOLE = Budget(1.0, at_least=True)
WARM_UP = 256
MEMORY_ROUNDS = 3


@dataclass(frozen=True)
class Crowd:
    """How many paced streams did what, in how long, for how much CPU."""

    whole: int
    asked: int
    took_s: float
    cpu_s: float


def measure(size: Size) -> list[Figure]:
    """On the path of the embedded engine, and in front of an upstream."""
    with stage(interval_s=size.interval_s) as scripted:
        embedded = measured(scripted, scripted.service, size, "")
        return embedded + measured(scripted, scripted.local, size, "local, ")


def measured(
    scripted: Stage, start: Callable[[], AbstractContextManager[Target]], size: Size, path: str
) -> list[Figure]:
    """Memory first, each round in a fresh process; then the crowd."""
    kib, crowds = [], []
    for number in range(min(size.rounds, MEMORY_ROUNDS)):
        progress(f"open streams: {path}{size.open_streams} held, round {number + 1}")
        with start() as target:
            kib.append(uvloop.run(held(target, scripted.engine, size.open_streams)) / 1024)
    progress(f"open streams: {path}{size.paced_streams} paced")
    with start() as target:
        crowds.append(uvloop.run(paced(target, size.paced_streams)))
    return [
        Figure.of(f"{path}memory an open stream ({size.open_streams} open)", kib, "KiB", KIB_A_STREAM),
        *described(crowds, path),
    ]


def described(crowds: list[Crowd], path: str) -> list[Figure]:
    """The crowd's figures."""
    asked = crowds[0].asked
    chunks = asked * len(TOKENS)
    return [
        Figure.of(
            f"{path}{asked:,} open streams on one core: complete and byte-identical",
            [crowd.whole / crowd.asked for crowd in crowds],
            "of 1",
            ALL_WHOLE,
        ),
        Figure.of(
            f"{path}{asked:,} open streams: CPU a chunk that comes alone",
            [crowd.cpu_s / chunks * 1e6 for crowd in crowds],
            "µs",
        ),
        Figure.of(
            f"{path}{asked:,} open streams: share of the core",
            [crowd.cpu_s / crowd.took_s * 100 for crowd in crowds],
            "%",
        ),
    ]


async def reference(target: Target) -> bytes:
    """What each stream of fifty tokens must compare to, after a warm-up."""
    request = post(question(WHOLE, stream=True), key=target.key, headers=target.headers)
    answer = await ask_once(target.address, request)
    if answer.text(stream=True) != expected_text(WHOLE):
        raise BenchFailed("not what the engine said")
    connections = await connect(target.address, 32)
    await closed_loop(connections, request, WARM_UP, answer.comparable)
    for connection in connections:
        connection.close()
    return answer.comparable


async def held(target: Target, engine: Address, count: int) -> float:
    """Bytes that the service grew by for each stream that is open half-way. All must be whole in the end."""
    expected = await reference(target)
    connections = await connect(target.address, count)
    before = target.rss_bytes()
    request = post(question(HELD, stream=True), key=target.key, headers=target.headers)
    asking = [asyncio.create_task(connection.ask(request)) for connection in connections]
    await all_began(connections)
    grown = target.rss_bytes() - before
    await ask_once(engine, RELEASE)
    if (whole := count_whole(await asyncio.gather(*asking), expected)) != count:
        raise BenchFailed(f"of {count} streams that were held half-way, {whole} are whole")
    return grown / count


async def all_began(connections: list[Connection]) -> None:
    """Wait for the first bytes of each answer."""
    await asyncio.gather(*(connection.began.wait() for connection in connections))


async def paced(target: Target, count: int) -> Crowd:
    """So many streams at the same time, whose tokens come one by one."""
    expected = await reference(target)
    connections = await connect(target.address, count)
    request = post(question(PACED, stream=True), key=target.key, headers=target.headers)
    began, cpu_s = time.perf_counter(), target.cpu_s()
    answers = await asyncio.gather(*(connection.ask(request) for connection in connections))
    return Crowd(
        whole=count_whole(answers, expected),
        asked=count,
        took_s=time.perf_counter() - began,
        cpu_s=target.cpu_s() - cpu_s,
    )


def count_whole(answers: list[Answer], expected: bytes) -> int:
    """How many are the expected answer."""
    return sum(answer.status == 200 and answer.comparable == expected for answer in answers)
