"""Slots and the queue before them."""

import asyncio

import pytest

from confide.engine.slots import Slots
from confide.errors import InvalidRequest, LimitReached, NotReady


def slots(count: int = 1, *, queue: int = 8, timeout_s: float = 60.0) -> Slots:
    return Slots(count, queue=queue, timeout_s=timeout_s)


async def taken(count: int = 1, *, queue: int = 8, timeout_s: float = 60.0) -> Slots:
    """All slots are in use."""
    made = slots(count, queue=queue, timeout_s=timeout_s)
    for _ in range(count):
        await made.acquire()
    return made


async def waiting(made: Slots) -> "asyncio.Task[None]":
    """One more in the queue."""
    task = asyncio.create_task(made.acquire())
    await asyncio.sleep(0)
    return task


async def test_a_free_slot_is_taken_at_once() -> None:
    made = slots(2)
    await made.acquire()
    assert (made.free, made.waiting) == (1, 0)


async def test_a_slot_given_back_goes_to_who_waits_longest() -> None:
    made = await taken()
    first, second = await waiting(made), await waiting(made)
    made.release()
    await first
    assert not second.done()
    assert (made.free, made.waiting) == (0, 1)
    made.release()
    await second
    made.release()
    assert (made.free, made.waiting) == (1, 0)


async def test_nobody_overtakes_who_was_just_granted_a_slot() -> None:
    made = await taken()
    first = await waiting(made)
    made.release()
    latecomer = asyncio.create_task(made.acquire())  # before `first` has run
    await first
    assert not latecomer.done()
    made.release()
    await latecomer


async def test_who_leaves_the_queue_is_forgotten() -> None:
    made = await taken()
    first, second = await waiting(made), await waiting(made)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert made.waiting == 1
    made.release()
    await second
    assert made.free == 0


async def test_a_slot_granted_to_one_who_leaves_in_that_moment_goes_to_the_next() -> None:
    made = await taken()
    first, second = await waiting(made), await waiting(made)
    made.release()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await second
    assert (made.free, made.waiting) == (0, 0)


async def test_a_slot_given_back_right_after_a_departure_is_not_lost() -> None:
    made = await taken()
    first = await waiting(made)
    first.cancel()
    made.release()  # before `first` has run
    await asyncio.gather(first, return_exceptions=True)
    assert (made.free, made.waiting) == (1, 0)


async def test_who_waits_too_long_is_told_when_to_come_back() -> None:
    made = await taken(timeout_s=0.001)
    with pytest.raises(NotReady) as late:
        await made.acquire()
    assert late.value.retry_after_s
    assert made.waiting == 0
    made.release()
    assert made.free == 1


async def test_a_turn_granted_before_its_time_ran_out_is_kept() -> None:
    made = await taken(timeout_s=0.0)
    late = await waiting(made)  # its time runs out at the loop's next turn
    made.release()
    await late
    assert (made.free, made.waiting) == (0, 0)


@pytest.mark.parametrize(("free", "queued", "room"), [(1, 0, 4), (0, 0, 3), (0, 2, 1), (0, 3, 0)])
async def test_room_is_free_slots_and_free_places(free: int, queued: int, room: int) -> None:
    made = await taken(2, queue=3)
    for _ in range(free):
        made.release()
    tasks = [await waiting(made) for _ in range(queued)]
    made.check_room(room)
    with pytest.raises(LimitReached):
        made.check_room(room + 1)
    for task in tasks:
        task.cancel()


async def test_more_than_could_ever_be_had_is_the_callers_mistake() -> None:
    made = await taken(2, queue=3)
    with pytest.raises(InvalidRequest) as refused:
        made.check_room(6)
    assert refused.value.param == "n"


async def test_without_room_the_queue_is_not_entered() -> None:
    made = await taken(queue=1)
    first = await waiting(made)
    with pytest.raises(LimitReached):
        await made.acquire()
    assert made.waiting == 1
    made.release()
    await first


async def test_the_longer_the_queue_the_later_to_come_back() -> None:
    made = await taken(2, queue=8)
    tasks = [await waiting(made) for _ in range(8)]
    with pytest.raises(LimitReached) as refused:
        made.check_room(1)
    assert refused.value.retry_after_s == 5
    for task in tasks:
        task.cancel()


async def test_who_passes_on_keeps_the_slot_while_nobody_waits() -> None:
    made = await taken()
    await made.pass_on()
    assert (made.free, made.waiting) == (0, 0)


async def test_who_passes_on_waits_behind_the_others_also_in_a_full_queue() -> None:
    made = await taken(queue=1)
    other = await waiting(made)
    again = asyncio.create_task(made.pass_on())
    await other
    await asyncio.sleep(0)
    assert not again.done()
    made.release()
    await again
    assert (made.free, made.waiting) == (0, 0)


async def test_who_leaves_while_it_passes_on_has_no_slot_and_loses_none() -> None:
    made = await taken()
    other = await waiting(made)
    again = asyncio.create_task(made.pass_on())
    await other
    again.cancel()
    with pytest.raises(asyncio.CancelledError):
        await again
    made.release()
    assert (made.free, made.waiting) == (1, 0)


async def test_a_slot_that_is_passed_to_those_who_have_just_left_comes_back() -> None:
    made = await taken()
    other = await waiting(made)
    other.cancel()
    await made.pass_on()
    assert (made.free, made.waiting) == (0, 0)
    made.release()
    assert made.free == 1
