"""The default store: one SQLite file in WAL mode, one writer thread, one reader thread.

Readers never wait for the writer, nor it for them; the event loop waits for neither. Synchronous NORMAL survives a
crash of the process, FULL also one of the machine (architecture 4, Durability).
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec.structs import astuple

from confide import config
from confide.errors import NotReady
from confide.protocol.canonical import BARE_DIGEST, DIGEST
from confide.store.base import MAX_INTEGER, RECEIPT_ID_PREFIX, Keys, Proof
from confide.store.cited import REPORTS, SESSIONS, Cited
from confide.store.database import ID_END, connect, explained, locate, prepare, scalar
from confide.store.keys import KeyTable, read_keys
from confide.store.lock import StateLock, lock_state
from confide.store.sharing import Sharing, Turns
from confide.store.writer import COLUMNS, NO_TURN, RETRY_AFTER_S, Entry, Errand, Writer, not_stored

__all__ = ["SqliteStore", "StateLock", "lock_state", "open_store"]

WRITE_TIMEOUT_S = 2.0  # for the moment in which `confide keys` writes; prompts wait behind it
# The first term is the one that is indexed. The + keeps SQLite from putting the value of the third into it, after which
# no index would fit.
FIND = f"""SELECT {COLUMNS} FROM proofs WHERE substr({{0}}, -{ID_END}) = substr(?, -{ID_END}) AND {{0}} IS NOT NULL
    AND +{{0}} = ? AND expires_at > ? ORDER BY id DESC LIMIT 1"""  # noqa: S608 - constants
BY_RECEIPT_ID, BY_CHAT_ID = FIND.format("receipt_id"), FIND.format("chat_id")

T = TypeVar("T")


class SqliteStore(KeyTable):
    """A `Store` over one file, used by one event loop; `open_store` makes it. Keys can also be changed through it."""

    def __init__(
        self,
        path: Path,
        *,
        settings: config.Store,
        clock: Callable[[], float] = time.time,
        sharing: Sharing | None = None,
    ) -> None:
        super().__init__(path, clock=clock)
        self._reader = connect(path)
        self._reader.execute("PRAGMA query_only = ON")
        self._reading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="confide-store-reader")
        db = connect(path, synchronous=settings.synchronous, timeout_s=WRITE_TIMEOUT_S)
        self._turns = None if sharing is None else Turns(path)
        turn = NO_TURN if self._turns is None else self._turns
        self._writer = Writer(db, max_proofs=settings.max_proofs, clock=clock, sharing=sharing, turn=turn)
        self._writer.start()
        self._closed = False

    async def commit(self, proof: Proof) -> None:
        """Return once the proof is committed; raises NotReady, and nothing was kept, when that fails."""
        if self._closed:
            raise not_stored()
        future = asyncio.get_running_loop().create_future()
        self._writer.put(Entry(astuple(proof), future))
        await future

    async def proof(self, lookup_id: str, *, now: int) -> Proof | None:
        """The newest proof with this receipt id or chat id that has not expired at `now` (Unix seconds), or None."""
        return await self._read(lambda db: find(db, lookup_id, now))

    async def keep_report(self, digest: str, report: bytes, *, expires_at: int) -> None:
        """Return once the report is committed; raises NotReady, and nothing was kept, when that fails.

        Raises ValueError for what could not be found again: it must not reach the writer.
        """
        if DIGEST.fullmatch(digest) is None or not 0 <= expires_at <= MAX_INTEGER:
            raise ValueError("a report is kept under a digest string, until Unix seconds from 0 to 2**63 - 1")
        await self._keep(REPORTS, digest, report, expires_at)

    async def report(self, digest: str, *, now: int) -> bytes | None:
        """The report of this keyset that has not expired at `now` (Unix seconds), or None."""
        return await self._read(lambda db: REPORTS.find(db, digest, now))

    async def keep_session(self, session_id: str, document: bytes, *, expires_at: int) -> None:
        """Return once the session is committed; raises NotReady, and nothing was kept, when that fails.

        Raises ValueError for what could not be found again: it must not reach the writer.
        """
        if BARE_DIGEST.fullmatch(session_id) is None or not 0 <= expires_at <= MAX_INTEGER:
            raise ValueError("a session is kept under 64 hex digits, until Unix seconds from 0 to 2**63 - 1")
        await self._keep(SESSIONS, session_id, document, expires_at)

    async def session(self, session_id: str, *, now: int) -> bytes | None:
        """The session under this id that has not expired at `now` (Unix seconds), or None."""
        return await self._read(lambda db: SESSIONS.find(db, session_id, now))

    async def keys(self) -> Keys:
        """All API keys."""
        # The version first: a change in between shows as a version that is too old, and is read again.
        return await self._read(lambda db: Keys(read_version(db), read_keys(db)))

    async def keys_version(self) -> int:
        """The number that grows with every change to a key."""
        return await self._read(read_version)

    def note_key_use(self, key_id: str, *, at: int) -> None:
        """Write `last_used_at` (Unix seconds) at the writer's next occasion, seconds from now."""
        self._writer.note_key_use(key_id, at)

    async def close(self) -> None:
        """Finish the commits that were begun, then close the file. Once more does nothing."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._writer.stop)
        await asyncio.to_thread(self._reading.shutdown)
        self._reader.close()
        if self._turns is not None:
            self._turns.close()

    async def _keep(self, cited: Cited, key: str, document: bytes, expires_at: int) -> None:
        if self._closed:
            raise not_stored()
        future = asyncio.get_running_loop().create_future()
        self._writer.put(Errand(lambda db: cited.keep(db, key, document, expires_at), future))
        await future

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise not_readable()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reading, query, self._reader)
        except sqlite3.Error as error:
            raise not_readable() from error


def find(db: sqlite3.Connection, lookup_id: str, now: int) -> Proof | None:
    """The row as a Proof. A row that somebody damaged counts as none. Raises sqlite3.Error."""
    by_id = BY_RECEIPT_ID if lookup_id.startswith(RECEIPT_ID_PREFIX) else BY_CHAT_ID
    try:
        row = db.execute(by_id, (lookup_id, lookup_id, now)).fetchone()
        if row is None:
            return None
        # Converted, not constructed: a column may hold a value of any type. Bytes as they are, not as base64.
        members = dict(zip(Proof.__struct_fields__, row, strict=True))
        return msgspec.convert(members, Proof, builtin_types=(bytes,))
    except ValueError:  # also for an id that is not Unicode
        return None


def read_version(db: sqlite3.Connection) -> int:
    """`Keys.version`. Raises sqlite3.Error."""
    return scalar(db, "SELECT value FROM meta WHERE name = 'keys_version'")


def not_readable() -> NotReady:
    """What a client is told: no path, no reason from below."""
    return NotReady("The service cannot read its store at the moment. Try again later.", retry_after_s=RETRY_AFTER_S)


def open_store(
    url: str | None,
    home: Path,
    config: config.Store,
    *,
    clock: Callable[[], float] = time.time,
    sharing: Sharing | None = None,
) -> SqliteStore:
    """Open the store at `url` (None: `confide.db` in `home`), creating it when missing. Raises ConfigError.

    `clock` yields Unix seconds; it decides what has expired. `sharing`: with which other processes; None: none.
    """
    path = locate(url, home)
    prepare(path)
    with explained(path):
        return SqliteStore(path, settings=config, clock=clock, sharing=sharing)
