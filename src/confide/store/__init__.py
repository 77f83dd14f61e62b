"""Where proofs and API keys are kept: SQLite under CONFIDE_HOME (architecture 4, Durability)."""

from confide.store.base import KeyRecord, Keys, Proof, Store
from confide.store.keys import KeyTable, open_keys
from confide.store.lock import StateLock, lock_state
from confide.store.sqlite import SqliteStore, open_store

__all__ = [
    "KeyRecord",
    "KeyTable",
    "Keys",
    "Proof",
    "SqliteStore",
    "StateLock",
    "Store",
    "lock_state",
    "open_keys",
    "open_store",
]
