"""Who is in flight, how one of them is stopped, and what a drain waits for."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from confide.errors import NotReady
from confide.gateway.lifecycle import InFlight, Lifecycle, Stop
from confide.gateway.wire import Connection

Work = Callable[[InFlight], Awaitable[object]]


class Wire(asyncio.Transport):
    """The connection's transport. `dropped` is set when it is closed at once."""

    def __init__(self, dropped: asyncio.Event) -> None:
        super().__init__()
        self.dropped = dropped

    def abort(self) -> None:
        self.dropped.set()

    def is_closing(self) -> bool:
        return self.dropped.is_set()


class Request:
    """A request that does `work` and records why it was stopped. `client.leave()`: its client closes the connection."""

    def __init__(self, lifecycle: Lifecycle, work: Work, dropped: asyncio.Event) -> None:
        self.stopped: Stop | None = None
        self.dropped = dropped
        self.client = Connection(Wire(dropped))
        self._work = work
        self._lifecycle = lifecycle
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        self.entry = self._lifecycle.enter(self.client)
        try:
            await self._work(self.entry)
        except asyncio.CancelledError:
            self.stopped = self.entry.take_back()
            if self.stopped is None:
                raise
            await asyncio.sleep(0)  # not cancelled any more: its last words can be written
        finally:
            self._lifecycle.leave(self.entry)


async def forever(_: InFlight) -> None:
    await asyncio.get_running_loop().create_future()


async def started(lifecycle: Lifecycle, work: Work = forever, dropped: asyncio.Event | None = None) -> Request:
    """`dropped` is set when the connection of its client is closed."""
    request = Request(lifecycle, work, dropped or asyncio.Event())
    await asyncio.sleep(0)
    return request


async def test_requests_are_counted_until_they_leave() -> None:
    lifecycle, done = Lifecycle(), asyncio.Event()
    requests = [await started(lifecycle, lambda _: done.wait()) for _ in range(3)]
    assert lifecycle.in_flight == 3
    done.set()
    await asyncio.gather(*(request.task for request in requests))
    assert lifecycle.in_flight == 0


@pytest.mark.parametrize("reason", list(Stop))
async def test_a_stopped_request_knows_why_and_can_still_say_something(reason: Stop) -> None:
    request = await started(Lifecycle())
    request.entry.stop(reason)
    await request.task
    assert request.stopped is reason


async def test_the_first_reason_counts_and_a_departure_is_noted_in_any_case() -> None:
    request = await started(Lifecycle())
    request.entry.stop(Stop.DRAIN)
    request.entry.stop(Stop.CLIENT_GONE)
    await request.task
    assert request.stopped is Stop.DRAIN
    assert request.entry.is_client_gone


async def test_a_sealed_request_is_not_interrupted() -> None:
    done = asyncio.Event()
    request = await started(Lifecycle(), lambda _: done.wait())
    request.entry.is_sealed = True
    request.entry.stop(Stop.DRAIN)
    request.entry.stop(Stop.CLIENT_GONE)
    done.set()
    await request.task
    assert request.stopped is None
    assert request.entry.is_client_gone


async def test_a_cancellation_of_somebody_else_is_passed_on() -> None:
    request = await started(Lifecycle())
    request.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request.task


async def watched(entry: InFlight) -> None:
    entry.watch()
    await forever(entry)


async def test_a_client_that_leaves_stops_its_request() -> None:
    request = await started(Lifecycle(), watched)
    request.client.leave()
    await request.task
    assert request.stopped is Stop.CLIENT_GONE


async def test_a_client_that_has_left_stops_its_request_at_once() -> None:
    async def late(entry: InFlight) -> None:
        request.client.leave()
        entry.watch()
        await forever(entry)

    request = Request(Lifecycle(), late, asyncio.Event())
    await request.task
    assert request.stopped is Stop.CLIENT_GONE


async def test_nobody_is_told_when_the_client_of_a_request_that_is_over_leaves() -> None:
    done = asyncio.Event()

    async def work(entry: InFlight) -> None:
        entry.watch()
        await done.wait()

    request = await started(Lifecycle(), work)
    done.set()
    await request.task
    request.client.leave()
    assert not request.entry.is_client_gone
    assert request.client.is_gone


def test_open_until_it_drains() -> None:
    Lifecycle().check_open()


async def test_a_draining_service_takes_nothing_new_and_says_when_to_come_back() -> None:
    lifecycle = Lifecycle()
    await lifecycle.drain(1)
    assert lifecycle.is_draining
    with pytest.raises(NotReady) as refused:
        lifecycle.check_open()
    assert refused.value.retry_after_s


async def test_a_drain_waits_for_what_runs() -> None:
    lifecycle, done = Lifecycle(), asyncio.Event()
    request = await started(lifecycle, lambda _: done.wait())
    drain = asyncio.create_task(lifecycle.drain(5))
    await asyncio.sleep(0)
    assert not drain.done()
    done.set()
    await drain
    assert request.stopped is None


async def test_a_drain_stops_what_runs_too_long_and_waits_for_its_last_words() -> None:
    lifecycle = Lifecycle()
    requests = [await started(lifecycle) for _ in range(3)]
    await lifecycle.drain(0.001)
    assert [request.stopped for request in requests] == [Stop.DRAIN] * 3
    assert lifecycle.in_flight == 0


async def test_a_drain_does_not_wait_for_ever_for_what_does_not_end() -> None:
    lifecycle = Lifecycle()
    request = await started(lifecycle)
    request.entry.is_sealed = True
    await lifecycle.drain(0.001, grace_s=0.001)
    assert lifecycle.in_flight == 1
    request.task.cancel()
    await asyncio.gather(request.task, return_exceptions=True)


async def last_words(entry: InFlight, until: asyncio.Event) -> None:
    """Sealed, and written to a client that does not read."""
    entry.is_sealed = True
    entry.begin_write()
    await until.wait()
    entry.end_write()


async def test_a_drain_drops_a_client_that_does_not_take_the_end_of_its_answer() -> None:
    lifecycle, dropped = Lifecycle(), asyncio.Event()
    request = await started(lifecycle, lambda entry: last_words(entry, dropped), dropped)
    await lifecycle.drain(0.001, grace_s=0.05)
    await request.task
    assert request.entry.is_dropped
    assert lifecycle.in_flight == 0


async def test_a_drain_does_not_drop_a_client_whose_proof_is_still_being_kept() -> None:
    lifecycle = Lifecycle()
    request = await started(lifecycle)
    request.entry.is_sealed = True
    await lifecycle.drain(0.001, grace_s=0.001)
    assert not request.dropped.is_set()
    request.task.cancel()
    await asyncio.gather(request.task, return_exceptions=True)


async def test_a_client_that_does_not_take_the_end_of_its_answer_is_dropped_in_time() -> None:
    lifecycle, dropped = Lifecycle(), asyncio.Event()
    watch = asyncio.create_task(lifecycle.stop_stalled(0.02))
    request = await started(lifecycle, lambda entry: last_words(entry, dropped), dropped)
    async with asyncio.timeout(5):
        await request.task
    assert request.stopped is None
    assert lifecycle.in_flight == 0
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


async def test_a_second_drain_waits_for_the_same() -> None:
    lifecycle, done = Lifecycle(), asyncio.Event()
    request = await started(lifecycle, lambda _: done.wait())
    drains = [asyncio.create_task(lifecycle.drain(5)) for _ in range(2)]
    await asyncio.sleep(0)
    done.set()
    await asyncio.gather(*drains, request.task)
    assert lifecycle.in_flight == 0
