"""The attacker relays plain HTTP and changes the question, says in a header what it was, or asks in another name.

They want the answer to another question believed: "transfer 5" is asked, "transfer 500" answered. The service hashes
what it receives, the client what it sent, and no header is asked. The twin: the same relay that changes nothing,
headers included.
"""

import hashlib
from collections.abc import Callable, Iterator

import pytest

from attested_service import ANSWER, API_KEY, AttestedService, Reply, Seen
from callers import EVERY, PROMPT, SYNC, Kind, asking, assert_refused
from man_in_the_middle import Relay, between


@pytest.fixture
def relay(service: AttestedService) -> Iterator[Relay]:
    with between(service) as relay:
        yield relay


@pytest.mark.parametrize("kind", EVERY)
def test_a_question_that_is_passed_on_unchanged_is_answered(service: AttestedService, relay: Relay, kind: Kind) -> None:
    with asking(service, kind, url=relay.url) as caller:
        assert caller.ask() == ANSWER
    assert PROMPT.encode() in relay.read  # plain HTTP: whoever is on the way reads along, as the policy allows


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(
    ("old", "new"),
    [(b"answer?", b"Answer?"), (b"user", b"tool"), (b"vendor/model", b"vendor/mode1"), (b"What", b"what")],
    ids=["a word", "the role", "the model", "a letter"],
)
def test_a_changed_question_is_refused(
    service: AttestedService, relay: Relay, kind: Kind, old: bytes, new: bytes
) -> None:
    """Of one length, so that everything else stays whole."""
    assert len(old) == len(new)
    relay.to_service = lambda data: data.replace(old, new)
    with asking(service, kind, url=relay.url) as caller:
        error = assert_refused(caller, service, "receipt-3")
        assert "got sha256:" in error.message
        assert "expected sha256:" in error.message


def hash_headers(value: str) -> list[bytes]:
    names = ("X-Request-Hash", "x-request-hash", "X-Content-SHA256", "Content-Digest", "Repr-Digest", "Digest")
    return [f"{name}: {value}\r\n".encode() for name in names]


@pytest.mark.parametrize("kind", EVERY)
def test_the_hash_of_the_original_in_a_header_changes_nothing(
    service: AttestedService, relay: Relay, kind: Kind
) -> None:
    original: list[bytes] = []

    def changed(data: bytes) -> bytes:
        if not data.startswith(b"POST"):
            return data
        head, _, body = data.partition(b"\r\n\r\n")
        assert body, "the request came in one read"
        original.append(body)
        digest = hashlib.sha256(body).hexdigest()
        added = b"".join(hash_headers(digest) + hash_headers(f"sha256:{digest}")).removesuffix(b"\r\n")
        return head + b"\r\n" + added + b"\r\n\r\n" + body.replace(b"What", b"what")

    relay.to_service = in_whole(changed)
    with asking(service, kind, url=relay.url) as caller:
        error = assert_refused(caller, service, "receipt-3")
    sent = hashlib.sha256(original[0]).hexdigest()
    took = hashlib.sha256(service.prompts[-1].body).hexdigest()
    assert service.prompts[-1].headers["x-request-hash"].endswith(sent)
    assert f"got sha256:{took}" in error.message
    assert f"expected sha256:{sent}" in error.message


def in_whole(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A change of whole requests, which may come in two reads."""
    waiting = bytearray()

    def changed(data: bytes) -> bytes:
        if not waiting and not data.startswith(b"POST"):
            return data
        waiting.extend(data)
        head, blank, body = bytes(waiting).partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if not blank or len(body) < int(lengths[0].partition(b":")[2]):
            return b""
        waiting.clear()
        return change(head + blank + body)

    return changed


@pytest.mark.parametrize("kind", EVERY)
def test_a_hash_of_the_callers_own_is_not_what_is_checked(service: AttestedService, kind: Kind) -> None:
    """The twin: an honest client with such a header is answered, whatever the header says."""
    with asking(service, kind, headers={"x-request-hash": "00" * 32}) as caller:
        assert caller.ask() == ANSWER


@pytest.mark.parametrize("kind", EVERY)
def test_hash_headers_on_the_answer_are_not_asked(service: AttestedService, kind: Kind) -> None:
    """A relay changes the answer and sends the hash that fits, under every name for it."""

    def changed(reply: Reply, _: Seen) -> Reply:
        altered = reply.replacing(b"42.", b"43.")
        digest = hashlib.sha256(altered.body).hexdigest()
        return altered.but(
            x_response_hash=digest,
            content_digest=f"sha-256=:{digest}:",
            repr_digest=f"sha-256=:{digest}:",
            digest=f"sha-256={digest}",
            etag=digest,
            x_aci_response_hash=f"sha256:{digest}",
        )

    service.alter["answer"] = changed
    with asking(service, kind) as caller:
        assert_refused(caller, service, "receipt-4")
        caller.reset()
        service.alter["answer"] = lambda reply, _: reply.but(digest="sha-256=wrong", content_digest="sha-256=:AA==:")
        assert caller.ask() == ANSWER


@pytest.mark.parametrize("kind", EVERY)
def test_a_relay_that_asks_in_its_own_name_cannot_have_it_proven(
    service: AttestedService, relay: Relay, kind: Kind
) -> None:
    """The relay takes the caller's key out of the prompt and puts its own in: the receipt is bound to that key."""
    own = b"sk-relays-own-key!!"
    assert len(own) == len(API_KEY)

    def in_its_name(data: bytes) -> bytes:
        return data.replace(API_KEY.encode(), own) if data.startswith(b"POST") else data

    relay.to_service = in_its_name
    with asking(service, kind, url=relay.url) as caller:
        error = assert_refused(caller, service, "receipt-1")
        assert "got status 404 for the receipt" in error.message
        relay.to_service = lambda data: data
        caller.reset()
        assert caller.ask() == ANSWER


def test_a_prompt_that_is_asked_twice_by_the_relay_has_two_receipts(service: AttestedService, relay: Relay) -> None:
    """The relay may ask whatever it read; the client is given one answer and one receipt of its own."""
    with asking(service, SYNC, url=relay.url) as caller:
        assert caller.ask() == ANSWER
        assert caller.ask() == ANSWER
    first, second = list(service.receipts)[-2:]
    assert first != second
