"""Whether an upstream serves, told from what it did."""

import pytest

from confide.upstream.health import ALONE_MOST_S, ALONE_S, FAILURES_MOST, REST_MOST_S, Health


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


def fail(health: Health, times: int = FAILURES_MOST) -> None:
    for _ in range(times):
        health.failed()


def test_it_serves_until_it_has_failed_several_times_in_a_row(health: Health) -> None:
    fail(health, FAILURES_MOST - 1)
    health.succeeded()
    fail(health, FAILURES_MOST - 1)
    assert health.is_available()
    health.failed()
    assert not health.is_available()
    assert health.is_left_alone
    assert health.available_in_s() == ALONE_S


def test_after_a_while_one_request_tries(health: Health, clock: Clock) -> None:
    fail(health)
    clock.now += ALONE_S
    assert health.is_available()
    health.tried()
    assert not health.is_available()
    health.succeeded()
    assert health.is_available()
    assert not health.is_left_alone


def test_a_trial_whose_end_nobody_told_blocks_nobody_for_ever(health: Health, clock: Clock) -> None:
    fail(health)
    clock.now += ALONE_S
    health.tried()
    clock.now += ALONE_S
    assert health.is_available()


def test_it_is_left_alone_for_longer_each_time_up_to_a_minute(health: Health, clock: Clock) -> None:
    fail(health)
    waits = []
    for _ in range(6):
        clock.now += health.available_in_s()
        health.tried()
        health.failed()
        waits.append(health.available_in_s())
    assert waits == [10.0, 20.0, 40.0, ALONE_MOST_S, ALONE_MOST_S, ALONE_MOST_S]


def test_rest_is_given_as_asked_for_and_is_no_failure(health: Health, clock: Clock) -> None:
    for _ in range(FAILURES_MOST):
        health.refused(503, 7)
    assert health.available_in_s() == 7
    assert not health.is_left_alone
    clock.now += 7
    assert health.is_available()
    health.refused(429, 10_000)
    assert health.available_in_s() == REST_MOST_S


def test_a_refusal_that_is_no_fault_of_its_own_changes_nothing(health: Health) -> None:
    for _ in range(2 * FAILURES_MOST):
        health.refused(401, None)
    assert health.is_available()
    for _ in range(FAILURES_MOST):
        health.refused(500, None)
    assert not health.is_available()
