"""The engine's slots: how many generations run at a time, and a bounded queue of those that wait.

A waiting request whose client left never starts: cancelling `acquire` takes it out of the queue, or gives the slot
back when it had just been granted. A turn is decided once, granted or timed out, so a slot is neither lost nor had
twice.
"""

import asyncio
from collections import deque

from confide.errors import InvalidRequest, LimitReached, NotReady

TIMED_OUT_RETRY_AFTER_S = 5

Turn = asyncio.Future[None]


class Slots:
    """`count` slots and `queue` places to wait for one, in order of arrival, `timeout_s` seconds at most."""

    def __init__(self, count: int, *, queue: int, timeout_s: float) -> None:
        self._count = count
        self._free = count
        self._queue = queue
        self._timeout_s = timeout_s
        self._waiting: deque[Turn] = deque()

    @property
    def free(self) -> int:
        return self._free

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def check_room(self, wanted: int) -> None:
        """Raise LimitReached when `wanted` generations find neither slots nor places in the queue.

        Raises InvalidRequest when they never would, however long the caller waits.
        """
        require_room(wanted, count=self._count, queue=self._queue, free=self._free, waiting=len(self._waiting))

    async def acquire(self) -> None:
        """Take a slot, waiting for one. Raises NotReady when none came free in time, LimitReached when the queue is
        full: that several waited at once with room for one of them shows only here.
        """
        if self._free:  # then nobody waits: `release` hands a slot over as long as anyone does
            self._free -= 1
            return
        if len(self._waiting) >= self._queue:
            raise full(self._count, len(self._waiting))
        await self._turn()

    def release(self) -> None:
        """Give a slot back; the one who waits longest gets it."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    async def pass_on(self) -> None:
        """Let the one who waits longest go first, and wait for a slot again; at once when nobody waits.

        For work in parts, by one who has a slot. Whatever it raises, the slot is no longer had. The place in the queue
        is had even when that is full: giving it up would end work that was begun.
        """
        if self._waiting:
            self.release()
            if self._free:  # those who waited have all just left
                self._free -= 1
            else:
                await self._turn()

    async def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        turn: Turn = loop.create_future()
        self._waiting.append(turn)
        limit = loop.call_later(self._timeout_s, self._time_out, turn)
        try:
            await turn
        except asyncio.CancelledError:
            self._leave(turn)
            raise
        finally:
            limit.cancel()

    def _time_out(self, turn: Turn) -> None:
        if not turn.done():
            self._waiting.remove(turn)
            turn.set_exception(
                NotReady("no slot came free in time; try again shortly", retry_after_s=TIMED_OUT_RETRY_AFTER_S)
            )

    def _leave(self, turn: Turn) -> None:
        if turn in self._waiting:
            self._waiting.remove(turn)
        elif not turn.cancelled() and turn.exception() is None:
            self.release()  # granted in the very moment of the cancellation


def require_room(wanted: int, *, count: int, queue: int, free: int, waiting: int) -> None:
    """See `Slots.check_room`."""
    most = count + queue
    if wanted > most:
        raise InvalidRequest(f"n must be at most {most} here", param="n")
    if wanted > free + queue - waiting:
        raise full(count, waiting)


def full(count: int, waiting: int) -> LimitReached:
    """The wait grows with the queue: about a second a round of generations."""
    return LimitReached("too many requests are waiting; try again shortly", retry_after_s=1 + waiting // count)
