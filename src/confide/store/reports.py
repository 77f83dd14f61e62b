"""The attestation report of each keyset that stood, for as long as receipts that name it may be asked about.

There is one a keyset, so a handful; the bound is for a service whose keysets live for seconds.
"""

import sqlite3

from confide.store.database import transaction

MAX_REPORTS = 1024  # docs/receipts.md tells operators what that means for short lifetimes

KEEP = """INSERT INTO reports (digest, report, expires_at) VALUES (?, ?, ?) ON CONFLICT (digest) DO UPDATE
    SET report = excluded.report, expires_at = max(expires_at, excluded.expires_at)"""
DELETE_EXCESS = """DELETE FROM reports WHERE digest IN
    (SELECT digest FROM reports ORDER BY expires_at DESC LIMIT -1 OFFSET ?)"""
DELETE_EXPIRED = "DELETE FROM reports WHERE expires_at <= ?"
FIND = "SELECT report FROM reports WHERE digest = ? AND expires_at > ?"


def keep(db: sqlite3.Connection, digest: str, report: bytes, expires_at: int) -> None:
    """Commit a report, and let those go that end first when there are too many. Raises sqlite3.Error."""
    with transaction(db):
        db.execute(KEEP, (digest, report, expires_at))
        db.execute(DELETE_EXCESS, (MAX_REPORTS,))


def delete_expired(db: sqlite3.Connection, now: int) -> None:
    """Raises sqlite3.Error."""
    db.execute(DELETE_EXPIRED, (now,))


def find(db: sqlite3.Connection, digest: str, now: int) -> bytes | None:
    """The report as it was kept; what somebody put there as anything but bytes counts as none. Raises sqlite3.Error."""
    row: tuple[object] | None = db.execute(FIND, (digest, now)).fetchone()
    return row[0] if row is not None and isinstance(row[0], bytes) else None
