"""When a parent finds that a worker does not turn: by its own looks, with clocks that the test moves.

Each process has a loop of its own, and a loop that the test does not run is a process that is stopped, or blocked by a
call that does not return.
"""

import asyncio
from collections.abc import Iterator

import pytest

from confide.gateway.turning import LOOKS, WRAP, Found, Silence, Turns, paced
from stepped_loop import SteppedLoop

BOUND_S = 30.0
PACE_S = BOUND_S / LOOKS
TICK_S = PACE_S / 4
PHASES = [0.0, 0.3 * PACE_S, 0.6 * PACE_S, 0.9 * PACE_S]  # of what happens, between two steps of the processes


class Processes:
    """A worker and its parent. `late`, `hung`: when the parent found the worker so."""

    def __init__(self) -> None:
        self.turns = Turns(1)
        self.silence = Silence()
        self.worker, self.parent = SteppedLoop(), SteppedLoop()
        self.late: list[float] = []
        self.hung: list[float] = []
        self._tasks = [
            self.worker.create_task(paced(BOUND_S, lambda: self.turns.turned(0))),
            self.parent.create_task(paced(BOUND_S, self._look)),
        ]
        self.pass_by(0)

    @property
    def now(self) -> float:
        return self.parent.now

    def _look(self) -> None:
        found = self.silence.look(self.turns.of(0))
        if found is not Found.TURNING:
            (self.late if found is Found.LATE else self.hung).append(self.now)

    def pass_by(self, time_s: float, *, worker: bool = True, parent: bool = True) -> None:
        """So much time goes by; who is stopped does nothing meanwhile."""
        ends_at = self.now + time_s
        while True:
            for loop, goes_on in ((self.worker, worker), (self.parent, parent)):
                if goes_on:
                    loop.settle()
            if self.now >= ends_at:
                return
            self.parent.now = self.worker.now = min(ends_at, self.now + TICK_S)

    def close(self) -> None:
        for loop, task in zip((self.worker, self.parent), self._tasks, strict=True):
            task.cancel()
            loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            loop.close()


@pytest.fixture
def processes() -> Iterator[Processes]:
    processes = Processes()
    yield processes
    processes.close()


@pytest.mark.parametrize("phase_s", PHASES)
def test_a_worker_that_does_not_turn_is_late_before_the_bound_and_hung_after_it(
    processes: Processes, phase_s: float
) -> None:
    processes.pass_by(BOUND_S + phase_s)
    since = processes.now
    processes.pass_by(1.2 * BOUND_S, worker=False)
    assert len(processes.late) == 1
    assert 0.7 * BOUND_S <= processes.late[0] - since <= 0.8 * BOUND_S
    assert BOUND_S <= processes.hung[0] - since <= 1.1 * BOUND_S


@pytest.mark.parametrize("phase_s", PHASES)
def test_a_worker_that_is_late_by_less_than_the_bound_is_left_alone(processes: Processes, phase_s: float) -> None:
    for _ in range(3):
        processes.pass_by(PACE_S + phase_s)
        processes.pass_by(BOUND_S - TICK_S, worker=False)
    processes.pass_by(2 * BOUND_S)
    assert len(processes.late) == 3
    assert processes.hung == []


@pytest.mark.parametrize("worker", [True, False], ids=["alone", "with its worker"])
@pytest.mark.parametrize("phase_s", PHASES)
def test_a_parent_that_was_stopped_holds_that_time_against_nobody(
    processes: Processes, phase_s: float, worker: bool
) -> None:
    """Alone, as by a signal or a debugger; or with everybody, as when a machine sleeps and its clock goes on."""
    processes.pass_by(phase_s)
    processes.pass_by(10 * BOUND_S, worker=worker, parent=False)
    processes.parent.settle()  # it is the first to go on
    processes.pass_by(2 * BOUND_S)
    assert processes.late == processes.hung == []


def test_where_everybody_is_late_so_is_the_bound(processes: Processes) -> None:
    """The parent comes to look a fifth as often as it would, the worker to show itself once in two bounds."""
    for _ in range(3):
        for _ in range(8):
            processes.pass_by(5 * PACE_S, worker=False, parent=False)
            processes.parent.settle()
        processes.worker.settle()
    assert processes.late == processes.hung == []


def test_a_parent_that_is_held_up_when_it_says_that_a_worker_is_late_gives_it_time(processes: Processes) -> None:
    """As when nobody reads the log, and both wait to write to it. Once it is read, the worker may go on after it."""
    while not processes.late and processes.now < 2 * BOUND_S:
        processes.pass_by(TICK_S, worker=False)
    processes.pass_by(BOUND_S, worker=False, parent=False)
    processes.pass_by(BOUND_S / 5, worker=False)
    processes.pass_by(2 * BOUND_S)
    assert len(processes.late) == 1
    assert processes.hung == []


def test_each_worker_shows_itself() -> None:
    turns = Turns(3)
    turns.turned(1)
    assert [turns.of(number) for number in range(3)] == [0, 1, 0]


def test_the_number_of_turns_begins_anew_rather_than_to_fail() -> None:
    turns, silence = Turns(1), Silence()
    turns._turns[0] = WRAP - 1
    for _ in range(3 * LOOKS):
        assert silence.look(turns.of(0)) is Found.TURNING
        turns.turned(0)
    assert turns.of(0) == 3 * LOOKS - 1
