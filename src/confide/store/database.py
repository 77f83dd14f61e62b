"""The SQLite file: where it is, whether it is ours, its schema, and how it is opened.

Entry: a path. Exit: a file of mode 0600 in WAL mode with our schema, or ConfigError. Only the schema and the pages that
are read are checked; a proof's contents are the business of its seal.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

from confide.errors import ConfigError

URL_PREFIX = "sqlite:///"
DEFAULT_NAME = "confide.db"
APPLICATION_ID = 0x43464431  # "CFD1": tells our files from another program's
SCHEMA_VERSION = 3
BUSY_TIMEOUT_S = 5.0

# Proofs are appended in rowid order: a random primary key would touch a wide page for each row of a batch. Both ids are
# random too, so each row dirties a page of each of their indexes, which is most of what a commit costs. So the indexes
# hold the ends of the ids alone: narrow enough to stay in the cache at 100,000 proofs, where whole ids cost twice as
# much a row, and 40 bits keep a lookup to one row. Neither is unique: an id may be written twice.
ID_END = 10
SESSIONS = (
    "CREATE TABLE sessions (id TEXT PRIMARY KEY, expires_at INTEGER NOT NULL, document BLOB NOT NULL)",
    "CREATE INDEX sessions_by_expiry ON sessions (expires_at)",
)
RECORDS = (
    """CREATE TABLE proofs (
        id INTEGER PRIMARY KEY, receipt_id TEXT NOT NULL, chat_id TEXT, request_sha256 BLOB NOT NULL,
        response_sha256 BLOB NOT NULL, credential_sha256 BLOB, expires_at INTEGER NOT NULL, receipt BLOB NOT NULL,
        seal BLOB NOT NULL)""",
    f"CREATE INDEX proofs_by_receipt_id ON proofs (substr(receipt_id, -{ID_END}))",
    f"CREATE INDEX proofs_by_chat_id ON proofs (substr(chat_id, -{ID_END})) WHERE chat_id IS NOT NULL",
    "CREATE INDEX proofs_by_expiry ON proofs (expires_at)",
    "CREATE TABLE reports (digest TEXT PRIMARY KEY, expires_at INTEGER NOT NULL, report BLOB NOT NULL)",
    "CREATE INDEX reports_by_expiry ON reports (expires_at)",
    *SESSIONS,
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
KEYS = (
    """CREATE TABLE keys (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, sha256 BLOB NOT NULL UNIQUE, created_at INTEGER NOT NULL,
        last_used_at INTEGER, revoked_at INTEGER)""",
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    "INSERT INTO meta VALUES ('keys_version', 0)",
    # Triggers, so that no way of changing a key forgets the running server. A use is not a change.
    """CREATE TRIGGER key_created AFTER INSERT ON keys
        BEGIN UPDATE meta SET value = value + 1 WHERE name = 'keys_version'; END""",
    """CREATE TRIGGER key_changed AFTER UPDATE OF id, name, sha256, created_at, revoked_at ON keys
        BEGIN UPDATE meta SET value = value + 1 WHERE name = 'keys_version'; END""",
    """CREATE TRIGGER key_deleted AFTER DELETE ON keys
        BEGIN UPDATE meta SET value = value + 1 WHERE name = 'keys_version'; END""",
)
SCHEMA = (*KEYS, *RECORDS, f"PRAGMA application_id = {APPLICATION_ID}")
# Version 1 kept no receipts. Its proofs, an hour's worth, cannot be turned into any: they go, the keys stay.
FROM_VERSION_1 = ("DROP TABLE proofs", *RECORDS)
FROM_VERSION_2 = (*SESSIONS, f"PRAGMA user_version = {SCHEMA_VERSION}")
MIGRATIONS = {1: FROM_VERSION_1, 2: FROM_VERSION_2}


def locate(url: str | None, home: Path) -> Path:
    """The file that `url` names; None means `confide.db` in `home`.

    `sqlite:///name` is relative to `home`, so that every command finds one file; `sqlite:////srv/name` is absolute.
    """
    if url is None:
        return home / DEFAULT_NAME
    if not url.startswith(URL_PREFIX) or url == URL_PREFIX:
        raise ConfigError(
            "[store] url: got something else, expected sqlite:///FILE",
            remedy="Use sqlite:///confide.db for a file under CONFIDE_HOME, or sqlite:////absolute/path.",
        )
    return home / url.removeprefix(URL_PREFIX)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite says into a ConfigError that names the file. For starting and the command line only."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise ConfigError(
            f"the database {path} cannot be used: {error}",
            remedy="Check the permissions, the free space, and that no other program holds the file.",
        ) from error
    except sqlite3.DatabaseError as error:
        raise foreign(path, str(error)) from error


def foreign(path: Path, found: str) -> ConfigError:
    """The refusal of a file that is damaged or not ours."""
    return ConfigError(
        f"{path} cannot be read as a Confide database: {found}",
        remedy="Move the file away to start with an empty one, or name another in [store] url.",
    )


def prepare(path: Path) -> None:
    """Create the file, or check that it is ours and bring it to our schema, all of it or nothing.

    For the server, which holds the state lock. Raises ConfigError; a file that is not ours is left as it was.
    """
    with ours(path) as db:
        apply(db, MIGRATIONS.get(identity(db, path) or SCHEMA_VERSION, ()))
        check_tables(db, "keys", "proofs", "reports", "sessions")


def prepare_keys(path: Path) -> None:
    """Create the file or check that it is ours, for those who touch the keys alone. Raises ConfigError.

    A file of an earlier version stays what it is, since a server of that version may be running on it. The keys have
    been the same in all versions.
    """
    with ours(path) as db:
        check_tables(db, "keys")


@contextmanager
def ours(path: Path) -> Iterator[sqlite3.Connection]:
    """The file, with a schema of ours or of an earlier version; created when it is missing. Raises ConfigError."""
    with alone_in(path.parent), explained(path), closing(connect(create_private(path))) as db:
        if identity(db, path) is None:
            db.execute("PRAGMA journal_mode = WAL")
            apply(db, SCHEMA)
        narrow(path)
        yield db


def check_tables(db: sqlite3.Connection, *tables: str) -> None:
    """Find a damaged file at start, not at a prompt. Raises sqlite3.Error."""
    for table in tables:
        scalar(db, f"SELECT count(*) FROM {table}")  # noqa: S608 - constants


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """One process at a time looks at a new file: SQLite does not wait for readers when it changes to WAL, it fails."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(
            f"the directory {directory} cannot be used: {error.strerror}",
            remedy="Name a file in an existing directory that this user may write in [store] url.",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def create_private(path: Path) -> Path:
    """Make an empty file of mode 0600, unless there is one. SQLite gives its companion files the same mode."""
    try:
        # O_EXCL: opening and closing a file that this process has open in SQLite would drop SQLite's locks.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(
            f"the database {path} cannot be created: {error.strerror}",
            remedy="Name a file in a directory that this user may write in [store] url.",
        ) from error
    return path


