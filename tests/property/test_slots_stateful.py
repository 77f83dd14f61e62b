"""Slots under any order of arrivals, departures, slots given back and time that runs out: never more than there are,
never one lost, first come first served.
"""

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from confide.engine.slots import Slots
from confide.errors import LimitReached, NotReady
from stepped import SteppedLoop

TIMEOUT_S = 10.0
positions = st.integers(0, 20)


class Guest:
    """One generation that wants a slot. `deadline`: loop time at which it gives up."""

    def __init__(self, loop: SteppedLoop, slots: Slots, *, passes_on: bool = False) -> None:
        self.deadline = loop.now + TIMEOUT_S
        self.task = loop.create_task(slots.pass_on() if passes_on else slots.acquire())

    @property
    def has_slot(self) -> bool:
        return self.task.done() and not self.task.cancelled() and self.task.exception() is None

    @property
    def gave_up(self) -> bool:
        return self.task.done() and not self.task.cancelled() and isinstance(self.task.exception(), NotReady)


class SlotsMachine(RuleBasedStateMachine):
    """`served` and `queue` are what should be; after each step the slots are compared with them."""

    @initialize(count=st.integers(1, 4), queue=st.integers(0, 5))
    def open(self, count: int, queue: int) -> None:
        self.loop = SteppedLoop()
        self.count, self.places = count, queue
        self.slots = Slots(count, queue=queue, timeout_s=TIMEOUT_S)
        self.served: list[Guest] = []
        self.queue: deque[Guest] = deque()

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        for guest in self.queue:
            guest.task.cancel()
        self.loop.settle()
        assert self.slots.waiting == 0
        self.loop.close()

    def grant_next(self) -> None:
        """A slot came free."""
        if self.queue:
            self.served.append(self.queue.popleft())

    @rule()
    def arrive(self) -> None:
        guest = Guest(self.loop, self.slots)
        self.loop.settle()
        if len(self.served) < self.count:
            self.served.append(guest)
        elif len(self.queue) < self.places:
            self.queue.append(guest)
        else:
            assert isinstance(guest.task.exception(), LimitReached)

    @rule(wanted=st.integers(1, 4))
    def ask_for_room(self, wanted: int) -> None:
        room = self.count + self.places - len(self.served) - len(self.queue)
        if wanted > self.count + self.places:
            return  # refused as a mistake: see the unit test
        try:
            self.slots.check_room(wanted)
        except LimitReached:
            assert wanted > room
        else:
            assert wanted <= room

    @precondition(lambda self: self.served)
    @rule(position=positions)
    def finish(self, position: int) -> None:
        self.served.pop(position % len(self.served))
        self.slots.release()
        self.grant_next()
        self.loop.settle()

    @precondition(lambda self: self.served)
    @rule(position=positions)
    def pass_on(self, position: int) -> None:
        self.served.pop(position % len(self.served))
        again = Guest(self.loop, self.slots, passes_on=True)
        self.loop.settle()
        if self.queue:
            self.grant_next()
            self.queue.append(again)  # also beyond the places that there are
        else:
            self.served.append(again)

    @precondition(lambda self: self.queue)
    @rule(position=positions)
    def leave_the_queue(self, position: int) -> None:
        guest = self.queue[position % len(self.queue)]
        self.queue.remove(guest)
        guest.task.cancel()
        self.loop.settle()
        assert guest.task.cancelled()

    @precondition(lambda self: self.served and self.queue)
    @rule(position=positions, granted_first=st.booleans())
    def finish_while_the_next_one_leaves(self, position: int, granted_first: bool) -> None:
        self.served.pop(position % len(self.served))
        leaving = self.queue.popleft()
        if granted_first:
            self.slots.release()
            leaving.task.cancel()
        else:
            leaving.task.cancel()
            self.slots.release()
        self.grant_next()
        self.loop.settle()
        assert leaving.task.cancelled()

    @rule(seconds=st.sampled_from([1.0, 4.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.now += seconds
        late = [guest for guest in self.queue if guest.deadline <= self.loop.now]
        self.queue = deque(guest for guest in self.queue if guest not in late)
        self.loop.settle()
        assert all(guest.gave_up for guest in late)

    @precondition(lambda self: self.served and self.queue)
    @rule()
    def finish_in_the_moment_in_which_time_runs_out(self) -> None:
        self.served.pop()
        self.slots.release()
        self.grant_next()
        self.time_passes(TIMEOUT_S)

    @invariant()
    def what_is_and_what_should_be_agree(self) -> None:
        if not hasattr(self, "loop"):
            return
        assert self.slots.free == self.count - len(self.served)
        assert self.slots.waiting == len(self.queue)
        assert all(guest.has_slot for guest in self.served)
        assert not any(guest.task.done() for guest in self.queue)
        assert not (self.slots.free and self.queue)


TestSlots = SlotsMachine.TestCase
TestSlots.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
