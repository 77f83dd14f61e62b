"""What the tests of the store are arranged from: proofs with defaults, a store in a directory, looks from outside, and
a disk that is full.
"""

import resource
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from hashlib import sha256
from pathlib import Path

from confide import config
from confide.store import Proof, SqliteStore, open_store

NOW = 1_790_000_000
RECEIPT = b'{"receipt":"%s"}' % (b"." * 700)  # as long as those of the service


def proof(
    chat_id: str | None = "chatcmpl-1",
    *,
    receipt_id: str | None = None,
    receipt: bytes = RECEIPT,
    created_at: int = NOW,
    ttl_s: int = 3600,
) -> Proof:
    """A proof with this chat id, and with a receipt id of its own that follows from it unless one is given."""
    return Proof(
        receipt_id=receipt_id or receipt_id_of(chat_id),
        chat_id=chat_id,
        request_sha256=b"\x01" * 32,
        response_sha256=b"\x02" * 32,
        credential_sha256=b"\x03" * 32,
        expires_at=created_at + ttl_s,
        receipt=receipt,
        seal=b"\x04" * 32,
    )


def receipt_id_of(chat_id: str | None) -> str:
    return f"rcpt-{sha256(str(chat_id).encode(errors='replace')).hexdigest()[:24]}"


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


@contextmanager
def no_file_larger_than(size_bytes: int) -> Iterator[None]:
    """What the kernel then answers to a write is an error, as it does on a full disk. Needs no privilege."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
