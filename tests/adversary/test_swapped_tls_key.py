"""The attacker sits on the network path of a TLS service, with a key and a certificate of their own.

They pass connections on as ciphertext, or take them over with their own key and pass the plaintext on to the honest
service. They want to read one prompt. The key on a connection has to be one that the attested keyset lists: a
connection with another one fails in its handshake, before a byte of a request. The twin: the relay that only passes on.
"""

import secrets
from pathlib import Path

import httpx2
import pytest

from attested_service import ANSWER, API_KEY, Reply, Seen, serving
from callers import EVERY, PROMPT, SYNC, Kind, asking, assert_latched, assert_refused, refusal
from confide import verify_service
from confide.protocol.keyset import TlsKey
from man_in_the_middle import Relay, between
from tls_files import self_signed


def assert_nothing_was_read(relay: Relay) -> None:
    """Neither a prompt nor a credential, nor any request but the one for a report."""
    assert PROMPT.encode() not in relay.read
    assert API_KEY.encode() not in relay.read
    assert b"POST" not in relay.read


@pytest.mark.parametrize("kind", EVERY)
def test_ciphertext_that_is_passed_on_is_proven(tmp_path: Path, kind: Kind) -> None:
    with serving(tmp_path, tls=True) as service, between(service, self_signed(tmp_path)) as relay:
        relay.intercepts = lambda _: False
        with asking(service, kind, url=relay.url) as caller:
            assert caller.ask() == ANSWER
        assert relay.read == b""
        assert relay.connections > 1


@pytest.mark.parametrize("kind", EVERY)
def test_a_key_that_the_keyset_does_not_list_gets_no_prompt(tmp_path: Path, kind: Kind) -> None:
    with serving(tmp_path, tls=True) as service, between(service, self_signed(tmp_path)) as relay:
        with asking(service, kind, url=relay.url) as caller:
            error = assert_refused(caller, service, "id-6", prompts=0)
        assert "got the TLS key" in error.message
        assert "expected" in error.message
        assert_nothing_was_read(relay)


@pytest.mark.parametrize("kind", EVERY)
def test_a_key_that_is_swapped_after_the_attestation_sees_no_byte_of_a_request(tmp_path: Path, kind: Kind) -> None:
    own = self_signed(tmp_path)
    with serving(tmp_path, tls=True) as service, between(service, own) as relay:
        # The reports come over untouched connections: the first one, and the one for the second look.
        relay.intercepts = lambda number: number % 2 == 1
        with asking(service, kind, url=relay.url) as caller:
            error = assert_refused(caller, service, "id-6", prompts=0)
        assert relay.read == b""
        assert own.spki_sha256.hex() in error.message
        assert service.attester.workload_keys.tls.spki_sha256.hex() in error.message
        assert [seen.path for seen in service.seen] == ["/v1/aci/attestation"] * 2


@pytest.mark.parametrize("kind", EVERY)
def test_a_key_that_is_swapped_between_two_prompts_sees_neither_the_second_prompt_nor_the_credential(
    tmp_path: Path, kind: Kind
) -> None:
    with serving(tmp_path, tls=True) as service, between(service, self_signed(tmp_path)) as relay:
        relay.intercepts = lambda _: False
        # No connection is kept open, as after a pause between two questions.
        with asking(service, kind, url=relay.url, limits=httpx2.Limits(max_keepalive_connections=0)) as caller:
            assert caller.ask() == ANSWER
            relay.intercepts = lambda _: True
            assert_refused(caller, service, "id-6", prompts=0)
        assert_nothing_was_read(relay)


@pytest.mark.parametrize("kind", EVERY)
def test_a_key_that_is_swapped_before_the_receipt_is_fetched_sees_no_credential(tmp_path: Path, kind: Kind) -> None:
    with serving(tmp_path, tls=True) as service, between(service, self_signed(tmp_path)) as relay:
        relay.intercepts = lambda number: number > 1
        service.alter["answer"] = lambda reply, _: reply.but(connection="close")
        with asking(service, kind, url=relay.url) as caller:
            error = assert_refused(caller, service, "receipt-1")
        assert "got the TLS key" in error.message
        assert relay.read == b""


def test_verifying_anew_over_a_swapped_key_fails_and_latches(tmp_path: Path) -> None:
    with serving(tmp_path, tls=True) as service, between(service, self_signed(tmp_path)) as relay:
        relay.intercepts = lambda _: False
        with asking(service, url=relay.url) as caller:
            assert caller.ask() == ANSWER
            relay.intercepts = lambda _: True
            refusal(lambda: caller.client.verify(relay.url), "id-6")
            assert_latched(caller, service, "id-6")
            relay.intercepts = lambda _: False
            caller.reset()
            assert caller.ask() == ANSWER


def test_the_document_says_so_too(tmp_path: Path) -> None:
    with serving(tmp_path, tls=True) as service, between(service, self_signed(tmp_path)) as relay:
        result = verify_service(relay.url, service.policy())
        assert [check.name for check in result.checks if check.status == "fail"] == ["id-6"]
        relay.intercepts = lambda _: False
        assert verify_service(relay.url, service.policy()).ok


def test_a_certificate_of_an_authority_does_not_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacker's certificate is one that this machine trusts."""
    own = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(own.cert))
    with serving(tmp_path, tls=True) as service, between(service, own) as relay:
        with asking(service, SYNC, url=relay.url) as caller:
            assert_refused(caller, service, "id-6", prompts=0)
        assert_nothing_was_read(relay)


def test_a_key_that_is_listed_for_another_host_does_not_do(tmp_path: Path) -> None:
    with serving(tmp_path, tls=True) as service:
        key = service.attester.workload_keys.tls.spki_sha256.hex()
        service.keyset = service.attested_keyset(tls_public_keys=(TlsKey(key, "api.example.com"),))
        with asking(service) as caller:
            error = assert_refused(caller, service, "id-6", prompts=0)
        assert "no key is listed for this host" in error.message
        service.keyset = service.attested_keyset(tls_public_keys=(TlsKey(key, "127.0.0.1"),))
        with asking(service) as caller:
            assert caller.ask() == ANSWER


def test_a_key_beside_the_keyset_does_not_count(tmp_path: Path) -> None:
    """The relay puts its key into the report, outside the keyset, and into every place that looks like one."""
    own = self_signed(tmp_path)
    with serving(tmp_path, tls=True) as service, between(service, own) as relay:
        mine = {"spki_sha256": own.spki_sha256.hex(), "domain": "127.0.0.1"}

        def with_mine(reply: Reply, _: Seen) -> Reply:
            document = reply.document | {"tls_public_keys": [mine]}
            document["attestation"]["tls_public_keys"] = [mine]
            document["attestation"]["evidence"]["downstream_tls_binding"] = mine
            return reply.holding(document)

        service.alter["report"] = with_mine
        with asking(service, url=relay.url) as caller:
            assert_refused(caller, service, "id-6", prompts=0)
        assert_nothing_was_read(relay)


def test_the_nonce_is_all_that_a_stranger_gets(tmp_path: Path) -> None:
    with serving(tmp_path, tls=True) as service, between(service, self_signed(tmp_path)) as relay:
        with asking(service, url=relay.url, headers={"x-private": secrets.token_hex()}) as caller:
            assert_refused(caller, service, "id-6", prompts=0)
        head, _, rest = relay.read.partition(b"\r\n\r\n")
        assert rest == b""
        names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]}
        assert names <= {b"host", b"accept", b"accept-encoding", b"connection", b"user-agent"}
