"""The slots of one engine, had by several processes: one grants them, the others ask it.

    worker                          the process that has the engine
    Acquire(ticket) ──────────────▶ waits for a slot, in order of arrival over all workers; PassOn: waits again
    ◀────────────── Granted(ticket), or Denied with what the client is told
    Release(ticket) ──────────────▶ gives it back, or gives up waiting for it

A ticket is a worker's own number for one turn. When a worker is gone, whatever it had or waited for is free: whoever
holds its connection calls `gone`. How the messages travel is not decided here; each side gets a function that sends,
and they must arrive in order.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

from confide.engine.slots import Slots, require_room
from confide.engine.supervisor import loading
from confide.errors import LimitReached, NotReady, WireError


class Acquire(msgspec.Struct, frozen=True, tag=True):
    """A worker wants a slot of this engine."""

    engine: str
    ticket: int


class PassOn(msgspec.Struct, frozen=True, tag=True):
    """A worker that has a slot lets those who wait go first, and waits for one again."""

    engine: str
    ticket: int


class Release(msgspec.Struct, frozen=True, tag=True):
    """It has no use for it any more, granted or not."""

    engine: str
    ticket: int


class Granted(msgspec.Struct, frozen=True, tag=True):
    """The slot is the worker's."""

    engine: str
    ticket: int


class Denied(msgspec.Struct, frozen=True, tag=True):
    """There was no room in the queue, or no slot in time."""

    engine: str
    ticket: int
    reason: Literal["full", "late"]
    message: str
    retry_after_s: int | None


class Room(msgspec.Struct, frozen=True, tag=True):
    """How many slots are free and how many requests wait, over all workers."""

    engine: str
    free: int
    waiting: int


class EngineStands(msgspec.Struct, frozen=True, tag=True):
    """Whether the engine serves, all of its models. `wait_s`: until the next start, where it does not."""

    is_ready: bool
    wait_s: float = 0.0


Asked = Acquire | PassOn | Release
Told = Granted | Denied | Room
Tell = Callable[[Told], None]
Ask = Callable[[Asked], None]


class SlotService:
    """Grants the slots of one engine. `engine`: its name."""

    def __init__(self, engine: str, slots: Slots) -> None:
        self.engine = engine
        self.slots = slots
        self._clients: list[SlotClient] = []
        self._told: Room | None = None

    def enter(self, tell: Tell) -> "SlotClient":
        """A worker came. `tell`: sends to it."""
        client = SlotClient(self, tell)
        self._clients.append(client)
        tell(self.room)
        return client

    def leave(self, client: "SlotClient") -> None:
        self._clients.remove(client)

    @property
    def room(self) -> Room:
        return Room(self.engine, self.slots.free, self.slots.waiting)

    def tell_room(self) -> None:
        """To all, where it has changed."""
        room = self.room
        if room != self._told:
            self._told = room
            for client in self._clients:
                client.tell(room)


class SlotClient:
    """One worker's turns."""

    def __init__(self, service: SlotService, tell: Tell) -> None:
        self._service = service
        self.tell = tell
        self._turns: dict[int, asyncio.Task[None]] = {}
        self._passing: set[int] = set()  # tickets whose slot is about to be passed on, and is not yet

    def received(self, message: Asked) -> None:
        """Carry out what the worker asks."""
        if isinstance(message, Release):
            self._release(message.ticket)
            return
        slots = self._service.slots
        if isinstance(message, PassOn):
            self._passing.add(message.ticket)
            turn = asyncio.create_task(self._grant(message.ticket, slots.pass_on), name="slot")
        else:
            turn = asyncio.create_task(self._grant(message.ticket, slots.acquire), name="slot")
        self._turns[message.ticket] = turn
        turn.add_done_callback(self._tell_room)
        asyncio.get_running_loop().call_soon(self._tell_room)  # once it waits, if it does

    def gone(self) -> None:
        """The worker has ended: what it had is free for the others."""
        self._service.leave(self)
        for ticket in tuple(self._turns):
            self._release(ticket)

    async def _grant(self, ticket: int, wait: Callable[[], Awaitable[None]]) -> None:
        """`wait`: for a slot, or for the same once more."""
        engine = self._service.engine
        self._passing.discard(ticket)
        try:
            await wait()
        except WireError as error:
            self._turns.pop(ticket, None)
            reason: Literal["full", "late"] = "full" if isinstance(error, LimitReached) else "late"
            self.tell(Denied(engine, ticket, reason, error.message, error.retry_after_s))
        else:
            self.tell(Granted(engine, ticket))

    def _release(self, ticket: int) -> None:
        turn = self._turns.pop(ticket, None)
        if turn is None:
            return  # denied in the very moment in which the worker gave up
        is_had = turn.done() or ticket in self._passing
        self._passing.discard(ticket)
        turn.cancel()
        if is_had:
            self._service.slots.release()
            self._service.tell_room()

    def _tell_room(self, _: object = None) -> None:
        self._service.tell_room()


class SharedSlots:
    """A worker's view of the slots. `count`, `queue`: over all workers. `ask`: sends to the one who grants them."""

    def __init__(self, engine: str, count: int, *, queue: int, ask: Ask) -> None:
        self._engine = engine
        self._count = count
        self._queue = queue
        self._ask = ask
        self._room = Room(engine, count, 0)
        self._tickets = itertools.count()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._held: list[int] = []

    def check_room(self, wanted: int) -> None:
        """See `Slots.check_room`; by what was told last, so that `acquire` may still find that there is none."""
        room = self._room
        require_room(wanted, count=self._count, queue=self._queue, free=room.free, waiting=room.waiting)

    async def acquire(self) -> None:
        """See `Slots.acquire`."""
        ticket = next(self._tickets)
        await self._granted(ticket, Acquire(self._engine, ticket))

    async def pass_on(self) -> None:
        """See `Slots.pass_on`; whether anybody waits, by what was told last."""
        if self._room.waiting:
            ticket = self._held.pop()
            await self._granted(ticket, PassOn(self._engine, ticket))

    async def _granted(self, ticket: int, asked: Acquire | PassOn) -> None:
        self._waiting[ticket] = turn = asyncio.get_running_loop().create_future()
        self._ask(asked)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                turn.exception()  # seen: it came in the very moment of the cancellation
            self._ask(Release(self._engine, ticket))
            raise
        finally:
            self._waiting.pop(ticket, None)
        self._held.append(ticket)

    def release(self) -> None:
        """Give a slot back."""
        self._ask(Release(self._engine, self._held.pop()))

    def received(self, message: Told) -> None:
        """What the one who grants them says."""
        if isinstance(message, Room):
            self._room = message
            return
        turn = self._waiting.get(message.ticket)
        if turn is None or turn.done():
            return  # given up meanwhile
        if isinstance(message, Granted):
            turn.set_result(None)
        else:
            kind = LimitReached if message.reason == "full" else NotReady
            turn.set_exception(kind(message.message, retry_after_s=message.retry_after_s))


class FollowedEngine:
    """An engine that another process keeps alive, as far as that process has said."""

    def __init__(self) -> None:
        self._is_ready = False
        self._next_try = 0.0  # loop time

    @property
    def is_ready(self) -> bool:
        return self._is_ready

    def check_ready(self) -> None:
        """Raise NotReady, with the seconds until the next start, unless the engine serves."""
        if not self._is_ready:
            raise loading(self._next_try - asyncio.get_running_loop().time())

    def stands(self, message: EngineStands) -> None:
        """What was said last."""
        self._is_ready = message.is_ready
        self._next_try = asyncio.get_running_loop().time() + message.wait_s
