"""The one thread that writes: group commit.

Theory of operation. `commit` puts a row and a future into the inbox. The thread takes all that waits there, writes it
with one INSERT statement, which in autocommit mode is one transaction, and then resolves all the futures with one call
into the event loop. One statement, because SQLite's module gives up the interpreter lock for every statement it runs:
with a statement a row, a busy event loop makes the thread wait once a row. Between batches the thread deletes what
expired and notes which keys were used, a small bite at a time. A report of a keyset, once in weeks, comes through the
same inbox and is a transaction of its own.

Exit: a resolved future means a committed row; NotReady means that no row of the batch was kept. Either happens to every
entry, also when the thread ends.
"""

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache, partial
from itertools import chain
from typing import NamedTuple

from confide.errors import NotReady
from confide.store.base import Proof
from confide.store.database import transaction
from confide.store.sharing import Sharing, retention_of

MAX_BATCH = 64  # rows in a transaction
TIDY_ROWS = 128  # half a bite: under load more is deleted than is written
TIDY_S = 10.0
TIDY_FOR_ALL_S = 1.0  # where others write, and this process does not see how much
PAGES_PER_COMMIT = 3  # the ends of the table and of the index by expiry, and what they hang from
PAGES_PER_ROW = 2.25  # a page of each index by id, as ids are random; and a row, with its receipt, is a quarter of one
CHECKPOINT_PAGES = 1000  # 4 MiB; SQLite makes a checkpoint of its own, inside a commit, at twice as many
RETRY_AFTER_S = 5

COLUMNS = ", ".join(Proof.__struct_fields__)
ROW = f"({', '.join('?' * len(Proof.__struct_fields__))})"
NOTE_USE = "UPDATE keys SET last_used_at = max(?, ifnull(last_used_at, 0)) WHERE id = ?"

NO_TURN = nullcontext()  # one process alone writes

Row = tuple[object, ...]


class Entry(NamedTuple):
    """A proof to commit, and who waits for it."""

    row: Row
    future: asyncio.Future[None]


class Errand(NamedTuple):
    """Anything else to commit: `do` makes a transaction of its own of it, or raises sqlite3.Error."""

    do: Callable[[sqlite3.Connection], None]
    future: asyncio.Future[None]


logger = logging.getLogger(__name__)


@cache
def insert(rows: int) -> str:
    """The statement for a batch of 1 to MAX_BATCH; the connection keeps each one prepared."""
    return f"INSERT INTO proofs ({COLUMNS}) VALUES {', '.join([ROW] * rows)}"  # noqa: S608 - constants


def not_stored() -> NotReady:
    """What a client is told: no path, no reason from below."""
    return NotReady("The service cannot store proofs at the moment. Try again later.", retry_after_s=RETRY_AFTER_S)


def resolve(futures: Iterable[asyncio.Future[None]], *, stored: bool) -> None:
    """Wake everyone who waited for one batch. Runs in the event loop; a future may have been cancelled meanwhile."""
    for future in futures:
        if future.done():
            continue
        if stored:
            future.set_result(None)
        else:
            future.set_exception(not_stored())


