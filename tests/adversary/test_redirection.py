"""The attacker relays plain HTTP, or owns a link in front of the service, and sends clients elsewhere.

Clients can be told to follow redirections. The attacker wants the prompt at a host that was never verified, or an
answer believed that came back to a GET, for which no receipt is asked. Wherever a client is sent, that service is
verified before it gets a prompt, and a prompt is never turned into a GET. The twin: a redirection to a service that can
prove itself.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest

from attested_service import ANSWER, API_KEY, CHAT, Alter, AttestedService, Reply, Seen, chat_completion, serving
from callers import BUFFERED, EVERY, Kind, asking, assert_refused


@pytest.fixture
def services(tmp_path: Path) -> Iterator[tuple[AttestedService, AttestedService]]:
    """One that redirects, and another with a simulated TEE of its own."""
    with ExitStack() as stack:
        yield stack.enter_context(serving(tmp_path / "here")), stack.enter_context(serving(tmp_path / "there"))


Services = tuple[AttestedService, AttestedService]


def redirecting(location: str, status: int) -> Alter:
    return lambda reply, _: reply.but(b"{}", status=status, location=location, x_receipt_id=None)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("status", [307, 308])
def test_a_host_that_is_not_verified_gets_no_prompt(services: Services, kind: Kind, status: int) -> None:
    here, there = services
    here.alter["answer"] = redirecting(there.url + CHAT, status)
    with asking(here, kind, follow_redirects=True) as caller:
        error = assert_refused(caller, here, "id-1")
        assert "tdx.root" in error.message
    assert there.prompts == []
    assert [seen.path for seen in there.seen] == ["/v1/aci/attestation"]
    assert all(API_KEY not in str(seen.headers) for seen in there.seen)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("status", [307, 308])
def test_a_host_that_proves_itself_may_answer(services: Services, kind: Kind, status: int) -> None:
    here, there = services
    here.alter["answer"] = redirecting(there.url + CHAT, status)
    policy = here.policy(trust_roots=(here.root, there.root))
    with asking(here, kind, policy=policy, follow_redirects=True) as caller:
        assert caller.ask() == ANSWER
        there.alter["answer"] = lambda reply, _: reply.replacing(b"42.", b"43.")
        assert_refused(caller, there, "receipt-4")
    assert len(there.prompts) == 2


@pytest.mark.parametrize("kind", BUFFERED)
@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_prompt_is_not_turned_into_a_get(services: Services, kind: Kind, status: int) -> None:
    """The same host, verified and all: its answer to a GET would need no receipt."""
    here, _ = services
    forged = chat_completion("chatcmpl-forged").replace(b"42.", b"43.")

    def elsewhere(reply: Reply, _: Seen) -> Reply:
        return reply.but(forged, status=200)

    here.alter = {
        "answer": redirecting(here.url + "/v1/forged", status),
        "unknown": elsewhere,
    }
    with asking(here, kind, follow_redirects=True) as caller:
        error = assert_refused(caller, here, "receipt-1")
        assert f"status {status}" in error.message
    assert [seen.path for seen in here.seen if seen.method == "GET"] == ["/v1/aci/attestation"]


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("status", [307, 308])
def test_a_client_that_was_not_told_to_follow_goes_nowhere(services: Services, kind: Kind, status: int) -> None:
    here, there = services
    here.alter["answer"] = redirecting(there.url + CHAT, status)
    with asking(here, kind) as caller, pytest.raises(openai.APIStatusError):
        caller.ask()
    assert there.seen == []


@pytest.mark.parametrize("kind", EVERY)
def test_the_report_is_not_fetched_from_elsewhere(services: Services, kind: Kind) -> None:
    here, there = services
    here.alter["report"] = lambda reply, seen: reply.but(
        status=302, location=f"{there.url}/v1/aci/attestation?nonce={seen.nonce}"
    )
    policy = here.policy(trust_roots=(here.root, there.root))
    with asking(here, kind, policy=policy, follow_redirects=True) as caller:
        error = assert_refused(caller, here, "id-1", prompts=0)
        assert "status 302" in error.message
    assert there.seen == []


@pytest.mark.parametrize("kind", EVERY)
def test_the_receipt_is_not_fetched_from_elsewhere(services: Services, kind: Kind) -> None:
    here, there = services
    here.alter["receipt"] = lambda reply, seen: reply.but(status=307, location=there.url + seen.path)
    with asking(here, kind, follow_redirects=True) as caller:
        error = assert_refused(caller, here, "receipt-1")
        assert "status 307" in error.message
    assert there.seen == []
