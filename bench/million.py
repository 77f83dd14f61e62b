"""A million buffered requests, one after the other on each connection: does the service's memory stay where it is?"""

import sys
import time
from dataclasses import dataclass

import uvloop

from bench.answers import SHORT, question
from bench.figures import Budget, Figure, Size
from bench.load import Connection, ask_once, closed_loop, connect, post
from bench.processes import Target, stage

FLAT = Budget(1.05)
CONNECTIONS = 32
STEPS = 10  # the first is the warm-up
MIB = 1024 * 1024


@dataclass(frozen=True)
class Mark:
    """Resident bytes after so many requests."""

    requests: int
    rss_bytes: int


def measure(size: Size) -> list[Figure]:
    """Resident memory after the last request over that after the warm-up. Every answer is compared."""
    with stage() as scripted, scripted.local() as target:
        marks = uvloop.run(marked(target, size.million // STEPS, time.monotonic() + size.within_s))
    asked = marks[-1].requests
    return [
        Figure.of(
            f"local, resident memory after {asked:,} requests / after {marks[0].requests:,}",
            [marks[-1].rss_bytes / marks[0].rss_bytes],
            "×",
            FLAT,
        ),
        *(
            Figure.of(f"local, resident memory after {mark.requests:,}", [mark.rss_bytes / MIB], "MiB")
            for mark in marks
        ),
    ]


async def marked(target: Target, step: int, until: float) -> list[Mark]:
    """A mark for each step, the last of which ends early when the time is over."""
    request = post(question(SHORT, stream=False), key=target.key)
    expected = (await ask_once(target.address, request)).comparable
    connections = await connect(target.address, CONNECTIONS)
    marks: list[Mark] = []
    while not marks or (len(marks) < STEPS and time.monotonic() < until):
        asked = await one_step(connections, request, expected, step, until)
        marks.append(Mark((marks[-1].requests if marks else 0) + asked, target.rss_bytes()))
        sys.stderr.write(f"million: {marks[-1].requests:,} requests, {marks[-1].rss_bytes / MIB:.1f} MiB\n")
    for connection in connections:
        connection.close()
    return marks


async def one_step(connections: list[Connection], request: bytes, expected: bytes, step: int, until: float) -> int:
    """So many requests, or fewer when the time is over, but some; how many."""
    asked = 0
    while not asked or (asked < step and time.monotonic() < until):
        count = min(step - asked, max(step // 100, 1))
        await closed_loop(connections, request, count, expected)
        asked += count
    return asked