def narrow(path: Path) -> None:
    """Take other users' rights away from our file."""
    if path.stat().st_uid == os.getuid():
        path.chmod(0o600)


def identity(db: sqlite3.Connection, path: Path) -> int | None:
    """The schema version of our file, None for an empty one. Raises ConfigError for anything else."""
    application, version = scalar(db, "PRAGMA application_id"), scalar(db, "PRAGMA user_version")
    if application == version == 0 and not scalar(db, "SELECT count(*) FROM sqlite_master"):
        return None
    if application != APPLICATION_ID:
        raise foreign(path, "another program's SQLite file")
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has schema version {version}, expected at most {SCHEMA_VERSION}",
            remedy="A newer Confide wrote it: upgrade, or start with another CONFIDE_HOME.",
        )
    return version


def apply(db: sqlite3.Connection, statements: tuple[str, ...]) -> None:
    """All of them or none."""
    with transaction(db):
        for statement in statements:
            db.execute(statement)


def scalar(db: sqlite3.Connection, query: str) -> int:
    """The one integer that a query without parameters yields. Raises sqlite3.Error, also when somebody removed it."""
    match db.execute(query).fetchone():
        case (int(value),):
            return value
        case _:
            raise sqlite3.DatabaseError("a row without which the store cannot be used is missing or damaged")


def connect(
    path: Path,
    *,
    synchronous: Literal["normal", "full"] = "normal",
    timeout_s: float = BUSY_TIMEOUT_S,
) -> sqlite3.Connection:
    """A connection in autocommit mode; `synchronous` is what a commit waits for. Raises sqlite3.Error.

    One thread may use it at a time, not necessarily the one that opened it.
    """
    db = sqlite3.connect(path, timeout=timeout_s, isolation_level=None, check_same_thread=False, cached_statements=256)
    db.execute(f"PRAGMA synchronous = {'FULL' if synchronous == 'full' else 'NORMAL'}")
    db.execute("PRAGMA trusted_schema = OFF")  # the file may have been edited by whoever owns the disk
    db.execute("PRAGMA journal_size_limit = 8388608")  # after a burst the WAL is cut back to 8 MiB
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """BEGIN IMMEDIATE, then COMMIT, or ROLLBACK when the block raises."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:  # SQLite has rolled back by itself after a full disk
            db.execute("ROLLBACK")
