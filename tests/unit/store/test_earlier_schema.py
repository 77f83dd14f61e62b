"""A file of an earlier version: its API keys live on, and nobody pulls it from under a server that runs on it."""

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from confide import config
from confide.errors import ConfigError
from confide.store import open_keys, open_store
from confide.store.database import prepare, transaction
from store_builders import NOW, no_file_larger_than, opened, proof, query

VERSION_1 = (
    """CREATE TABLE proofs (
        id INTEGER PRIMARY KEY, chat_id TEXT NOT NULL, model TEXT NOT NULL, request_sha256 BLOB NOT NULL,
        response_sha256 BLOB NOT NULL, outcome TEXT NOT NULL, credential_sha256 BLOB, created_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL, seal BLOB NOT NULL)""",
    "CREATE INDEX proofs_by_chat_id ON proofs (chat_id)",
    "CREATE INDEX proofs_by_expiry ON proofs (expires_at)",
    """CREATE TABLE keys (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, sha256 BLOB NOT NULL UNIQUE, created_at INTEGER NOT NULL,
        last_used_at INTEGER, revoked_at INTEGER)""",
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    "INSERT INTO meta VALUES ('keys_version', 0)",
    """CREATE TRIGGER key_created AFTER INSERT ON keys
        BEGIN UPDATE meta SET value = value + 1 WHERE name = 'keys_version'; END""",
    """CREATE TRIGGER key_changed AFTER UPDATE OF id, name, sha256, created_at, revoked_at ON keys
        BEGIN UPDATE meta SET value = value + 1 WHERE name = 'keys_version'; END""",
    """CREATE TRIGGER key_deleted AFTER DELETE ON keys
        BEGIN UPDATE meta SET value = value + 1 WHERE name = 'keys_version'; END""",
    "PRAGMA application_id = 1128678449",
    "PRAGMA user_version = 1",
)
KEYS = [
    ("key_1", "laptop", b"\x01" * 32, NOW - 9, NOW - 1, None),
    ("key_2", "phone", b"\x02" * 32, NOW - 8, None, NOW - 2),
]
ADD_PROOF = "INSERT INTO proofs VALUES (NULL, ?, 'm', ?, ?, 'complete', NULL, 1, ?, ?)"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A state directory of version 1: two keys, one of them revoked, and some thousand proofs."""
    with closing(sqlite3.connect(tmp_path / "confide.db", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        with transaction(db):
            for statement in VERSION_1:
                db.execute(statement)
            db.executemany("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?)", KEYS)
            digest = bytes(32)
            db.executemany(ADD_PROOF, ((f"chatcmpl-{n}", digest, digest, NOW + 60, digest) for n in range(3000)))
    return tmp_path


def keys_in_file(home: Path) -> list[tuple[object, ...]]:
    return query(home, "SELECT id, name, sha256, created_at, last_used_at, revoked_at FROM keys ORDER BY id")


def version(home: Path) -> object:
    return query(home, "PRAGMA user_version")[0][0]


async def test_the_server_finds_its_keys_and_keeps_proofs(home: Path) -> None:
    async with opened(home) as store:
        keys = await store.keys()
        assert [(key.id, key.revoked_at) for key in keys.records] == [("key_1", None), ("key_2", NOW - 2)]
        assert keys.version == 2
        await store.commit(proof("chatcmpl-new", receipt_id="rcpt-new"))
        assert await store.proof("rcpt-new", now=NOW) == proof("chatcmpl-new", receipt_id="rcpt-new")
        await store.keep_report("sha256:" + "ab" * 32, b"report", expires_at=NOW + 60)
    assert keys_in_file(home) == KEYS
    assert version(home) == 3


async def test_a_proof_without_a_receipt_is_forgotten(home: Path) -> None:
    async with opened(home) as store:
        assert await store.proof("chatcmpl-1", now=NOW) is None
    assert query(home, "SELECT count(*) FROM proofs") == [(0,)]


async def test_keys_are_still_counted_when_they_change(home: Path) -> None:
    async with opened(home) as store:
        before = await store.keys_version()
        open_keys(None, home).create_key("new")
        open_keys(None, home).revoke_key("key_1")
        assert await store.keys_version() == before + 2


async def test_what_was_brought_up_once_is_left_as_it_is(home: Path) -> None:
    async with opened(home) as store:
        await store.commit(proof())
    async with opened(home) as store:
        assert await store.proof("chatcmpl-1", now=NOW) is not None


def test_the_schema_is_the_one_of_a_new_file(home: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    for directory in (home, fresh):
        prepare(directory / "confide.db")
    schema = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
    assert query(home, schema) == query(fresh, schema)
    assert query(home, "PRAGMA integrity_check") == [("ok",)]


def test_the_command_line_leaves_the_file_to_a_server_that_may_run_on_it(home: Path) -> None:
    """A server of version 1 would find its table gone, and refuse every prompt."""
    with closing(sqlite3.connect(home / "confide.db", isolation_level=None)) as server:
        record, _ = open_keys(None, home).create_key("new")
        assert {key.id for key in open_keys(None, home).list_keys()} == {"key_1", "key_2", record.id}
        assert version(home) == 1
        digest = bytes(32)
        server.execute(ADD_PROOF, ("chatcmpl-later", digest, digest, NOW + 60, digest))
        assert server.execute("SELECT count(*) FROM proofs").fetchone() == (3001,)


def test_a_disk_without_room_leaves_the_earlier_file_whole(home: Path) -> None:
    with no_file_larger_than(40_000), pytest.raises(ConfigError, match="cannot be used"):
        open_store(None, home, config.Store())
    assert version(home) == 1
    assert keys_in_file(home) == KEYS
    assert query(home, "SELECT count(*) FROM proofs") == [(3000,)]
    prepare(home / "confide.db")
    assert keys_in_file(home) == KEYS
    assert version(home) == 3


async def test_a_key_that_is_made_meanwhile_is_not_lost(home: Path) -> None:
    """`confide keys` runs beside the start of the server: one waits for the other, in whichever order they come."""
    started = threading.Barrier(5)

    def make_one(name: str) -> None:
        keys = open_keys(None, home)
        started.wait()
        keys.create_key(name)

    def start_server() -> None:
        started.wait()
        prepare(home / "confide.db")

    names = [f"n{number}" for number in range(4)]
    await asyncio.gather(*(asyncio.to_thread(make_one, name) for name in names), asyncio.to_thread(start_server))
    assert {key.name for key in open_keys(None, home).list_keys()} == {"laptop", "phone", *names}
    assert version(home) == 3


async def test_a_file_of_version_2_keeps_its_proofs_and_gets_room_for_sessions(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit(proof("chatcmpl-1", receipt_id="rcpt-1"))
    with closing(sqlite3.connect(tmp_path / "confide.db")) as db:
        db.executescript("DROP TABLE sessions; PRAGMA user_version = 2")
    async with opened(tmp_path) as store:
        assert await store.proof("rcpt-1", now=NOW) == proof("chatcmpl-1", receipt_id="rcpt-1")
        await store.keep_session("ab" * 32, b"{}", expires_at=NOW + 60)
        assert await store.session("ab" * 32, now=NOW) == b"{}"
        assert await store.session("ab" * 32, now=NOW + 60) is None
        assert await store.session("cd" * 32, now=NOW) is None
    assert version(tmp_path) == 3
