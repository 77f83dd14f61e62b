"""The reports of keysets that stood: kept until receipts that name them are past, and no longer."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from confide.errors import NotReady
from confide.store.reports import MAX_REPORTS
from store_builders import NOW, no_file_larger_than, opened, proof, query

FIRST, SECOND = "sha256:" + "aa" * 32, "sha256:" + "bb" * 32
REPORT = b'{"api_version":"aci/1"}\xff\x00'


async def test_a_report_is_read_back_byte_for_byte_also_by_the_next_server(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.keep_report(FIRST, REPORT, expires_at=NOW + 60)
        assert await store.report(FIRST, now=NOW) == REPORT
        assert await store.report(SECOND, now=NOW) is None
    async with opened(tmp_path) as store:
        assert await store.report(FIRST, now=NOW) == REPORT


async def test_a_report_ends_with_its_last_second(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.keep_report(FIRST, REPORT, expires_at=NOW + 60)
        assert await store.report(FIRST, now=NOW + 59) is not None
        assert await store.report(FIRST, now=NOW + 60) is None


async def test_a_later_report_of_the_same_keyset_takes_the_place_of_the_earlier(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for report in (b"old", b"old", b"new"):
            await store.keep_report(FIRST, report, expires_at=NOW + 60)
        assert await store.report(FIRST, now=NOW) == b"new"
    assert query(tmp_path, "SELECT count(*) FROM reports") == [(1,)]


async def test_a_report_is_never_forgotten_earlier_than_was_promised(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.keep_report(FIRST, b"old", expires_at=NOW + 600)
        await store.keep_report(FIRST, b"new", expires_at=NOW + 60)
        assert await store.report(FIRST, now=NOW + 599) == b"new"


async def test_expired_reports_leave_the_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.keep_report(FIRST, REPORT, expires_at=NOW + 60)
        await store.keep_report(SECOND, REPORT, expires_at=NOW + 61)
    async with opened(tmp_path, clock=lambda: NOW + 60):
        pass
    assert query(tmp_path, "SELECT digest FROM reports") == [(SECOND,)]


async def test_above_the_bound_those_go_that_end_first(tmp_path: Path) -> None:
    digests = [f"sha256:{number:064x}" for number in range(MAX_REPORTS + 3)]
    async with opened(tmp_path) as store:
        keeping = [store.keep_report(each, b"", expires_at=NOW + 1 + n) for n, each in enumerate(digests)]
        await asyncio.gather(*keeping)
    kept = {row[0] for row in query(tmp_path, "SELECT digest FROM reports")}
    assert kept == set(digests[3:])


async def test_a_report_that_cannot_be_written_is_refused_and_harms_no_proof(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit(proof("before"))
        with no_file_larger_than((tmp_path / "confide.db-wal").stat().st_size):
            with pytest.raises(NotReady) as caught:
                await store.keep_report(FIRST, REPORT, expires_at=NOW + 60)
            assert str(tmp_path) not in str(caught.value.body())
            assert await store.report(FIRST, now=NOW) is None
        await store.keep_report(FIRST, REPORT, expires_at=NOW + 60)
        await store.commit(proof("after"))
        assert await store.report(FIRST, now=NOW) == REPORT


@pytest.mark.parametrize(("digest", "expires_at"), [("ab" * 32, NOW), ("", NOW), (FIRST, -1), (FIRST, 2**63)])
async def test_what_could_not_be_found_again_never_reaches_the_writer(
    tmp_path: Path, digest: str, expires_at: int
) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(ValueError, match="digest string"):
            await store.keep_report(digest, REPORT, expires_at=expires_at)
        await store.commit(proof())


async def test_reports_and_proofs_handed_over_together_are_all_kept(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        together = [store.commit(proof(f"id-{number}")) for number in range(20)]
        together += [store.keep_report(f"sha256:{n:064x}", REPORT, expires_at=NOW + 60) for n in range(5)]
        await asyncio.gather(*together)
    assert query(tmp_path, "SELECT (SELECT count(*) FROM proofs), (SELECT count(*) FROM reports)") == [(20, 5)]


async def test_a_report_that_somebody_replaced_by_text_counts_as_none(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.keep_report(FIRST, REPORT, expires_at=NOW + 60)
        with closing(sqlite3.connect(tmp_path / "confide.db", isolation_level=None)) as db:
            db.execute("UPDATE reports SET report = 'text'")
        assert await store.report(FIRST, now=NOW) is None
