"""What is bounded over all workers, shared out among them."""

import pytest

from confide.attester.base import MAX_WAITING
from confide.gateway.worker import own_share


@pytest.mark.parametrize("workers", range(1, 65))
def test_all_shares_together_are_the_whole_and_nobody_has_none(workers: int) -> None:
    shares = [own_share(MAX_WAITING, number, workers) for number in range(1, workers + 1)]
    assert sum(shares) == MAX_WAITING
    assert max(shares) - min(shares) <= 1
    assert min(shares) >= 1


def test_one_worker_has_all() -> None:
    assert own_share(MAX_WAITING, 1, 1) == MAX_WAITING


def test_where_there_is_less_than_one_for_each_each_has_one() -> None:
    assert [own_share(2, number, 3) for number in (1, 2, 3)] == [1, 1, 1]
