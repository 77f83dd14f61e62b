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
from typing import Literal, cast

from confide.errors import ConfigError

URL_PREFIX = "sqlite:///"
DEFAULT_NAME = "confide.db"
APPLICATION_ID = 0x43464431  # "CFD1": tells our files from another program's
SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 5.0

# Proofs are appended in rowid order: a random primary key would touch a wide page for each row of a batch. The two
# indexes are what a lookup and the eviction need; `chat_id` is not unique because an id may be reused.
SCHEMA = (
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
    # Triggers, so that no way of changing a key forgets the running server. A use is not a change.
    """CREATE TRIGGER key_created AFTER INSERT ON keys
        BEGIN UPDATE meta SET value = value + 1 WHERE name = 'keys_version'; END""",
    """CREATE TRIGGER key_changed AFTER UPDATE OF id, name, sha256, created_at, revoked_at ON keys
        BEGIN UPDATE meta SET value = value + 1 WHERE name = 'keys_version'; END""",
    """CREATE TRIGGER key_deleted AFTER DELETE ON keys
        BEGIN UPDATE meta SET value = value + 1 WHERE name = 'keys_version'; END""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


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
    """Create the file or check that it is ours. Raises ConfigError; a file that is not ours is left as it was."""
    with alone_in(path.parent), explained(path), closing(connect(create_private(path))) as db:
        if identity(db, path) is None:
            db.execute("PRAGMA journal_mode = WAL")
            create_schema(db)
        narrow(path)
        for table in ("keys", "proofs"):
            scalar(db, f"SELECT count(*) FROM {table}")  # noqa: S608 - finds a damaged file at start, not at a prompt


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


def create_schema(db: sqlite3.Connection) -> None:
    """All of it or nothing."""
    with transaction(db):
        for statement in SCHEMA:
            db.execute(statement)


def scalar(db: sqlite3.Connection, query: str) -> int:
    """The one integer that a query without parameters yields."""
    return cast(int, db.execute(query).fetchone()[0])


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
