"""Several processes that write to one store: what each does of what one process does alone.

Every process commits its own proofs. One of them, which has nothing else to do, deletes for all what has expired or is
above the cap: so only that one has to know how many there are, and no prompt waits behind it in its own process.
"""

import fcntl
import os
import sqlite3
from pathlib import Path
from typing import NamedTuple

from confide.store.database import create_private, scalar
from confide.store.retention import Retention

NEWEST = "SELECT ifnull(max(id), 0) FROM proofs"


class Sharing(NamedTuple):
    """`writers`: how many processes commit proofs. `tidies`: this one deletes for all, and is not one of them."""

    writers: int
    tidies: bool


class Turns:
    """Who writes next, when several processes would. SQLite's own way of waiting is to sleep and look again, which may
    miss a turn many times; the kernel wakes one who waits for a lock of its own. Not needed for what is right: whoever
    does not know of it, such as `confide keys`, waits SQLite's way.
    """

    def __init__(self, path: Path) -> None:
        """`path`: of the database, beside which there is a file for this. Raises ConfigError, OSError."""
        self._descriptor = os.open(create_private(path.with_name(path.name + "-turn")), os.O_RDWR | os.O_CLOEXEC)

    def __enter__(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Nobody uses it any more."""
        os.close(self._descriptor)


class RetentionOfOthers(Retention):
    """Counts what others have added by the newest id: each proof has the next one."""

    def __init__(self, db: sqlite3.Connection, *, max_proofs: int) -> None:
        self._newest = scalar(db, NEWEST)  # first: what comes in between is counted twice rather than never
        super().__init__(db, max_proofs=max_proofs)

    def added(self, count: int) -> None:
        """Found by its id, like those of others."""

    def bite(self, now: int) -> bool:
        """See Retention. Raises sqlite3.Error."""
        self._look()
        more = super().bite(now)
        self._look()  # before ids that were deleted come again
        return more

    def _look(self) -> None:
        newest = scalar(self._db, NEWEST)
        if newest < self._newest:
            self._kept = scalar(self._db, "SELECT count(*) FROM proofs")  # of the few that are left
        else:
            self._kept += newest - self._newest
        self._newest = newest


class NoRetention(Retention):
    """Another process deletes."""

    def __init__(self) -> None:
        pass

    def added(self, count: int) -> None:
        """The other one counts for itself."""

    def bite(self, _: int) -> bool:
        """There is nothing to do here."""
        return False


def retention_of(sharing: Sharing | None, db: sqlite3.Connection, *, max_proofs: int) -> Retention:
    """What this process deletes; None: it is the only one. Raises sqlite3.Error."""
    if sharing is None:
        return Retention(db, max_proofs=max_proofs)
    return RetentionOfOthers(db, max_proofs=max_proofs) if sharing.tidies else NoRetention()
