"""One worker process as its parent has it: forked, told, heard, and what it held let go of when it ends."""

import asyncio
import socket
from collections.abc import Callable, Mapping

from confide.engine.slot_service import Acquire, PassOn, Release, SlotService
from confide.errors import ConfideError, ConfigError
from confide.gateway.control import (
    HasFailed,
    HasOpened,
    HasStaged,
    Line,
    Listens,
    Stage,
    ToParent,
    ToWorker,
    Verify,
    WrongKey,
)
from confide.gateway.forkserver import Forked, ForkServer
from confide.gateway.turning import Silence

LOOK_IN_LOG = "The log says what it met."


class WorkerProcess:
    """One worker process, from its start to its end."""

    def __init__(
        self,
        number: int,
        services: Mapping[str, SlotService],
        *,
        asked: Callable[["WorkerProcess", Verify | WrongKey], None],
        left: Callable[["WorkerProcess"], None],
    ) -> None:
        """`services`: the slots of each engine. `asked`: called with what it asks of attested upstreams. `left`: called
        when its line has ended.
        """
        loop = asyncio.get_running_loop()
        self.number = number
        self.opened: asyncio.Future[HasOpened] = loop.create_future()
        self.listens = asyncio.Event()
        self.is_gone = asyncio.Event()
        self.staged: asyncio.Future[HasStaged] = loop.create_future()
        self.silence = Silence()
        self._staging = 0
        self._asked = asked
        self._left = left
        self._services = services

    async def start(self, forks: ForkServer) -> None:
        """Have it forked, and hear it."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self.process: Forked = forks.fork(self.number, theirs)
            except ConfideError:
                ours.close()
                raise
        self._line = await Line.open(ours, ToParent, self._received, self._lost)
        self._slots = {name: service.enter(self._line.send) for name, service in self._services.items()}

    @property
    def is_open(self) -> bool:
        """Whether it has said that it could serve."""
        return self.opened.done() and not self.opened.cancelled() and self.opened.exception() is None

    def tell(self, message: ToWorker) -> None:
        self._line.send(message)

    def stage(self, message: Stage) -> "asyncio.Future[HasStaged]":
        """Have it get ready for another configuration; its answer."""
        self._staging, self.staged = message.number, asyncio.get_running_loop().create_future()
        self.tell(message)
        return self.staged

    def _has_staged(self, message: HasStaged) -> None:
        if message.number == self._staging and not self.staged.done():  # else it answers to an earlier one
            self.staged.set_result(message)

    def let_go(self) -> None:
        """Count it as gone, whatever becomes of the process: it does not answer any more."""
        self._has_staged(no_answer(self._staging))  # and has not agreed to what it was asked
        self._line.abort()

    def _received(self, message: ToParent) -> None:
        match message:
            case Acquire() | PassOn() | Release():
                self._slots[message.engine].received(message)
            case Verify() | WrongKey():
                self._asked(self, message)
            case HasOpened():
                self.opened.set_result(message)
            case HasFailed():
                self._fail(message.message, message.remedy)
            case Listens():
                self.listens.set()
            case HasStaged():
                self._has_staged(message)

    def _lost(self) -> None:
        """The process has ended, or is about to: what it held is free."""
        for client in self._slots.values():
            client.gone()
        self._fail("a worker process ended before it could serve", LOOK_IN_LOG)
        self._has_staged(HasStaged(self._staging))  # its successor begins with whatever is decided
        self.is_gone.set()
        self._left(self)

    def _fail(self, message: str, remedy: str | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(ConfigError(message, remedy=remedy))
            self.opened.exception()  # seen: nobody may be waiting any more


def no_answer(number: int) -> HasStaged:
    """What stands for the answer of a worker that gives none. `number`: of the reload."""
    return HasStaged(number, "a worker does not answer", LOOK_IN_LOG)
