"""One store with several processes that write to it: what each finds, who deletes, and how they take turns."""

import asyncio
import multiprocessing
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from confide import config
from confide.store.database import connect
from confide.store.retention import BITE_ROWS
from confide.store.sharing import RetentionOfOthers, Sharing, Turns
from confide.store.sqlite import SqliteStore, open_store
from store_builders import NOW, count, proof, query

PROOFS = 300


def shared(home: Path, *, tidies: bool = False, settings: config.Store | None = None, now: int = NOW) -> SqliteStore:
    return open_store(
        None, home, settings or config.Store(), clock=lambda: now, sharing=Sharing(writers=2, tidies=tidies)
    )


def write(home: Path, name: str) -> None:
    """What one process does: every proof of its own is there as soon as it is committed."""

    async def commit() -> None:
        store = shared(home)
        for start in range(0, PROOFS, 10):
            await asyncio.gather(*(store.commit(proof(f"{name}-{n}")) for n in range(start, start + 10)))
        await store.close()

    asyncio.run(commit())


def test_processes_write_at_the_same_time_and_nothing_is_lost(tmp_path: Path) -> None:
    asyncio.run(shared(tmp_path).close())
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write, args=(tmp_path, name)) for name in ("one", "two", "three")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert count(tmp_path) == 3 * PROOFS


async def test_what_one_has_committed_another_finds_at_once(tmp_path: Path) -> None:
    one, other = shared(tmp_path), shared(tmp_path)
    for number in range(50):
        await one.commit(proof(f"chatcmpl-{number}"))
        assert await other.proof(f"chatcmpl-{number}", now=NOW) is not None
    await one.close()
    await other.close()


async def test_only_the_one_that_tidies_deletes(tmp_path: Path) -> None:
    writer = shared(tmp_path, now=NOW + 7200)
    await asyncio.gather(*(writer.commit(proof(f"chatcmpl-{n}")) for n in range(3 * BITE_ROWS)))
    await writer.close()
    assert count(tmp_path) == 3 * BITE_ROWS
    tidying = shared(tmp_path, tidies=True, now=NOW + 7200)
    until = time.monotonic() + 20
    while count(tmp_path) and time.monotonic() < until:
        await asyncio.sleep(0.01)
    await tidying.close()
    assert count(tmp_path) == 0


async def test_the_cap_holds_for_what_others_write(tmp_path: Path) -> None:
    settings = config.Store(max_proofs=100)
    writer = shared(tmp_path, settings=settings)
    with closing(connect(tmp_path / "confide.db")) as db:
        retention = RetentionOfOthers(db, max_proofs=100)
        await asyncio.gather(*(writer.commit(proof(f"chatcmpl-{n}")) for n in range(150)))
        while retention.bite(NOW):
            pass
        assert count(tmp_path) == 100
        assert query(tmp_path, "SELECT chat_id FROM proofs ORDER BY id LIMIT 1") == [("chatcmpl-50",)]
        await asyncio.gather(*(writer.commit(proof(f"later-{n}", created_at=NOW + 7200)) for n in range(30)))
        while retention.bite(NOW + 7200):  # all the older ones have expired
            pass
        assert count(tmp_path) == 30
        await asyncio.gather(*(writer.commit(proof(f"last-{n}", created_at=NOW + 7200)) for n in range(90)))
        while retention.bite(NOW + 7200):
            pass
    await writer.close()
    assert count(tmp_path) == 100


async def test_the_count_is_right_after_ids_began_anew(tmp_path: Path) -> None:
    writer = shared(tmp_path)
    with closing(connect(tmp_path / "confide.db")) as db:
        retention = RetentionOfOthers(db, max_proofs=100)
        await asyncio.gather(*(writer.commit(proof(f"chatcmpl-{n}")) for n in range(40)))
        while retention.bite(NOW + 7200):
            pass
        assert count(tmp_path) == 0
        await asyncio.gather(*(writer.commit(proof(f"later-{n}", created_at=NOW + 7200)) for n in range(130)))
        while retention.bite(NOW + 7200):
            pass
    await writer.close()
    assert count(tmp_path) == 100


def hold_turn(path: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with Turns(path):
        ready.set()
        time.sleep(60)


def test_a_turn_is_over_when_the_one_who_has_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "confide.db"
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=hold_turn, args=(path, ready))
    holder.start()
    assert ready.wait(30)
    holder.kill()
    turns = Turns(path)
    with turns:
        holder.join(10)
    turns.close()
    assert os.stat(tmp_path / "confide.db-turn").st_mode & 0o777 == 0o600


async def test_a_writer_that_takes_no_turns_is_waited_for(tmp_path: Path) -> None:
    """`confide keys` writes as it always has."""
    store = shared(tmp_path)
    with closing(sqlite3.connect(tmp_path / "confide.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        commit = asyncio.create_task(store.commit(proof()))
        await asyncio.sleep(0.1)
        assert not commit.done()
        db.execute("ROLLBACK")
        await commit
    await store.close()
    assert count(tmp_path) == 1


@pytest.mark.parametrize("tidies", [False, True])
async def test_key_uses_are_written_by_all(tmp_path: Path, tidies: bool) -> None:
    store = shared(tmp_path, tidies=tidies)
    record, _ = await asyncio.to_thread(store.create_key, "laptop")
    store.note_key_use(record.id, at=NOW)
    await store.close()
    assert query(tmp_path, "SELECT last_used_at FROM keys") == [(NOW,)]
