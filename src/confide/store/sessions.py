"""Attested sessions with their evidence, each once, for as long as receipts that cite it may be asked about."""

import sqlite3

from confide.store.database import transaction

MAX_SESSIONS = 4096

KEEP = """INSERT INTO sessions (id, document, expires_at) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE
    SET document = excluded.document, expires_at = max(expires_at, excluded.expires_at)"""
DELETE_EXCESS = """DELETE FROM sessions WHERE id IN
    (SELECT id FROM sessions ORDER BY expires_at DESC LIMIT -1 OFFSET ?)"""
DELETE_EXPIRED = "DELETE FROM sessions WHERE expires_at <= ?"
FIND = "SELECT document FROM sessions WHERE id = ? AND expires_at > ?"


def keep(db: sqlite3.Connection, session_id: str, document: bytes, expires_at: int) -> None:
    """Commit a session, and let those go that end first when there are too many. Raises sqlite3.Error."""
    with transaction(db):
        db.execute(KEEP, (session_id, document, expires_at))
        db.execute(DELETE_EXCESS, (MAX_SESSIONS,))


def delete_expired(db: sqlite3.Connection, now: int) -> None:
    """Raises sqlite3.Error."""
    db.execute(DELETE_EXPIRED, (now,))


def find(db: sqlite3.Connection, session_id: str, now: int) -> bytes | None:
    """The document as it was kept; what somebody put there as no bytes counts as none. Raises sqlite3.Error."""
    row: tuple[object] | None = db.execute(FIND, (session_id, now)).fetchone()
    return row[0] if row is not None and isinstance(row[0], bytes) else None
