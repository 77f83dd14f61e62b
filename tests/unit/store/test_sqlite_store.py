"""What is committed can be read, by anyone who opens the file; many commits share one transaction."""

import asyncio
import stat
import struct
from hashlib import sha256
from pathlib import Path
from typing import Literal

import pytest
from msgspec.structs import replace

from confide import config
from confide.errors import NotReady
from store_builders import NOW, count, opened, proof, query


def commit_frames(wal: bytes) -> int:
    """Transactions in a WAL: frames that carry the size of the database after them (SQLite file format 4.1)."""
    page_bytes = struct.unpack_from(">I", wal, 8)[0]
    salts = wal[16:24]
    frames = [wal[at : at + 24] for at in range(32, len(wal), 24 + page_bytes)]
    return sum(1 for frame in frames if frame[8:16] == salts and frame[4:8] != bytes(4))


async def test_a_committed_proof_is_read_back_as_it_was(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit(proof("chatcmpl-\x00 'é\U0001f512"))
        assert await store.proof("chatcmpl-\x00 'é\U0001f512", now=NOW) == proof("chatcmpl-\x00 'é\U0001f512")


async def test_a_proof_made_without_a_credential_keeps_none(tmp_path: Path) -> None:
    bare = replace(proof(), credential_sha256=None)
    async with opened(tmp_path) as store:
        await store.commit(bare)
        assert await store.proof(bare.chat_id, now=NOW) == bare


async def test_commit_returns_when_another_process_would_see_the_row(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for number in range(20):
            await store.commit(proof(f"id-{number}"))
            assert count(tmp_path) == number + 1


async def test_a_reused_id_points_to_the_newest_proof(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit(proof(outcome="first"))
        await store.commit(proof(outcome="second"))
        found = await store.proof("chatcmpl-1", now=NOW)
    assert found is not None
    assert found.outcome == "second"


@pytest.mark.parametrize("chat_id", ["", "nobody", "\udc80", "%", "' OR 1=1 --", "x" * 100_000])
async def test_an_unknown_id_is_none(tmp_path: Path, chat_id: str) -> None:
    async with opened(tmp_path) as store:
        await store.commit(proof())
        assert await store.proof(chat_id, now=NOW) is None


async def test_a_proof_ends_with_its_last_second(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit(proof(ttl_s=60))
        assert await store.proof("chatcmpl-1", now=NOW + 59) is not None
        assert await store.proof("chatcmpl-1", now=NOW + 60) is None


async def test_commits_in_flight_together_share_transactions(tmp_path: Path) -> None:
    wal = tmp_path / "confide.db-wal"
    async with opened(tmp_path) as store:
        await store.commit(proof("first"))
        before = commit_frames(wal.read_bytes())
        await asyncio.gather(*(store.commit(proof(f"id-{number}")) for number in range(64)))
        together = commit_frames(wal.read_bytes()) - before
        for number in range(8):
            await store.commit(proof(f"alone-{number}"))
        alone = commit_frames(wal.read_bytes()) - before - together
    assert 1 <= together <= 16
    assert alone == 8
    assert count(tmp_path) == 73


async def test_a_caller_that_stops_waiting_harms_no_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        tasks = [asyncio.create_task(store.commit(proof(f"id-{number}"))) for number in range(32)]
        await asyncio.sleep(0)  # all have handed over their row
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[1::2] == [None] * 16
        assert await store.proof("id-31", now=NOW) is not None


async def test_close_finishes_what_was_begun(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        tasks = [asyncio.create_task(store.commit(proof(f"id-{number}"))) for number in range(200)]
        await asyncio.sleep(0)
        await store.close()
        await asyncio.gather(*tasks)
    assert count(tmp_path) == 200


async def test_a_closed_store_refuses_instead_of_waiting(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.close()
        with pytest.raises(NotReady):
            await store.commit(proof())
        with pytest.raises(NotReady):
            await store.proof("chatcmpl-1", now=NOW)
        with pytest.raises(NotReady):
            await store.keys_version()


@pytest.mark.parametrize("synchronous", ["normal", "full"])
async def test_either_level_of_durability_works_in_wal_mode(
    tmp_path: Path, synchronous: Literal["normal", "full"]
) -> None:
    async with opened(tmp_path, config.Store(synchronous=synchronous)) as store:
        await store.commit(proof())
    assert query(tmp_path, "PRAGMA journal_mode") == [("wal",)]
    assert count(tmp_path) == 1


async def test_only_this_user_can_read_the_files(tmp_path: Path) -> None:
    (tmp_path / "confide.db").touch(mode=0o644)
    async with opened(tmp_path) as store:
        await store.commit(proof())
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(["confide.db", "confide.db-wal", "confide.db-shm"], 0o600)


async def test_the_wal_stays_bounded_under_load(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for batch in range(150):
            ids = [sha256(f"{batch}-{number}".encode()).hexdigest() for number in range(32)]  # all over the index
            await asyncio.gather(*(store.commit(proof(chat_id)) for chat_id in ids))
        assert (tmp_path / "confide.db-wal").stat().st_size < 12 * 2**20
    assert count(tmp_path) == 4800
