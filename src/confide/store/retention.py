"""How old and how many proofs may get (wire contract 7.7): expired ones go, then the oldest above the cap.

Reports of keysets and sessions that are past go with them.

Rows are deleted in bites, because a prompt may wait behind one. The file does not shrink: SQLite reuses the pages, so
its size follows the largest number of proofs that were ever kept at once, not the traffic.
"""

import sqlite3

from confide.store.cited import REPORTS, SESSIONS
from confide.store.database import scalar

BITE_ROWS = 256

DELETE_EXPIRED = """DELETE FROM proofs WHERE id IN
    (SELECT id FROM proofs WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)"""
DELETE_OLDEST = "DELETE FROM proofs WHERE id IN (SELECT id FROM proofs ORDER BY id LIMIT ?)"


class Retention:
    """Keeps the number of proofs in mind, since counting them would read the whole table. Used by the writer alone."""

    def __init__(self, db: sqlite3.Connection, *, max_proofs: int) -> None:
        self._db = db
        self._max_proofs = max_proofs
        self._kept = scalar(db, "SELECT count(*) FROM proofs")

    def added(self, count: int) -> None:
        """`count` proofs were committed."""
        self._kept += count

    def bite(self, now: int) -> bool:
        """Delete up to BITE_ROWS proofs that have to go at `now` (Unix seconds); True when there may be more.

        Raises sqlite3.Error.
        """
        REPORTS.delete_expired(self._db, now)
        SESSIONS.delete_expired(self._db, now)
        deleted = self._db.execute(DELETE_EXPIRED, (now, BITE_ROWS)).rowcount
        self._kept -= deleted
        if deleted == BITE_ROWS:
            return True
        excess = min(self._kept - self._max_proofs, BITE_ROWS)
        if excess > 0:
            self._kept -= self._db.execute(DELETE_OLDEST, (excess,)).rowcount
        return self._kept > self._max_proofs
