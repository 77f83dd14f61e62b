"""Blocking calls to a platform: one after the other, on a thread of their own, bounded in number and in time.

The platform makes one piece of evidence at a time and may hang in the kernel. So a call that is over for its caller
still counts until the thread is done with it: while the platform hangs, the queue fills up once and everybody after
that is refused at once. The thread is a daemon: a platform that hangs must not keep the process from ending.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from confide.errors import NotReady

T = TypeVar("T")


class Call(Generic[T]):
    """One call: what to do, where its result goes, and whether anybody still waits for it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.work = work
        self.future: Future[T] = Future()
        self.is_abandoned = False

    def carry_out(self) -> Callable[[], object]:
        """Do the work, unless its caller left, and give what hands the outcome over."""
        if self.is_abandoned:
            return self.future.cancel
        try:
            result = self.work()
        except BaseException as error:  # noqa: BLE001 - it is the caller's, and the thread goes on
            return partial(self.future.set_exception, error)
        return partial(self.future.set_result, result)


class OneThread:
    """Calls of one platform. `name`: of the thread. `max_waiting`: calls at a time, the running one among them.
    `deadline_s`: for each call, waiting included. May be used from one event loop after another.
    """

    def __init__(self, name: str, *, max_waiting: int, deadline_s: float) -> None:
        self._name = name
        self._max_waiting = max_waiting
        self._deadline_s = deadline_s
        self._calls: SimpleQueue[Call[Any]] = SimpleQueue()
        self._guard = threading.Lock()
        self._pending = 0
        self._is_started = False

    async def call(self, work: Callable[[], T], *, what: str) -> T:
        """What `work` returns or raises. `what`: what is asked for, in the plural, as in "attestation requests".

        Raises NotReady when too many calls wait already and after the deadline.
        """
        call = Call(work)
        self._enqueue(call, what)
        try:
            async with asyncio.timeout(self._deadline_s) as deadline:
                return await asyncio.shield(asyncio.wrap_future(call.future))
        except TimeoutError as error:
            if not deadline.expired():
                raise  # it is what `work` raised, and no deadline of ours
            raise NotReady(f"no evidence within {self._deadline_s:g} s", retry_after_s=10) from error
        finally:
            call.is_abandoned = True

    def _enqueue(self, call: Call[Any], what: str) -> None:
        with self._guard:
            if self._pending >= self._max_waiting:
                raise NotReady(f"too many {what} are waiting", retry_after_s=1)
            self._pending += 1
            if not self._is_started:
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
                self._is_started = True
        self._calls.put(call)

    def _run(self) -> None:
        while True:
            call = self._calls.get()
            hand_over = call.carry_out()
            with self._guard:
                self._pending -= 1  # first, so that whoever has an answer finds room for the next question
            with suppress(InvalidStateError):  # nobody takes it any more
                hand_over()
            del call, hand_over  # what it returned is not kept until the next one comes