class Writer:
    """Owns `db` from `start` to `stop`. Its futures belong to one event loop, the one that calls `put`."""

    def __init__(
        self,
        db: sqlite3.Connection,
        *,
        max_proofs: int,
        clock: Callable[[], float],
        sharing: Sharing | None = None,
        turn: AbstractContextManager[None] = NO_TURN,
    ) -> None:
        """`clock`: Unix seconds. `sharing`: who else writes to the file; None: nobody. `turn`: held for each write."""
        self._db = db
        self._db.execute(f"PRAGMA wal_autocheckpoint = {2 * CHECKPOINT_PAGES}")
        self._clock = clock
        self._turn = turn
        self._retention = retention_of(sharing, db, max_proofs=max_proofs)
        self._checkpoint_pages = CHECKPOINT_PAGES / (
            1 if sharing is None else sharing.writers
        )  # the log is all of theirs
        self._tidy_s = TIDY_S if sharing is None or not sharing.tidies else TIDY_FOR_ALL_S
        self._inbox: queue.SimpleQueue[Entry | Errand | None] = queue.SimpleQueue()
        self._uses: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="confide-store-writer", daemon=True)
        self._ended = False
        self._batch: list[Entry | Errand | None] = []
        self._rows_since_tidy = 0
        self._pages_in_wal = 0.0
        self._tidy_at = 0.0  # monotonic seconds; in the past: the first thing to do
        self._more_to_tidy = False

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def put(self, entry: Entry | Errand) -> None:
        """Hand over one entry; its future is resolved when it is committed. Raises NotReady after the end."""
        self._inbox.put(entry)
        if self._ended:  # asked after the put: either the thread's last look finds the entry, or we see the end here
            raise not_stored()

    def note_key_use(self, key_id: str, at: int) -> None:
        """Write `last_used_at` at the next occasion."""
        self._uses.put((at, key_id))

    def stop(self) -> None:
        """Write what was handed over, then end and close the connection. Blocks; once more does nothing."""
        self._inbox.put(None)
        self._thread.join()
        self._db.close()

    def _run(self) -> None:
        try:
            while self._step():
                pass
        finally:
            self._ended = True
            if left := [entry for entry in (*self._batch, *self._waiting()) if entry]:
                self._settle(left, stored=False)  # who was answered already is passed over

    def _step(self) -> bool:
        """Write one batch, or tidy up; False when it was the last."""
        self._batch = batch = self._take()
        if entries := [entry for entry in batch if isinstance(entry, Entry)]:
            self._serve(entries, lambda: self._insert(entries))
            self._checkpoint_if_due()
        for errand in batch:
            if isinstance(errand, Errand):
                self._serve([errand], partial(errand.do, self._db))
        if None in batch:
            self._tidy()
            return False
        if self._is_tidy_due():
            self._tidy()
        return True

    def _take(self) -> list[Entry | Errand | None]:
        """All that waits, up to a batch; nothing when it is time to tidy."""
        wait_s = 0.0 if self._more_to_tidy else max(0.0, self._tidy_at - time.monotonic())
        with suppress(queue.Empty):
            return [self._inbox.get(timeout=wait_s), *self._waiting(MAX_BATCH - 1)]
        return []

    def _waiting(self, limit: int | None = None) -> list[Entry | Errand | None]:
        count = self._inbox.qsize()  # nobody else takes from the inbox
        return [self._inbox.get_nowait() for _ in range(count if limit is None else min(count, limit))]

    def _serve(self, entries: Sequence[Entry | Errand], write: Callable[[], None]) -> None:
        """Commit one transaction, of which nothing is kept when it fails, and answer."""
        stored = False
        try:
            with self._turn:
                write()
            stored = True
        except sqlite3.Error as error:
            logger.warning("%d entries not stored: %s", len(entries), reason(error))
        finally:  # nobody may wait for ever
            self._settle(entries, stored=stored)

    def _insert(self, entries: list[Entry]) -> None:
        rows = len(entries)
        self._db.execute(insert(rows), tuple(chain.from_iterable(row for row, _ in entries)))
        self._retention.added(rows)
        self._rows_since_tidy += rows
        self._pages_in_wal += PAGES_PER_COMMIT + PAGES_PER_ROW * rows

    def _settle(self, entries: Sequence[Entry | Errand], *, stored: bool) -> None:
        """Answer a batch, in the loop that its futures belong to."""
        futures = [future for _, future in entries]
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            futures[0].get_loop().call_soon_threadsafe(lambda: resolve(futures, stored=stored))

    def _is_tidy_due(self) -> bool:
        is_idle_with_work = self._more_to_tidy and self._inbox.empty()
        return is_idle_with_work or self._rows_since_tidy >= TIDY_ROWS or time.monotonic() >= self._tidy_at

    def _checkpoint_if_due(self) -> None:
        """Move the WAL into the file when nobody waits for this batch: that waits for the disk, twice."""
        if self._pages_in_wal < self._checkpoint_pages:
            return
        self._pages_in_wal = 0.0
        with suppress(sqlite3.Error):  # a full disk: the rows stay in the WAL, where they are durable too
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _tidy(self) -> None:
        """One bite, after the batch was answered. A failure costs nothing but the time until the next."""
        self._rows_since_tidy = 0
        self._tidy_at = time.monotonic() + self._tidy_s
        self._more_to_tidy = False
        try:
            with self._turn:
                self._more_to_tidy = self._retention.bite(int(self._clock()))
                self._write_uses()
        except sqlite3.Error as error:
            logger.warning("old proofs not deleted: %s", reason(error))

    def _write_uses(self) -> None:
        if self._uses.empty():
            return
        uses = [self._uses.get_nowait() for _ in range(self._uses.qsize())]
        with transaction(self._db):
            self._db.executemany(NOTE_USE, uses)


def reason(error: sqlite3.Error) -> str:
    """SQLite's name of the error, such as SQLITE_FULL; its text may hold a path."""
    return getattr(error, "sqlite_errorname", type(error).__name__)
