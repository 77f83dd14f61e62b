"""Whether the event loops of workers turn: each shows it in memory that all share, and their parent looks.

A worker that is stopped, or blocked by a call that does not return, has not ended: the kernel keeps its connections
open, and nobody ever answers on them. To its parent it is one whose number stands still.

What is counted are looks, and not seconds. A parent that was stopped itself, or held up like everybody on a machine
that is too busy or asleep, has not looked meanwhile, and such a time is held against nobody: workers that were held up
with it go on when it does. For the same reason the parent writes to the log that a worker is late, well before it ends
it: where nobody reads the log, that is where both are held up, and once it is read the worker has time to go on.
"""

import asyncio
from collections.abc import Callable
from enum import Enum, auto

from confide.gateway.counters import counters

LOOKS = 20  # within the bound: with more of them it is kept more exactly, and everybody is woken more often
LATE_AFTER = LOOKS * 3 // 4
HUNG_AFTER = LOOKS + 1  # it may have turned, and been seen, just before it was held up: the bound is over by this one
WRAP = 2**31


class Turns:
    """How often the loops of `workers` processes have shown that they turn. Made before they are forked."""

    def __init__(self, workers: int) -> None:
        self._turns = counters(workers)

    def turned(self, number: int) -> None:
        """The loop of worker `number` (from 0) turns. Called by that worker."""
        self._turns[number] = (self._turns[number] + 1) % WRAP

    def of(self, number: int) -> int:
        """A number that is another one when its loop has turned."""
        return self._turns[number]


class Found(Enum):
    """What a look found."""

    TURNING = auto()  # or not for long
    LATE = auto()  # once, when three quarters of the bound are over
    HUNG = auto()  # all of it


class Silence:
    """How long one process has not turned, in looks."""

    def __init__(self) -> None:
        self._seen: int | None = None
        self._looks = 0

    def look(self, turns: int) -> Found:
        """`turns`: see `Turns.of`. To be called at the pace of `paced`."""
        self._looks = self._looks + 1 if turns == self._seen else 0
        self._seen = turns
        if self._looks >= HUNG_AFTER:
            return Found.HUNG
        return Found.LATE if self._looks == LATE_AFTER else Found.TURNING


async def paced(bound_s: float, step: Callable[[], None]) -> None:
    """Show, or look, LOOKS times in `bound_s` seconds; until cancelled. A step that is late is one step, and the next
    one waits its time.
    """
    while True:
        step()
        await asyncio.sleep(bound_s / LOOKS)
