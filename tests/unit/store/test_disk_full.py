"""A full disk: the commit is refused with 503, nothing is half-written, and the store recovers with the space."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from confide.errors import NotReady
from confide.store import SqliteStore
from store_builders import NOW, no_file_larger_than, opened, proof


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root; the twin test with a file size limit does not")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


async def fill(store: SqliteStore) -> tuple[list[str], NotReady]:
    """Commit, eight at a time, until one is refused: the ids that were stored, and the refusal."""
    stored: list[str] = []
    for batch in range(2000):
        ids = [f"id-{batch}-{number}" for number in range(8)]
        results = await asyncio.gather(*(store.commit(proof(i)) for i in ids), return_exceptions=True)
        stored += [i for i, result in zip(ids, results, strict=True) if result is None]
        refused = [result for result in results if result is not None]
        if refused:
            assert isinstance(refused[0], NotReady)
            return stored, refused[0]
    raise AssertionError("the disk never filled up")


async def check_recovered(home: Path, store: SqliteStore, stored: list[str]) -> None:
    await store.commit(proof("after"))
    await store.close()
    async with opened(home) as again:
        kept = [i for i in [*stored, "after"] if await again.proof(i, now=NOW) is not None]
    assert kept == [*stored, "after"]


async def test_a_full_disk_refuses_and_recovers(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(os.urandom(400_000))
    async with opened(small_disk) as store:
        stored, refusal = await fill(store)
        assert str(small_disk) not in str(refusal.body())
        assert refusal.status == 503
        assert refusal.retry_after_s
        assert await store.proof(stored[0], now=NOW) is not None  # reading goes on
        ballast.unlink()
        await check_recovered(small_disk, store, stored)


async def test_a_refused_write_refuses_and_recovers(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        with no_file_larger_than(300_000):
            stored, refusal = await fill(store)
            assert str(tmp_path) not in str(refusal.body())
        assert stored
        await check_recovered(tmp_path, store, stored)


async def test_nothing_of_a_refused_batch_is_kept(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit(proof("before"))
        with no_file_larger_than((tmp_path / "confide.db-wal").stat().st_size):
            ids = [f"id-{number}" for number in range(32)]
            results = await asyncio.gather(*(store.commit(proof(i)) for i in ids), return_exceptions=True)
            assert all(isinstance(result, NotReady) for result in results)
        assert [i for i in ids if await store.proof(i, now=NOW)] == []
        assert await store.proof("before", now=NOW) is not None
