"""API keys: made, listed, revoked. A token is shown once; its SHA-256 is what is kept.

Every call opens its own short connection, so the command line works beside a running server, which notices by the
version counter. A revoked key stays in the table: were it deleted, revoking the last one would open the service.
"""

import base64
import hashlib
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from confide.errors import ConfigError
from confide.store.base import KeyRecord
from confide.store.database import connect, explained, locate, prepare_keys

TOKEN_PREFIX = "cfd_"  # noqa: S105 - lets secret scanners find a leaked token
TOKEN_RANDOM_BYTES = 32  # 43 characters of base64url
ID_RANDOM_BYTES = 6
MAX_NAME_CHARACTERS = 100
COLUMNS = "id, name, sha256, created_at, last_used_at, revoked_at"


def token_sha256(token: bytes) -> bytes:
    """What is kept of a token: its SHA-256, 32 bytes. It needs no salt: a token has 256 random bits."""
    return hashlib.sha256(token).digest()


def new_token() -> str:
    """`cfd_` and 43 characters of base64url, from 32 random bytes."""
    return TOKEN_PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(TOKEN_RANDOM_BYTES)).rstrip(b"=").decode()


def read_keys(db: sqlite3.Connection) -> tuple[KeyRecord, ...]:
    """All keys, oldest first. Raises sqlite3.Error."""
    rows = db.execute(f"SELECT {COLUMNS} FROM keys ORDER BY created_at, rowid")  # noqa: S608 - a constant
    return tuple(
        KeyRecord(id=id_, name=name, sha256=sha256, created_at=created, last_used_at=used, revoked_at=revoked)
        for id_, name, sha256, created, used, revoked in rows
    )


class KeyTable:
    """The keys in the database file at `path`. Methods block; they raise ConfigError when the file cannot be used."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock

    def create_key(self, name: str) -> tuple[KeyRecord, str]:
        """Make a key: its record and its token, which nothing can show again."""
        check_name(name)
        token = new_token()
        record = KeyRecord(
            id=f"key_{secrets.token_hex(ID_RANDOM_BYTES)}",
            name=name,
            sha256=token_sha256(token.encode()),
            created_at=int(self._clock()),
            last_used_at=None,
            revoked_at=None,
        )
        with self._connection() as db:
            row = (record.id, record.name, record.sha256, record.created_at)
            db.execute("INSERT INTO keys (id, name, sha256, created_at) VALUES (?, ?, ?, ?)", row)
        return record, token

    def list_keys(self) -> tuple[KeyRecord, ...]:
        """All keys, oldest first, the revoked ones too."""
        with self._connection() as db:
            return read_keys(db)

    def revoke_key(self, key_id: str) -> KeyRecord:
        """Revoke a key for good; once more changes nothing. Raises ConfigError when no key has the id."""
        with self._connection() as db:
            db.execute(
                "UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (int(self._clock()), key_id)
            )
            found = [record for record in read_keys(db) if record.id == key_id]
        if not found:
            # The id is not repeated: people paste the token here.
            raise ConfigError("no API key has this id", remedy="`confide keys list` shows the ids.")
        return found[0]

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with explained(self._path), closing(connect(self._path, synchronous="full")) as db:
            yield db


def check_name(name: str) -> None:
    """Refuse a name that could not be shown in a table or a log. Raises ConfigError."""
    if not (1 <= len(name) <= MAX_NAME_CHARACTERS and name.isprintable() and name.strip()):
        raise ConfigError(
            f"the name of an API key: expected 1 to {MAX_NAME_CHARACTERS} printable characters",
            remedy="Name it after who uses it, for example `confide keys create laptop`.",
        )


def open_keys(url: str | None, home: Path) -> KeyTable:
    """The keys of the store at `url` (None: under `home`), for the command line. Raises ConfigError."""
    path = locate(url, home)
    prepare_keys(path)
    return KeyTable(path)
