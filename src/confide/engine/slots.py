"""The engine's slots: how many generations run at a time, and a bounded queue of those that wait.

A waiting request whose client left never starts: cancelling `acquire` takes it out of the queue, or gives the slot
back when it had just been granted.
"""

import asyncio
from collections import deque

from confide.errors import LimitReached, NotReady


class Slots:
    """`count` slots and `queue` places to wait for one, in order of arrival, `timeout_s` seconds at most."""

    def __init__(self, count: int, *, queue: int, timeout_s: float) -> None:
        self._free = count
        self._queue = queue
        self._timeout_s = timeout_s
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def free(self) -> int:
        return self._free

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def check_room(self, wanted: int) -> None:
        """Raise LimitReached when `wanted` generations find neither slots nor places in the queue."""
        if wanted > self._free + self._queue - len(self._waiting):
            raise LimitReached("too many requests are waiting; try again shortly", retry_after_s=self._retry_after_s())

    async def acquire(self) -> None:
        """Take a slot, waiting for one. Raises NotReady when none came free in time. Ask `check_room` first."""
        if self._free and not self._waiting:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._timeout_s):
                await turn
        except (TimeoutError, asyncio.CancelledError) as left:
            self._leave(turn)
            if isinstance(left, TimeoutError):
                raise NotReady("no slot came free in time; try again shortly", retry_after_s=5) from left
            raise

    def release(self) -> None:
        """Give a slot back; the one who waits longest gets it."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _leave(self, turn: asyncio.Future[None]) -> None:
        if turn in self._waiting:
            self._waiting.remove(turn)
        elif turn.done() and not turn.cancelled():
            self.release()

    def _retry_after_s(self) -> int:
        return 1 + len(self._waiting) // 4
