"""The life of the process as requests see it: starting, ready, draining; and who is in flight.

On SIGTERM the service is no longer ready, refuses new prompts, and lets running answers finish within the drain
window. What still runs then is stopped: a stream ends with the error tail, a buffered answer with a 503.

A request is stopped by cancelling its task, once, and never after it was sealed: from then on its last bytes are
committed and written, which nothing interrupts. Only a client that does not take them loses its connection; then they
have nowhere to go, and the request ends as one whose client left.
"""

import asyncio
from enum import Enum, auto

from confide.errors import NotReady
from confide.gateway.wire import Connection

SHUTTING_DOWN = "the service is shutting down"
RETRY_AFTER_S = 5


class Stop(Enum):
    """Why an answer in progress was stopped from outside."""

    CLIENT_GONE = auto()
    CLIENT_STALLED = auto()  # it does not read, and holds a slot of the engine meanwhile
    DRAIN = auto()


class InFlight:
    """One request being answered, from its first byte to its last, on the connection of its client."""

    __slots__ = (
        "_connection",
        "_loop",
        "_task",
        "is_client_gone",
        "is_dropped",
        "is_sealed",
        "reason",
        "writing_since",
    )

    def __init__(self, task: "asyncio.Task[object]", connection: Connection) -> None:
        self._task = task
        self._connection = connection
        self._loop = task.get_loop()
        self.writing_since: float | None = None  # loop time
        self.is_client_gone = False
        self.is_dropped = False
        self.is_sealed = False
        self.reason: Stop | None = None

    def stop(self, reason: Stop) -> None:
        """Cancel at the next await; without effect once sealed or stopped.

        But a client that left is always noted, and one that does not read what is written is dropped.
        """
        if reason is Stop.CLIENT_GONE:
            self.is_client_gone = True
        if reason is Stop.CLIENT_STALLED and self.is_sealed:
            self.drop_client()
        elif self.reason is None and not self.is_sealed:
            self.reason = reason
            self._task.cancel()

    def drop_client(self) -> None:
        """Close its connection, if that is what the request waits for: what could not be handed over is given up."""
        if self.writing_since is not None:
            self.is_dropped = True
            self._connection.abort()

    def begin_write(self) -> None:
        """A part is being handed over; this waits while the client is slow to read."""
        self.writing_since = self._loop.time()

    def end_write(self) -> None:
        self.writing_since = None

    def take_back(self) -> Stop | None:
        """Call on a CancelledError: ends the cancellation that `stop` began and says why; None when it is another's."""
        if self.reason is not None:
            self._task.uncancel()
        return self.reason

    def watch(self) -> None:
        """Stop when the client leaves. Begins once the body was read and before the upstream is contacted."""
        self._connection.on_leave(self._stop_gone)

    def end(self) -> None:
        """Nobody waits for the client to leave any more."""
        self._connection.on_leave(None)

    def _stop_gone(self) -> None:
        self.stop(Stop.CLIENT_GONE)


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

    def check_open(self) -> None:
        """Raise NotReady while draining."""
        if self._draining:
            raise shutting_down()

    def enter(self, connection: Connection) -> InFlight:
        """Register the current task's request on its client's connection. A drain waits for it: `leave` must follow."""
        task = asyncio.current_task()
        assert task is not None
        entry = InFlight(task, connection)
        self._in_flight.add(entry)
        self._idle.clear()
        return entry

    def leave(self, entry: InFlight) -> None:
        """The request is over, however it ended."""
        entry.end()
        self._in_flight.discard(entry)
        if not self._in_flight:
            self._idle.set()

    async def stop_stalled(self, limit_s: float) -> None:
        """Stop answers whose client has not read for `limit_s` seconds; runs until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(limit_s / 4)
            for entry in tuple(self._in_flight):
                if entry.writing_since is not None and loop.time() - entry.writing_since > limit_s:
                    entry.stop(Stop.CLIENT_STALLED)

    async def drain(self, window_s: float, *, grace_s: float = 5.0) -> None:
        """Wait until nothing is in flight, `window_s` seconds at most; stop the rest and give it `grace_s` to end.

        Clients that have not taken the end of their answer by then are dropped, and their requests get as long again.
        """
        self._draining = True
        if await self._became_idle(window_s):
            return
        for entry in tuple(self._in_flight):
            entry.stop(Stop.DRAIN)
        if await self._became_idle(grace_s):
            return
        for entry in tuple(self._in_flight):
            entry.drop_client()
        await self._became_idle(grace_s)

    async def _became_idle(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


def shutting_down() -> NotReady:
    """What a client is told, as a response or as the tail of its stream."""
    return NotReady(SHUTTING_DOWN, retry_after_s=RETRY_AFTER_S)
