"""What `confide doctor` asks of the state directory and the store. Nothing here writes, creates or narrows anything."""

import contextlib
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from confide.cli.finding import Finding, fail, ok, refused, size, warn
from confide.config import HOME_REMEDY
from confide.errors import ConfigError
from confide.store.base import KeyRecord
from confide.store.database import explained, identity, locate, scalar
from confide.store.keys import read_keys
from confide.store.lock import LOCK_NAME

# The modes of what the state directory holds, and whether the service refuses to start over a wider one; what it does
# not refuse it narrows by itself.
MODES = {
    ".": (0o700, False),
    "run": (0o700, False),
    "confide.db": (0o600, False),
    "simulator": (0o700, True),
    "simulator/seed": (0o600, True),
}
LEAST_FREE_BYTES = 16_000_000  # the write-ahead log alone is kept at 8 MiB
LOW_FREE_BYTES = 2_500_000_000  # a million proofs with their receipts, and room to copy them


def state_directory(home: Path) -> list[Finding]:
    """Whether the service can live there, and who else can look in."""
    check = "state directory"
    try:
        if not home.exists():
            return [missing(home)]
        if not home.is_dir():
            return [fail(check, f"{home} is not a directory", HOME_REMEDY)]
        if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
            return [fail(check, f"{home} cannot be written by this user", HOME_REMEDY)]
        open_to_others = [finding for name in MODES if (finding := too_open(home, name))]
    except OSError as error:
        return [fail(check, f"{home} cannot be used: {error.strerror}", HOME_REMEDY)]
    return open_to_others or [ok(check, f"{home}, open to this user alone")]


def missing(home: Path) -> Finding:
    parent = next(path for path in home.parents if path.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        found = f"{home} is missing, and this user may not write to {parent}"
        return fail("state directory", found, HOME_REMEDY)
    return ok("state directory", f"{home}, made at the first start")


def too_open(home: Path, name: str) -> Finding | None:
    """A finding when others than the owner have a right on it."""
    path, (allowed, is_refused) = home / name, MODES[name]
    if not path.exists() or not path.stat().st_mode & 0o077:
        return None
    found = f"{path} has mode {path.stat().st_mode & 0o777:o}, expected {allowed:o}"
    return Finding("state directory", "fail" if is_refused else "warn", found, f"Run: chmod {allowed:o} {path}")


def server_of(home: Path) -> str | None:
    """The process id of the server that runs on `home`, or None."""
    try:
        descriptor = os.open(home / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, and let go of at once
    except BlockingIOError:
        return os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
    finally:
        os.close(descriptor)
    return None


def store(url: str | None, home: Path) -> Finding:
    """Whether the database is ours, whole, writable, and has room to grow."""
    try:
        path = locate(url, home)
        found = f"{path}, made at the first start"
        if path.exists():
            with reading(path) as db:
                proofs = scalar(db, "SELECT count(*) FROM proofs") if identity(db, path) else 0
            found = f"{path} opens, {proofs} proofs"
        return room(path, found)
    except ConfigError as error:
        return refused("store", error)


def room(path: Path, found: str) -> Finding:
    """Whether the database can be written where it is, or will be."""
    directory = next(parent for parent in path.parents if parent.exists())
    targets = [target for target in (path, directory) if target.exists()]
    if denied := [target for target in targets if not os.access(target, os.W_OK)]:
        return fail("store", f"{denied[0]} cannot be written by this user", "Give this user the right, or move it.")
    free = shutil.disk_usage(directory).free
    remedy = f"Free space on the disk of {directory}: an answer whose proof cannot be stored is not given."
    if free < LOW_FREE_BYTES:
        status = fail if free < LEAST_FREE_BYTES else warn
        return status("store", f"{found}; only {size(free)} free", remedy)
    return ok("store", f"{found}; {size(free)} free")


def api_keys(url: str | None, home: Path, *, host: str, is_loopback: bool) -> Finding:
    """Who can use the service at `host` (architecture 5, Without keys)."""
    try:
        records = key_records(locate(url, home))
    except ConfigError as error:
        return refused("API keys", error)
    active = sum(record.revoked_at is None for record in records)
    remedy = "Create one with `confide keys create NAME`."
    if not records and not is_loopback:
        return fail("API keys", f"none, and others can reach {host}: the service refuses to start", remedy)
    if not records:
        return ok("API keys", "none: anyone on this machine can use the service, nobody else")
    if not active:
        return warn("API keys", f"{len(records)}, all revoked: every request is refused", remedy)
    return ok("API keys", f"{active} active, {len(records) - active} revoked")


def key_records(path: Path) -> tuple[KeyRecord, ...]:
    """All keys; none where there is no database yet. Raises ConfigError."""
    if not path.exists():
        return ()
    with reading(path) as db:
        return read_keys(db) if identity(db, path) else ()


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that leaves no trace, also beside a running server. Raises ConfigError.

    SQLite makes companion files for a database in WAL mode even to read it. Where both are there, a server runs or was
    killed: they are read as they are, the index of the log through a read-only mapping. Where they are not, the file is
    whole by itself and is read without them, and without locks.
    """
    companions = [path.with_name(path.name + ending) for ending in ("-wal", "-shm")]
    how = "readonly_shm=1" if all(companion.exists() for companion in companions) else "immutable=1"
    with (
        explained(path),
        contextlib.closing(
            sqlite3.connect(f"file:{quote(str(path))}?mode=ro&{how}", uri=True, isolation_level=None)
        ) as db,
    ):
        db.execute("PRAGMA trusted_schema = OFF")  # the file may have been edited by whoever owns the disk
        yield db
