"""How old and how many proofs get, and how large the file gets (wire contract 7.7)."""

import asyncio
from contextlib import closing
from pathlib import Path

from confide import config
from confide.store.database import connect
from confide.store.retention import BITE_ROWS, Retention
from store_builders import NOW, count, opened, proof, query


async def commit_all(home: Path, ids: range, *, settings: config.Store | None = None, now: int = NOW) -> None:
    async with opened(home, settings, clock=lambda: now) as store:
        for start in range(ids.start, ids.stop, 100):
            some = ids[start - ids.start : start - ids.start + 100]
            await asyncio.gather(*(store.commit(proof(f"id-{n}", created_at=now, ttl_s=600)) for n in some))


async def test_expired_proofs_leave_the_file(tmp_path: Path) -> None:
    await commit_all(tmp_path, range(200))
    assert count(tmp_path) == 200
    async with opened(tmp_path, clock=lambda: NOW + 600) as store:
        await store.commit(proof("later", created_at=NOW + 600))
    assert query(tmp_path, "SELECT chat_id FROM proofs") == [("later",)]


async def test_proofs_that_have_not_expired_stay(tmp_path: Path) -> None:
    await commit_all(tmp_path, range(200))
    async with opened(tmp_path, clock=lambda: NOW + 599):
        pass
    assert count(tmp_path) == 200


async def test_eviction_goes_in_bites_and_says_when_there_is_more(tmp_path: Path) -> None:
    await commit_all(tmp_path, range(2 * BITE_ROWS + 10))
    with closing(connect(tmp_path / "confide.db")) as db:
        retention = Retention(db, max_proofs=1000)
        left = []
        while retention.bite(NOW + 600):
            left.append(count(tmp_path))
    assert left == [BITE_ROWS + 10, 10]
    assert count(tmp_path) == 0


async def test_an_idle_writer_deletes_all_that_expired_without_being_asked(tmp_path: Path) -> None:
    await commit_all(tmp_path, range(3 * BITE_ROWS))
    async with opened(tmp_path, clock=lambda: NOW + 600):
        while count(tmp_path):  # bounded by the test's own time limit
            await asyncio.to_thread(count, tmp_path)


async def test_above_the_cap_the_oldest_go_first(tmp_path: Path) -> None:
    await commit_all(tmp_path, range(350), settings=config.Store(max_proofs=100))
    kept = query(tmp_path, "SELECT chat_id FROM proofs ORDER BY id")
    assert kept == [(f"id-{number}",) for number in range(250, 350)]


async def test_a_cap_that_was_lowered_holds_for_what_is_already_there(tmp_path: Path) -> None:
    await commit_all(tmp_path, range(300))
    async with opened(tmp_path, config.Store(max_proofs=100)):
        pass
    assert count(tmp_path) == 100


async def test_the_file_stops_growing_at_the_cap(tmp_path: Path) -> None:
    settings = config.Store(max_proofs=500)
    await commit_all(tmp_path, range(1500), settings=settings)
    early = (tmp_path / "confide.db").stat().st_size
    await commit_all(tmp_path, range(1500, 9000), settings=settings)
    late = (tmp_path / "confide.db").stat().st_size
    assert late <= early * 1.25
    assert late < 1_500_000  # 500 proofs with their receipts, and what comes between two bites
    assert count(tmp_path) == 500


async def test_the_file_stops_growing_when_proofs_expire(tmp_path: Path) -> None:
    sizes = []
    for period in range(6):
        await commit_all(tmp_path, range(period * 200, period * 200 + 200), now=NOW + period * 600)
        sizes.append((tmp_path / "confide.db").stat().st_size)
    assert max(sizes[2:]) <= sizes[1] * 1.25
