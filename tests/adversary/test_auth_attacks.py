"""The attacker controls every header of a request, knows every key id and chat id, and holds a key of their own.

They want to be served without a key or under another's, to read another's proof, or to learn a token from what we say,
log or keep. The twin of each refusal is the honest request that passes beside it.
"""

import hashlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide import config
from confide.errors import NotAuthenticated, NotFound
from confide.gateway.auth import Authenticator, Headers, credential, may_read
from confide.store import KeyRecord, Proof, SqliteStore, open_store

NOW = 1_790_000_000


@dataclass(frozen=True)
class Service:
    """A service with one key in use and one that was revoked."""

    store: SqliteStore
    auth: Authenticator
    key: KeyRecord
    token: bytes
    revoked_token: bytes

    def is_honest_request_served(self) -> bool:
        return self.auth.principal([(b"authorization", b"Bearer " + self.token)]).key_id == self.key.id


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    store = open_store(None, tmp_path, config.Store(), clock=lambda: NOW)
    key, token = store.create_key("honest")
    gone, gone_token = store.create_key("gone")
    store.revoke_key(gone.id)
    auth = Authenticator(store)
    await auth.refresh()
    yield Service(store, auth, key, token.encode(), gone_token.encode())
    await store.close()


def refused(service: Service, headers: Headers) -> NotAuthenticated:
    with pytest.raises(NotAuthenticated) as caught:
        service.auth.principal(headers)
    assert service.is_honest_request_served()
    return caught.value


HOSTILE_TOKENS = [
    b"' OR '1'='1",
    b"'; DROP TABLE keys; --",
    b'" UNION SELECT sha256 FROM keys --',
    b"%",
    b"_" * 47,
    b"\x00",
    b"cfd_\x00",
    b"null",
    b"None",
    b"undefined",
    b"\xff\xfe\x80",
    "Ключ🔑".encode(),
    b"x" * 100_000,
    b"cfd_" + b"A" * 43,
]


@pytest.mark.parametrize("token", HOSTILE_TOKENS, ids=lambda token: repr(token[:12]))
@pytest.mark.parametrize("name", [b"authorization", b"x-api-key"])
async def test_a_hostile_token_is_an_unknown_one(service: Service, name: bytes, token: bytes) -> None:
    value = token if name == b"x-api-key" else b"Bearer " + token
    error = refused(service, [(name, value)])
    assert error.message == "The API key is not valid."
    assert len(service.store.list_keys()) == 2


async def test_a_revoked_token_a_key_id_and_a_digest_are_no_credentials(service: Service) -> None:
    key = service.key
    for token in (service.revoked_token, key.id.encode(), key.sha256, key.sha256.hex().encode(), key.name.encode()):
        refused(service, [(b"authorization", b"Bearer " + token)])


async def test_a_token_with_more_around_it_is_another_token(service: Service) -> None:
    token = service.token
    for altered in (token + b"\x00", b"\x00" + token, token + b"," + token, token.upper(), token + b" x", token[:-1]):
        refused(service, [(b"authorization", b"Bearer " + altered)])


@pytest.mark.parametrize(
    "scheme",
    [b"Basic", b"Digest", b"Bearer:", b"Bearer,", b"Token", b"Bearer\x00", b"", b"\xc2\xa0Bearer", "Béarer".encode()],
)
async def test_a_valid_token_under_another_scheme_is_refused(service: Service, scheme: bytes) -> None:
    refused(service, [(b"authorization", scheme + b" " + service.token)])


async def test_two_credentials_are_refused_whichever_comes_first(service: Service) -> None:
    good, bad = b"Bearer " + service.token, b"Bearer x"
    ambiguous: list[list[tuple[bytes, bytes]]] = [
        [(b"authorization", good), (b"authorization", bad)],
        [(b"authorization", bad), (b"authorization", good)],
        [(b"authorization", good), (b"Authorization", good)],
        [(b"authorization", good), (b"authorization", b"")],
        [(b"authorization", b"Basic eDp5"), (b"authorization", good)],
        [(b"x-api-key", service.token), (b"x-api-key", b"x")],
        [(b"x-api-key", service.token), (b"x-api-key", service.token)],
        [(b"authorization", good), (b"x-api-key", b"x")],
        [(b"x-api-key", service.token), (b"authorization", bad)],
    ]
    for headers in ambiguous:
        assert "More than one credential" in refused(service, headers).message


async def test_the_same_refusals_hold_on_a_service_without_keys(tmp_path: Path) -> None:
    store = open_store(None, tmp_path, config.Store())
    auth = Authenticator(store)
    await auth.refresh()
    with pytest.raises(NotAuthenticated):
        auth.principal([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")])
    assert auth.principal([(b"authorization", b"Bearer a")]).credential_sha256 == hashlib.sha256(b"a").digest()
    await store.close()


async def test_headers_that_only_look_like_credentials_do_not_count(service: Service) -> None:
    value = b"Bearer " + service.token
    for name in (b"proxy-authorization", b"x-authorization", b"authorization ", b"x_api_key", b"cookie", b"api-key"):
        refused(service, [(name, value)])


async def test_revoking_every_key_does_not_open_the_service(service: Service) -> None:
    service.store.revoke_key(service.key.id)
    await service.auth.refresh()
    assert not service.auth.is_open
    for headers in ([], [(b"authorization", b"Bearer " + service.token)]):
        with pytest.raises(NotAuthenticated):
            service.auth.principal(headers)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from([b"authorization", b"Authorization", b"x-api-key", b"host"]),
            st.binary(max_size=60) | st.binary(max_size=40).map(b"Bearer ".__add__),
        ),
        max_size=4,
    )
)
async def test_no_headers_but_the_honest_ones_are_served(service: Service, headers: list[tuple[bytes, bytes]]) -> None:
    refused(service, headers)


async def test_another_keys_proof_looks_like_none_at_all(service: Service) -> None:
    mine, theirs = (credential([(b"x-api-key", token)]) for token in (service.token, b"cfd_attacker"))
    proof = Proof(
        receipt_id="rcpt-1",
        chat_id="chatcmpl-1",
        request_sha256=bytes(32),
        response_sha256=bytes(32),
        credential_sha256=mine,
        expires_at=NOW + 60,
        receipt=b"{}",
        seal=bytes(32),
    )
    await service.store.commit(proof)
    for lookup_id in ("chatcmpl-1", "rcpt-1"):
        found = await service.store.proof(lookup_id, now=NOW)
        assert found is not None
        with pytest.raises(NotFound) as caught:
            may_read(found.credential_sha256, theirs)
        assert caught.value.body() == NotFound("Chat id not found or expired").body()
        may_read(found.credential_sha256, mine)


async def test_no_token_is_kept_logged_or_said(
    service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sent = b"cfd_canary-canary-canary"
    error = refused(service, [(b"authorization", b"Bearer " + sent)])
    principal = service.auth.principal([(b"authorization", b"Bearer " + service.token)])
    with pytest.raises(NotAuthenticated) as ambiguous:
        service.auth.principal([(b"authorization", b"Bearer " + sent), (b"x-api-key", service.token)])
    await service.store.close()
    said = repr((error, error.body(), error.remedy, ambiguous.value.body(), principal, service.auth, service.store))
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for token in (sent, service.token, service.revoked_token):
        assert token.decode() not in said + caplog.text
        assert token not in kept
    assert service.key.sha256 in kept
