"""The life of the process as requests see it: starting, ready, draining; and who is in flight.

On SIGTERM the service is no longer ready, refuses new prompts, and lets running answers finish within the drain
window. What still runs then is stopped: a stream ends with the error tail, a buffered answer with a 503.
"""

import asyncio
from enum import Enum, auto

from confide.errors import NotReady


class Stop(Enum):
    """Why an answer in progress was stopped from outside."""

    CLIENT_GONE = auto()
    DRAIN = auto()


class InFlight:
    """One request being answered. `stop` cancels its task once; the reason tells its handler what to write."""

    def __init__(self, task: "asyncio.Task[object]") -> None:
        self._task = task
        self.reason: Stop | None = None
        self.is_sealed = False

    def stop(self, reason: Stop) -> None:
        """Cancel at the next await; without effect once sealed (its last bytes are being written) or stopped."""
        if self.reason is None and not self.is_sealed:
            self.reason = reason
            self._task.cancel()


class Lifecycle:
    """Counts requests in flight and carries out the drain."""

    def __init__(self) -> None:
        self._in_flight: set[InFlight] = set()
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_draining(self) -> bool:
        return self._draining

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def enter(self) -> InFlight:
        """Register the current task's request. Raises NotReady while draining."""
        if self._draining:
            raise NotReady("the service is shutting down", retry_after_s=5)
        task = asyncio.current_task()
        assert task is not None
        entry = InFlight(task)
        self._in_flight.add(entry)
        self._idle.clear()
        return entry

    def leave(self, entry: InFlight) -> None:
        """The request is over, however it ended."""
        self._in_flight.discard(entry)
        if not self._in_flight:
            self._idle.set()

    async def drain(self, window_s: float, *, grace_s: float = 5.0) -> None:
        """Wait until nothing is in flight, `window_s` seconds at most; stop the rest and give it `grace_s` to end."""
        self._draining = True
        if await self._became_idle(window_s):
            return
        for entry in tuple(self._in_flight):
            entry.stop(Stop.DRAIN)
        await self._became_idle(grace_s)

    async def _became_idle(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
