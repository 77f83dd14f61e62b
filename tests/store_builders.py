"""What the store's tests are arranged from: a proof with defaults, a store in a directory, and looks from outside."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

from confide import config
from confide.store import Proof, SqliteStore, open_store

NOW = 1_790_000_000


def proof(chat_id: str = "chatcmpl-1", *, created_at: int = NOW, ttl_s: int = 3600, outcome: str = "complete") -> Proof:
    return Proof(
        chat_id=chat_id,
        model="confide/smollm2-135m",
        request_sha256=b"\x01" * 32,
        response_sha256=b"\x02" * 32,
        outcome=outcome,
        credential_sha256=b"\x03" * 32,
        created_at=created_at,
        expires_at=created_at + ttl_s,
        seal=b"\x04" * 32,
    )


@asynccontextmanager
async def opened(
    home: Path, settings: config.Store | None = None, *, clock: Callable[[], float] = lambda: NOW
) -> AsyncIterator[SqliteStore]:
    store = open_store(None, home, settings or config.Store(), clock=clock)
    try:
        yield store
    finally:
        await store.close()


def query(home: Path, statement: str) -> list[tuple[object, ...]]:
    """What another process would read."""
    with closing(sqlite3.connect(home / "confide.db")) as db:
        return db.execute(statement).fetchall()


def count(home: Path) -> object:
    return query(home, "SELECT count(*) FROM proofs")[0][0]
