"""What receipts cite by its digest: kept once, for as long as receipts that cite it may be asked about.

That is the attestation report of each keyset that stood, and each attested session of an upstream with its evidence.
"""

import sqlite3

from confide.store.database import transaction

KEEP = """INSERT INTO {table} ({key}, {document}, expires_at) VALUES (?, ?, ?) ON CONFLICT ({key}) DO UPDATE
    SET {document} = excluded.{document}, expires_at = max(expires_at, excluded.expires_at)"""
DELETE_EXCESS = """DELETE FROM {table} WHERE {key} IN
    (SELECT {key} FROM {table} ORDER BY expires_at DESC LIMIT -1 OFFSET ?)"""
DELETE_EXPIRED = "DELETE FROM {table} WHERE expires_at <= ?"
FIND = "SELECT {document} FROM {table} WHERE {key} = ? AND expires_at > ?"


class Cited:
    """One table of such documents. Each method raises sqlite3.Error."""

    def __init__(self, table: str, *, key: str, document: str, most: int) -> None:
        """`table` and its columns `key` and `document` become part of the SQL: names of our schema, and nothing else.

        `most`: how many rows are kept.
        """
        names = {"table": table, "key": key, "document": document}
        self.most = most
        self._keep, self._delete_excess = KEEP.format(**names), DELETE_EXCESS.format(**names)
        self._delete_expired, self._find = DELETE_EXPIRED.format(**names), FIND.format(**names)

    def keep(self, db: sqlite3.Connection, key: str, document: bytes, expires_at: int) -> None:
        """Commit a document until `expires_at` (Unix seconds), and let those go that end first when there are too many.

        A later one under the same key takes its place, for whichever time ends later.
        """
        with transaction(db):
            db.execute(self._keep, (key, document, expires_at))
            db.execute(self._delete_excess, (self.most,))

    def delete_expired(self, db: sqlite3.Connection, now: int) -> None:
        """Delete what has expired at `now` (Unix seconds)."""
        db.execute(self._delete_expired, (now,))

    def find(self, db: sqlite3.Connection, key: str, now: int) -> bytes | None:
        """The document as it was kept; what somebody put there as anything but bytes counts as none."""
        row: tuple[object] | None = db.execute(self._find, (key, now)).fetchone()
        return row[0] if row is not None and isinstance(row[0], bytes) else None


# There is one report a keyset, so a handful; the bound is for a service whose keysets live for seconds, and
# docs/receipts.md tells operators what it means for those.
REPORTS = Cited("reports", key="digest", document="report", most=1024)
SESSIONS = Cited("sessions", key="id", document="document", most=4096)
