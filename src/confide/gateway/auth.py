"""Who is asking, and which proofs they may read (wire contract 2 and 7.7).

Entry: the header pairs of a request, and keys that were read from the store some seconds ago at most. Exit: a
principal whose credential belongs to a key that is not revoked, or, while no key was ever created, anyone.
Not decided here: whether an open service may listen on this address (the composition root refuses to start).

Every failure is a refusal. A service that cannot read its keys answers 503; it never becomes an open one.
"""

import asyncio
import hmac
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec

from confide.errors import CredentialRequired, NotAuthenticated, NotFound, NotReady
from confide.store.base import KeyRecord, Store
from confide.store.keys import token_sha256

Headers = Iterable[tuple[bytes, bytes]]  # as in an ASGI scope

REFRESH_S = 1.0
MAX_FAILED_REFRESHES = 10  # then keys are too old to trust: one of them may have been revoked
NOTE_USE_EVERY_S = 60

MISSING = "No API key was given. Send it as 'Authorization: Bearer <key>'."
AMBIGUOUS = "More than one credential was given. Send one, as 'Authorization: Bearer <key>' or as 'x-api-key'."
UNKNOWN = "The API key is not valid."
UNKNOWN_PROOF = "Chat id not found or expired"
REMEDY = "`confide keys create NAME` makes a key."


class Principal(msgspec.Struct, frozen=True):
    """The holder of a key. `key_id` is None on an open service, `credential_sha256` (32 bytes) without a token."""

    key_id: str | None
    credential_sha256: bytes | None


def credential(headers: Headers) -> bytes | None:
    """SHA-256 of the token (32 bytes), or None without one. Raises NotAuthenticated when there are several.

    Only the Bearer scheme carries a token; another scheme counts as none.
    """
    bearers: list[bytes] = []
    keys: list[bytes] = []
    for name, value in headers:
        lowered = name.lower()
        if lowered == b"authorization":
            bearers.append(bearer_token(value))
        elif lowered == b"x-api-key":
            keys.append(value.strip())
    bearer, key = b"".join(bearers), b"".join(keys)
    # Two headers of one name are refused even when equal: which one another hop believes is not ours to guess.
    if len(bearers) > 1 or len(keys) > 1 or (bearer and key and bearer != key):
        raise NotAuthenticated(AMBIGUOUS)
    token = bearer or key
    return token_sha256(token) if token else None


def bearer_token(value: bytes) -> bytes:
    """The token of an Authorization value, trimmed; empty when there is none."""
    scheme, *rest = value.split(None, 1) or [b""]
    return rest[0].strip() if rest and scheme.lower() == b"bearer" else b""


def may_read(stored: bytes | None, presented: bytes | None) -> None:
    """Return when a proof bound to `stored` may be shown to `presented` (SHA-256 digests), else raise.

    Raises CredentialRequired (401) without a credential, NotFound (404, the same as for an unknown id) for another.
    """
    if stored is None:
        return
    if presented is None:
        raise CredentialRequired("This proof belongs to an API key. Send the one that made the request.")
    if not hmac.compare_digest(stored, presented):
        raise NotFound(UNKNOWN_PROOF)


class Authenticator:
    """Knows the keys. `refresh` once before serving, then keep `watch` running as a task."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._version: int | None = None
        self._keys: dict[bytes, KeyRecord] | None = None  # by digest, the revoked ones too; None: refuse everyone
        self._noted: dict[str, float] = {}
        self._failures = 0

    def principal(self, headers: Headers) -> Principal:
        """Who sent these headers. Never waits. Raises NotAuthenticated, or NotReady while the keys are not known."""
        if self._keys is None:
            raise NotReady("The service cannot check API keys at the moment. Try again later.", retry_after_s=5)
        digest = credential(headers)
        if not self._keys:
            return Principal(key_id=None, credential_sha256=digest)
        if digest is None:
            raise NotAuthenticated(MISSING, remedy=REMEDY)
        key = self._keys.get(digest)
        if key is None or key.revoked_at is not None or not hmac.compare_digest(key.sha256, digest):
            raise NotAuthenticated(UNKNOWN, remedy=REMEDY)
        self._note_use(key.id)
        return Principal(key_id=key.id, credential_sha256=digest)

    @property
    def is_open(self) -> bool:
        """True when the keys are known and none was ever created. Revoking all of them does not open the service."""
        return self._keys == {}

    async def refresh(self) -> None:
        """Read the keys if they changed. Raises NotReady; after several in a row every request is refused."""
        try:
            if self._keys is None or await self._store.keys_version() != self._version:
                keys = await self._store.keys()
                self._version, self._keys = keys.version, {record.sha256: record for record in keys.records}
        except NotReady:
            self._failures += 1
            if self._failures >= MAX_FAILED_REFRESHES:
                self._keys = None
            raise
        self._failures = 0

    async def watch(self, interval_s: float = REFRESH_S) -> None:
        """Refresh until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            with suppress(NotReady):  # counted
                await self.refresh()

    def _note_use(self, key_id: str) -> None:
        now = self._clock()
        if now - self._noted.get(key_id, 0.0) >= NOTE_USE_EVERY_S:
            self._noted[key_id] = now
            self._store.note_key_use(key_id, at=int(now))
