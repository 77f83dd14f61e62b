"""What receipts cite, the reports of keysets and the sessions of upstreams: kept until receipts that name it are past,
and no longer.
"""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from confide.errors import NotReady
from confide.store import SqliteStore
from confide.store.cited import REPORTS, SESSIONS
from store_builders import NOW, no_file_larger_than, opened, proof, query

DOCUMENT = b'{"api_version":"aci/1"}\xff\x00'


class Kind(NamedTuple):
    """`table` and its columns, as they stand in the file; `prefix`: what a key has before its 64 hex digits."""

    table: str
    key: str
    document: str
    prefix: str
    most: int

    async def keep(self, store: SqliteStore, key: str, document: bytes = DOCUMENT, *, expires_at: int) -> None:
        keep = store.keep_report if self.table == "reports" else store.keep_session
        await keep(key, document, expires_at=expires_at)

    async def found(self, store: SqliteStore, key: str, *, now: int) -> bytes | None:
        find = store.report if self.table == "reports" else store.session
        return await find(key, now=now)

    def named(self, number: int) -> str:
        return f"{self.prefix}{number:064x}"


REPORT = Kind("reports", "digest", "report", "sha256:", REPORTS.most)
SESSION = Kind("sessions", "id", "document", "", SESSIONS.most)


@pytest.fixture(params=[REPORT, SESSION], ids=["report", "session"])
def kind(request: pytest.FixtureRequest) -> Kind:
    found = request.param
    assert isinstance(found, Kind)
    return found


async def test_a_document_is_read_back_byte_for_byte_also_by_the_next_server(tmp_path: Path, kind: Kind) -> None:
    async with opened(tmp_path) as store:
        await kind.keep(store, kind.named(1), expires_at=NOW + 60)
        assert await kind.found(store, kind.named(1), now=NOW) == DOCUMENT
        assert await kind.found(store, kind.named(2), now=NOW) is None
    async with opened(tmp_path) as store:
        assert await kind.found(store, kind.named(1), now=NOW) == DOCUMENT


async def test_a_document_ends_with_its_last_second(tmp_path: Path, kind: Kind) -> None:
    async with opened(tmp_path) as store:
        await kind.keep(store, kind.named(1), expires_at=NOW + 60)
        assert await kind.found(store, kind.named(1), now=NOW + 59) is not None
        assert await kind.found(store, kind.named(1), now=NOW + 60) is None


async def test_a_later_document_under_the_same_key_takes_the_place_of_the_earlier(tmp_path: Path, kind: Kind) -> None:
    async with opened(tmp_path) as store:
        for document in (b"old", b"old", b"new"):
            await kind.keep(store, kind.named(1), document, expires_at=NOW + 60)
        assert await kind.found(store, kind.named(1), now=NOW) == b"new"
    assert query(tmp_path, f"SELECT count(*) FROM {kind.table}") == [(1,)]


async def test_a_document_is_never_forgotten_earlier_than_was_promised(tmp_path: Path, kind: Kind) -> None:
    async with opened(tmp_path) as store:
        await kind.keep(store, kind.named(1), b"old", expires_at=NOW + 600)
        await kind.keep(store, kind.named(1), b"new", expires_at=NOW + 60)
        assert await kind.found(store, kind.named(1), now=NOW + 599) == b"new"


async def test_expired_documents_leave_the_file(tmp_path: Path, kind: Kind) -> None:
    async with opened(tmp_path) as store:
        await kind.keep(store, kind.named(1), expires_at=NOW + 60)
        await kind.keep(store, kind.named(2), expires_at=NOW + 61)
    async with opened(tmp_path, clock=lambda: NOW + 60):
        pass
    assert query(tmp_path, f"SELECT {kind.key} FROM {kind.table}") == [(kind.named(2),)]


async def test_above_the_bound_those_go_that_end_first(tmp_path: Path, kind: Kind) -> None:
    keys = [kind.named(number) for number in range(kind.most + 3)]
    async with opened(tmp_path) as store:
        keeping = [kind.keep(store, each, b"", expires_at=NOW + 1 + n) for n, each in enumerate(keys)]
        await asyncio.gather(*keeping)
    kept = {row[0] for row in query(tmp_path, f"SELECT {kind.key} FROM {kind.table}")}
    assert kept == set(keys[3:])


async def test_a_document_that_cannot_be_written_is_refused_and_harms_no_proof(tmp_path: Path, kind: Kind) -> None:
    async with opened(tmp_path) as store:
        await store.commit(proof("before"))
        with no_file_larger_than((tmp_path / "confide.db-wal").stat().st_size):
            with pytest.raises(NotReady) as caught:
                await kind.keep(store, kind.named(1), expires_at=NOW + 60)
            assert str(tmp_path) not in str(caught.value.body())
            assert await kind.found(store, kind.named(1), now=NOW) is None
        await kind.keep(store, kind.named(1), expires_at=NOW + 60)
        await store.commit(proof("after"))
        assert await kind.found(store, kind.named(1), now=NOW) == DOCUMENT


@pytest.mark.parametrize(
    ("kind", "key", "expires_at", "message"),
    [
        (REPORT, "ab" * 32, NOW, "digest string"),
        (REPORT, "", NOW, "digest string"),
        (REPORT, REPORT.named(1), -1, "digest string"),
        (REPORT, REPORT.named(1), 2**63, "digest string"),
        (SESSION, "sha256:" + "ab" * 32, NOW, "64 hex digits"),
        (SESSION, "", NOW, "64 hex digits"),
        (SESSION, SESSION.named(1), -1, "64 hex digits"),
        (SESSION, SESSION.named(1), 2**63, "64 hex digits"),
    ],
)
async def test_what_could_not_be_found_again_never_reaches_the_writer(
    tmp_path: Path, kind: Kind, key: str, expires_at: int, message: str
) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(ValueError, match=message):
            await kind.keep(store, key, expires_at=expires_at)
        await store.commit(proof())


async def test_documents_and_proofs_handed_over_together_are_all_kept(tmp_path: Path, kind: Kind) -> None:
    async with opened(tmp_path) as store:
        together = [store.commit(proof(f"id-{number}")) for number in range(20)]
        together += [kind.keep(store, kind.named(n), expires_at=NOW + 60) for n in range(5)]
        await asyncio.gather(*together)
    assert query(tmp_path, f"SELECT (SELECT count(*) FROM proofs), (SELECT count(*) FROM {kind.table})") == [(20, 5)]


async def test_a_document_that_somebody_replaced_by_text_counts_as_none(tmp_path: Path, kind: Kind) -> None:
    async with opened(tmp_path) as store:
        await kind.keep(store, kind.named(1), expires_at=NOW + 60)
        with closing(sqlite3.connect(tmp_path / "confide.db", isolation_level=None)) as db:
            db.execute(f"UPDATE {kind.table} SET {kind.document} = 'text'")
        assert await kind.found(store, kind.named(1), now=NOW) is None


async def test_one_kind_is_not_found_as_the_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.keep_report(REPORT.named(1), b"report", expires_at=NOW + 60)
        await store.keep_session(SESSION.named(1), b"session", expires_at=NOW + 60)
        assert await store.report(REPORT.named(1), now=NOW) == b"report"
        assert await store.session(SESSION.named(1), now=NOW) == b"session"
