"""Slots of one engine shared by workers, under any order of requests, departures, deaths and deliveries: never more
generations than slots, none lost, and each worker is told how much room there is.
"""

import asyncio
from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from confide.engine.slot_service import Asked, SharedSlots, SlotClient, SlotService, Told
from confide.engine.slots import Slots
from confide.errors import LimitReached, NotReady, WireError
from stepped import SteppedLoop

TIMEOUT_S = 10.0
WORKERS = 3
positions = st.integers(0, 20)


class Worker:
    """One worker, and what is under way on its line in each direction."""

    def __init__(self, service: SlotService, count: int, queue: int) -> None:
        self.asked: deque[Asked] = deque()
        self.told: deque[Told] = deque()
        self.client: SlotClient = service.enter(self.told.append)
        self.slots = SharedSlots("engine", count, queue=queue, ask=self.asked.append)
        self.waiting: list[asyncio.Task[None]] = []
        self.held = 0

    def sort(self) -> None:
        """What became of those who wait."""
        for task in [task for task in self.waiting if task.done()]:
            self.waiting.remove(task)
            if not task.cancelled():
                error = task.exception()
                assert error is None or isinstance(error, LimitReached | NotReady)
                self.held += error is None


class SlotServiceMachine(RuleBasedStateMachine):
    """Messages travel when a rule says so, in order."""

    @initialize(count=st.integers(1, 4), queue=st.integers(0, 4))
    def open(self, count: int, queue: int) -> None:
        self.loop = SteppedLoop()
        self.count, self.places = count, queue
        self.slots = Slots(count, queue=queue, timeout_s=TIMEOUT_S)
        self.service = SlotService("engine", self.slots)
        self.workers = [Worker(self.service, count, queue) for _ in range(WORKERS)]

    def settle(self) -> None:
        self.loop.settle()
        for worker in self.workers:
            worker.sort()

    def deliver_all(self) -> None:
        """Until nothing is under way any more."""
        while any(worker.asked or worker.told for worker in self.workers):
            for worker in self.workers:
                self.deliver(worker, 100)

    def deliver(self, worker: Worker, most: int) -> None:
        for _ in range(min(most, len(worker.asked))):
            asked = worker.asked.popleft()
            self.loop.call_soon(worker.client.received, asked)
        self.settle()
        for _ in range(min(most, len(worker.told))):
            worker.slots.received(worker.told.popleft())
        self.settle()

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        for worker in self.workers:
            for task in worker.waiting:
                task.cancel()
        self.settle()
        self.deliver_all()
        for worker in self.workers:
            for _ in range(worker.held):
                worker.slots.release()
        self.deliver_all()
        assert (self.slots.free, self.slots.waiting) == (self.count, 0)
        for worker in self.workers:
            worker.slots.check_room(self.count + self.places)  # it was told
        self.loop.close()

    @rule(position=positions)
    def arrive(self, position: int) -> None:
        worker = self.workers[position % WORKERS]
        worker.waiting.append(self.loop.create_task(worker.slots.acquire()))
        self.settle()

    @rule(position=positions, most=st.integers(1, 3))
    def travel(self, position: int, most: int) -> None:
        self.deliver(self.workers[position % WORKERS], most)

    @rule(position=positions, nth=positions)
    def leave(self, position: int, nth: int) -> None:
        worker = self.workers[position % WORKERS]
        if worker.waiting:
            worker.waiting[nth % len(worker.waiting)].cancel()
            self.settle()

    @rule(position=positions)
    def finish(self, position: int) -> None:
        worker = self.workers[position % WORKERS]
        if worker.held:
            worker.held -= 1
            worker.slots.release()
            self.settle()

    @rule(position=positions)
    def pass_on(self, position: int) -> None:
        worker = self.workers[position % WORKERS]
        if worker.held:
            worker.held -= 1
            worker.waiting.append(self.loop.create_task(worker.slots.pass_on()))
            self.settle()

    @rule(position=positions)
    def die(self, position: int) -> None:
        """A new one takes its place."""
        place = position % WORKERS
        dead = self.workers[place]
        self.loop.call_soon(dead.client.gone)
        self.settle()
        for task in dead.waiting:
            task.cancel()
        self.settle()
        self.workers[place] = Worker(self.service, self.count, self.places)

    @precondition(lambda self: hasattr(self, "slots") and self.slots.waiting)
    @rule()
    def time_runs_out(self) -> None:
        self.loop.now += TIMEOUT_S
        self.settle()
        assert self.slots.waiting == 0

    @rule()
    def everything_arrives(self) -> None:
        self.deliver_all()
        room = self.slots.free + self.places - self.slots.waiting
        for worker in self.workers:
            for wanted in range(1, self.count + self.places + 1):
                try:
                    worker.slots.check_room(wanted)
                except WireError:
                    assert wanted > room
                else:
                    assert wanted <= room

    @invariant()
    def there_are_never_more_than_slots(self) -> None:
        if not hasattr(self, "loop"):
            return
        held = sum(worker.held for worker in self.workers)
        assert held <= self.count - self.slots.free
        assert 0 <= self.slots.free <= self.count
        assert self.slots.waiting <= self.places + self.count  # whoever passes on has a place in any case


TestSlotService = SlotServiceMachine.TestCase
TestSlotService.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
