"""What is committed can be read, by anyone who opens the file; many commits share one transaction."""

import asyncio
import re
import sqlite3
import stat
import struct
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Literal

import pytest
from msgspec.structs import replace

from confide import config
from confide.errors import NotReady
from confide.store.sqlite import BY_CHAT_ID, BY_RECEIPT_ID
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
        assert await store.proof("chatcmpl-1", now=NOW) == bare


async def test_a_proof_is_found_by_its_receipt_id_and_by_its_chat_id(tmp_path: Path) -> None:
    mine, other = proof("chatcmpl-1", receipt_id="rcpt-1"), proof("chatcmpl-2", receipt_id="rcpt-2")
    async with opened(tmp_path) as store:
        await asyncio.gather(store.commit(mine), store.commit(other))
        for lookup_id, expected in [("rcpt-1", mine), ("chatcmpl-1", mine), ("rcpt-2", other), ("chatcmpl-2", other)]:
            assert await store.proof(lookup_id, now=NOW) == expected


async def test_a_proof_without_a_chat_id_is_found_by_its_receipt_id_alone(tmp_path: Path) -> None:
    bare = proof(None, receipt_id="rcpt-1")
    async with opened(tmp_path) as store:
        await store.commit(bare)
        assert await store.proof("rcpt-1", now=NOW) == bare
        for lookup_id in ("None", "", "NULL"):
            assert await store.proof(lookup_id, now=NOW) is None


async def test_ids_that_end_alike_are_told_apart(tmp_path: Path) -> None:
    ends = "0123456789abcdef"
    async with opened(tmp_path) as store:
        for number in range(5):
            await store.commit(proof(f"chatcmpl-{number}{ends}", receipt_id=f"rcpt-{number}{ends}"))
        for number in range(5):
            for lookup_id in (f"chatcmpl-{number}{ends}", f"rcpt-{number}{ends}"):
                found = await store.proof(lookup_id, now=NOW)
                assert found is not None
                assert lookup_id in (found.receipt_id, found.chat_id)
        for lookup_id in (ends, ends[-10:], f"rcpt-{ends}", f"chatcmpl-5{ends}"):
            assert await store.proof(lookup_id, now=NOW) is None


async def test_a_chat_id_cannot_be_taken_for_a_receipt_id(tmp_path: Path) -> None:
    honest = proof("chatcmpl-1", receipt_id="rcpt-1")
    async with opened(tmp_path) as store:
        await store.commit(honest)
        await store.commit(proof("rcpt-1", receipt_id="rcpt-2"))  # an answer whose id imitates another's receipt id
        assert await store.proof("rcpt-1", now=NOW) == honest


@pytest.mark.parametrize("statement", [BY_RECEIPT_ID, BY_CHAT_ID])
async def test_a_lookup_reads_one_index_and_sorts_nothing(tmp_path: Path, statement: str) -> None:
    async with opened(tmp_path):
        with closing(sqlite3.connect(tmp_path / "confide.db")) as db:
            plan = db.execute(f"EXPLAIN QUERY PLAN {statement}", ("rcpt-1", "rcpt-1", NOW)).fetchall()
    assert len(plan) == 1
    assert re.fullmatch(r"SEARCH proofs USING INDEX proofs_by_(receipt|chat)_id \(<expr>=\?\)", plan[0][3])


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("receipt", "text"),
        ("receipt", None),
        ("seal", "\x04" * 32),
        ("expires_at", "later"),
        ("chat_id", b"chatcmpl-1"),
    ],
)
async def test_a_row_that_somebody_damaged_counts_as_none(tmp_path: Path, column: str, value: object) -> None:
    async with opened(tmp_path) as store:
        await store.commit(proof(receipt_id="rcpt-1"))
        with closing(sqlite3.connect(tmp_path / "confide.db", isolation_level=None)) as db:
            db.execute("PRAGMA writable_schema = ON")
            db.execute("UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '') WHERE name = 'proofs'")
        with closing(sqlite3.connect(tmp_path / "confide.db", isolation_level=None)) as db:
            db.execute(f"UPDATE proofs SET {column} = ?", (value,))
        assert await store.proof("rcpt-1", now=NOW) is None


async def test_commit_returns_when_another_process_would_see_the_row(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for number in range(20):
            await store.commit(proof(f"id-{number}"))
            assert count(tmp_path) == number + 1


async def test_a_reused_id_points_to_the_newest_proof(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for receipt in (b"first", b"second"):
            await store.commit(proof("chatcmpl-1", receipt_id="rcpt-1", receipt=receipt))
        for lookup_id in ("chatcmpl-1", "rcpt-1"):
            found = await store.proof(lookup_id, now=NOW)
            assert found is not None
            assert found.receipt == b"second"


async def test_a_newer_proof_that_expired_earlier_does_not_hide_the_older_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit(proof(ttl_s=600))
        await store.commit(proof(ttl_s=60))
        assert await store.proof("chatcmpl-1", now=NOW + 60) == proof(ttl_s=600)


@pytest.mark.parametrize("chat_id", ["", "nobody", "\udc80", "%", "' OR 1=1 --", "x" * 100_000, "rcpt-", "rcpt-\ud800"])
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
        with pytest.raises(NotReady):
            await store.keep_report("sha256:" + "0" * 64, b"", expires_at=NOW)
        with pytest.raises(NotReady):
            await store.report("sha256:" + "0" * 64, now=NOW)


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
