"""An attested upstream that somebody else verifies: when it asks, what it believes, and what it tells."""

import time
from collections.abc import Callable

import pytest

from confide.errors import SessionNotAccepted, UpstreamNotVerified
from confide.protocol.serving import Constraints
from confide.telemetry.logs import Log
from confide.upstream.base import NOTHING, Head, Prompt, Unserved
from confide.upstream.channel import Channel, Timeouts, TlsAddress
from confide.upstream.followed import FollowedUpstream
from confide.upstream.health import Health
from confide.upstream.kinds.relay import Relay
from confide.upstream.sessions import AttestedSession

NOW = 1000
PIN, OTHER_PIN = b"\x01" * 32, b"\x02" * 32


def session(name: str, pin: bytes = PIN, *, usable_until: int = NOW + 60) -> AttestedSession:
    return AttestedSession(
        id=name * 64,
        upstream_name="second",
        document={},
        pins=frozenset({pin}),
        established_at=NOW,
        usable_until=usable_until,
        renew_at=NOW + 48,
        expires_at=NOW + 90,
    )


def prompt(*session_ids: str) -> Prompt:
    constraints = Constraints(stated=bool(session_ids), required=bool(session_ids), session_ids=session_ids)
    return Prompt(b"{}", bytes(32), NOTHING, Head("id", NOW, "m"), constraints=constraints)


class Verifying:
    """The one who verifies: says `told` when it is asked, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []
        self.wrong: list[tuple[str, str]] = []
        self.tell: Callable[[], None] = lambda: None

    async def verified(self, name: str, known: str | None) -> None:
        assert name == "second"
        self.asked.append(known)
        self.tell()

    def wrong_key(self, name: str, session_id: str) -> None:
        self.wrong.append((name, session_id))


def current(upstream: FollowedUpstream) -> str | None:
    """The id of the session that prompts are sent in."""
    return None if upstream.session is None else upstream.session.id


@pytest.fixture
def lead() -> Verifying:
    return Verifying()


@pytest.fixture
def upstream(lead: Verifying) -> FollowedUpstream:
    def make_relay(pins: frozenset[bytes]) -> Relay:
        channel = Channel(TlsAddress("127.0.0.1", 1, pins), timeouts=Timeouts(), max_connections=1)
        return Relay(channel, health=Health(time.monotonic))

    return FollowedUpstream("second", make_relay, lead=lead, health=Health(time.monotonic), now=lambda: NOW, log=Log())


async def test_it_serves_in_the_session_that_it_was_told_of_and_asks_nobody(
    upstream: FollowedUpstream, lead: Verifying
) -> None:
    upstream.stands(session("a"), "")
    hop = await upstream.ready(prompt(), "m")
    assert hop.session_id == "a" * 64
    assert lead.asked == []


async def test_without_a_session_it_asks_and_says_why_there_is_none(
    upstream: FollowedUpstream, lead: Verifying
) -> None:
    lead.tell = lambda: upstream.stands(None, "id-1 did not pass")
    with pytest.raises(Unserved, match="id-1 did not pass") as caught:
        await upstream.ready(prompt(), "m")
    assert isinstance(caught.value.error, UpstreamNotVerified)
    lead.tell = lambda: upstream.stands(session("a"), "")
    assert (await upstream.ready(prompt(), "m")).session_id == "a" * 64
    assert lead.asked == [None, None]


async def test_a_pin_that_it_does_not_know_may_be_new(upstream: FollowedUpstream, lead: Verifying) -> None:
    upstream.stands(session("a"), "")
    lead.tell = lambda: upstream.stands(session("b"), "")
    assert (await upstream.ready(prompt("b" * 64), "m")).session_id == "b" * 64
    with pytest.raises(Unserved) as caught:
        await upstream.ready(prompt("a" * 64), "m")
    assert isinstance(caught.value.error, SessionNotAccepted)
    assert lead.asked == ["a" * 64, "b" * 64]


async def test_a_session_with_the_same_keys_keeps_its_channel_and_one_with_others_does_not(
    upstream: FollowedUpstream,
) -> None:
    upstream.stands(session("a"), "")
    relay = upstream.relay
    upstream.stands(session("b"), "")
    assert upstream.relay is relay
    upstream.stands(session("c", OTHER_PIN), "")
    assert upstream.relay is not relay


async def test_a_wrong_key_ends_its_session_at_once_and_is_told(upstream: FollowedUpstream, lead: Verifying) -> None:
    upstream.stands(session("a"), "")
    [relay] = upstream.relays
    upstream.wrong_key(relay)
    assert current(upstream) is None
    assert lead.wrong == [("second", "a" * 64)]
    upstream.stands(session("b", OTHER_PIN), "")
    upstream.wrong_key(relay)  # over a channel of before: no news
    assert current(upstream) == "b" * 64
    assert len(lead.wrong) == 1


async def test_a_session_whose_time_is_over_is_over_here_too(upstream: FollowedUpstream, lead: Verifying) -> None:
    upstream.stands(session("a", usable_until=NOW), "")
    assert upstream.session is None
    with pytest.raises(Unserved, match="verification is over"):
        await upstream.ready(prompt(), "m")
    assert lead.asked == [None]
