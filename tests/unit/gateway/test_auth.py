"""Who may use the service, and whose proof is whose (wire contract 2 and 7.7)."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from confide import config
from confide.errors import CredentialRequired, NotAuthenticated, NotFound, NotReady
from confide.gateway.auth import MAX_FAILED_REFRESHES, Authenticator, Principal, credential, may_read
from confide.store import SqliteStore, open_keys, open_store

NOW = 1_790_000_000


def sha256(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def bearer(token: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"localhost"), (b"authorization", b"Bearer " + token.encode())]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = open_store(None, tmp_path, config.Store())
    yield opened
    await opened.close()


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer t0ken"),
        (b"Authorization", b"bEARER   t0ken  "),
        (b"authorization", b"\tbearer\tt0ken\t"),
        (b"x-api-key", b"t0ken"),
        (b"X-API-Key", b" t0ken "),
    ],
)
def test_each_way_of_sending_a_key_is_the_same_credential(header: tuple[bytes, bytes]) -> None:
    assert credential([(b"host", b"localhost"), header]) == sha256(b"t0ken")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer   ")],
        [(b"authorization", b"t0ken")],
        [(b"authorization", b"Basic dDprZW4=")],
        [(b"authorization", b"Bearertoken")],
        [(b"x-api-key", b"  ")],
        [(b"authorization", b"Bearer "), (b"x-api-key", b"")],
        [(b"cookie", b"authorization=Bearer t0ken")],
    ],
)
def test_what_carries_no_token_counts_as_no_credential(headers: list[tuple[bytes, bytes]]) -> None:
    assert credential(headers) is None


def test_the_same_key_in_both_headers_is_one_credential() -> None:
    assert credential([(b"authorization", b"Bearer t0ken"), (b"x-api-key", b"t0ken")]) == sha256(b"t0ken")


def test_an_empty_bearer_leaves_the_other_header_to_count() -> None:
    assert credential([(b"authorization", b"Bearer "), (b"x-api-key", b"t0ken")]) == sha256(b"t0ken")


async def test_without_keys_anyone_is_served_and_what_they_sent_is_bound(store: SqliteStore) -> None:
    auth = Authenticator(store)
    await auth.refresh()
    assert auth.is_open
    assert auth.principal([]) == Principal(key_id=None, credential_sha256=None)
    assert auth.principal(bearer("anything")) == Principal(key_id=None, credential_sha256=sha256(b"anything"))


async def test_a_key_is_needed_once_there_is_one(store: SqliteStore) -> None:
    record, token = store.create_key("laptop")
    auth = Authenticator(store)
    await auth.refresh()
    assert not auth.is_open
    assert auth.principal(bearer(token)) == Principal(key_id=record.id, credential_sha256=record.sha256)
    for headers in ([], bearer("cfd_wrong"), bearer(token[:-1]), bearer(token + "x"), bearer(record.id)):
        with pytest.raises(NotAuthenticated) as caught:
            auth.principal(headers)
        assert caught.value.body()["error"]["code"] == "invalid_api_key"


async def test_the_first_key_made_by_another_process_closes_an_open_service(store: SqliteStore, tmp_path: Path) -> None:
    auth = Authenticator(store)
    await auth.refresh()
    auth.principal([])
    _, token = open_keys(None, tmp_path).create_key("laptop")
    await auth.refresh()
    with pytest.raises(NotAuthenticated):
        auth.principal([])
    assert auth.principal(bearer(token)).key_id


async def test_a_revoked_key_is_refused_after_a_refresh(store: SqliteStore, tmp_path: Path) -> None:
    record, token = store.create_key("laptop")
    _, other = store.create_key("desk")
    auth = Authenticator(store)
    await auth.refresh()
    auth.principal(bearer(token))
    open_keys(None, tmp_path).revoke_key(record.id)
    await auth.refresh()
    with pytest.raises(NotAuthenticated):
        auth.principal(bearer(token))
    assert auth.principal(bearer(other)).key_id


async def test_the_watch_notices_a_change_by_itself(store: SqliteStore, tmp_path: Path) -> None:
    auth = Authenticator(store)
    await auth.refresh()
    watching = asyncio.create_task(auth.watch(interval_s=0.001))
    open_keys(None, tmp_path).create_key("laptop")
    async with asyncio.timeout(20):
        while auth.is_open:
            await asyncio.sleep(0)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


async def test_keys_that_are_not_known_yet_refuse_everyone(store: SqliteStore) -> None:
    auth = Authenticator(store)
    assert not auth.is_open
    with pytest.raises(NotReady):
        auth.principal([])


async def test_keys_that_cannot_be_read_any_more_refuse_everyone(store: SqliteStore) -> None:
    _, token = store.create_key("laptop")
    auth = Authenticator(store)
    await auth.refresh()
    await store.close()
    for _ in range(MAX_FAILED_REFRESHES):
        auth.principal(bearer(token))  # a short disturbance is not an outage
        with pytest.raises(NotReady):
            await auth.refresh()
    for headers in (bearer(token), []):
        with pytest.raises(NotReady):
            auth.principal(headers)
    assert not auth.is_open


async def test_the_watch_outlives_a_store_that_cannot_be_read(store: SqliteStore) -> None:
    auth = Authenticator(store)
    await auth.refresh()
    await store.close()
    watching = asyncio.create_task(auth.watch(interval_s=0.001))
    async with asyncio.timeout(20):
        while auth.is_open:
            await asyncio.sleep(0)
    assert not watching.done()
    watching.cancel()


@pytest.mark.parametrize(("later_s", "noted_at"), [(59, NOW), (60, NOW + 60)])
async def test_the_last_use_is_noted_once_a_minute(
    store: SqliteStore, tmp_path: Path, later_s: int, noted_at: int
) -> None:
    _, token = store.create_key("laptop")
    times = iter([NOW, NOW + later_s])
    auth = Authenticator(store, clock=lambda: next(times))
    await auth.refresh()
    auth.principal(bearer(token))
    auth.principal(bearer(token))
    await store.close()
    assert open_keys(None, tmp_path).list_keys()[0].last_used_at == noted_at


def test_a_proof_made_without_a_credential_may_be_read_by_anyone() -> None:
    may_read(None, None)
    may_read(None, sha256(b"anyone"))


def test_a_bound_proof_may_be_read_with_its_credential() -> None:
    may_read(sha256(b"mine"), sha256(b"mine"))


def test_a_bound_proof_asks_for_a_credential_when_there_is_none() -> None:
    with pytest.raises(CredentialRequired) as caught:
        may_read(sha256(b"mine"), None)
    assert (caught.value.status, caught.value.type) == (401, "unauthorized")


def test_a_bound_proof_is_unknown_to_another_credential() -> None:
    with pytest.raises(NotFound) as caught:
        may_read(sha256(b"mine"), sha256(b"yours"))
    assert caught.value.body() == NotFound("Chat id not found or expired").body()
