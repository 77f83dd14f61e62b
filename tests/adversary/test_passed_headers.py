"""The attacker is a client, and writes what it likes into the two headers that go on to an upstream of Messages.

It wants to end a header there and begin another, to slip a second request to the upstream, to act under another's
credential, or to have its own (or the one it stole) carried to the upstream. The upstream gets one request with the
headers that we write, whatever comes; the twin shows that honest values do arrive.
"""

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from gateway_app import raw_connection, raw_post
from relay_app import MODEL, RelayGateway, answered, local, model, serving_upstreams
from scripted import ScriptedUpstream, SeenRequest

pytestmark = pytest.mark.asyncio(loop_scope="module")
WHOLE = b'{"type":"message","id":"msg_theirs","model":"vendor/model","content":[],"usage":{"input_tokens":7}}'
BODY = json.dumps({"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}).encode()
OURS, CURRENT = "sk-of-the-service", b"2023-06-01"
OWN = {b"host", b"accept", b"content-type", b"content-length", b"x-api-key", b"anthropic-version"}
CANARY = b"canary-credential"


@dataclass
class Between:
    """The gateway, and the upstream behind it."""

    gateway: RelayGateway
    engine: ScriptedUpstream

    async def ask(self, *lines: bytes) -> SeenRequest | None:
        """What the upstream saw of a request with these header lines; None where the server did not take them."""
        before, accepted = len(self.engine.requests), self.engine.accepted
        async with raw_connection(self.gateway.url) as connection:
            await connection.send(raw_post(BODY, *lines, target=b"/v1/messages"))
            with contextlib.suppress(EOFError):
                answer = await connection.answer()
                assert answer.status in (200, 400)
        seen = self.engine.requests[before:]
        assert len(seen) <= 1
        assert self.engine.accepted - accepted <= 1
        return seen[0] if seen else None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def between(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Between]:
    home: Path = tmp_path_factory.mktemp("home")
    (home / "key").write_text(OURS)
    async with ScriptedUpstream(answered(WHOLE)) as engine:
        text = local(engine.port, surfaces=["messages"], key_file=str(home / "key"), key_header="x-api-key")
        async with serving_upstreams(home, text + model('"engine"')) as gateway:
            yield Between(gateway, engine)


def assert_ours_alone(seen: SeenRequest) -> None:
    """The request as we write it, with no header beside ours, and our key in it."""
    names = [name for name, _ in seen.headers]
    assert sorted(names) == sorted(OWN)
    assert dict(seen.headers)[b"x-api-key"] == OURS.encode()
    assert dict(seen.headers)[b"anthropic-version"] == CURRENT
    assert (seen.method, seen.target, seen.body) == (b"POST", b"/v1/messages", BODY)


HOSTILE = [
    b"a\r\nx-api-key: canary-credential",
    b"a\nx-api-key: canary-credential",
    b"a\rx-api-key: canary-credential",
    b"a\r\n x-api-key: canary-credential",
    b"a\r\n\r\nPOST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    b"a\x00b",
    b"a\x0bb",
    b"a\x85b",
    b"a%0d%0ax-api-key:%20canary",
    b"a\xe5\x98\x8a\xe5\x98\x8dx-api-key:canary",
    b"a: b",
    b"a;b=c",
    b"a b",
    b'"a"',
    b"a/b",
    b"a,,b",
    b",a",
    b"a,",
    b"",
    b" ",
    b"-a",
    b"\xff\xfe",
    "бета".encode(),
    b"a" * 65,
    b"a," * 600 + b"a",
    b"a" * 20_000,
]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value[:40]))
@pytest.mark.parametrize("name", [b"anthropic-beta", b"anthropic-version"])
async def test_no_value_becomes_anything_else(between: Between, name: bytes, value: bytes) -> None:
    """Where it ends its line, what follows is another header of the client's: of those none is passed on."""
    seen = await between.ask(name + b": " + value)
    if seen is not None:
        kept = [(each, said) for each, said in seen.headers if (each, said) != (b"anthropic-beta", b"a")]
        assert_ours_alone(SeenRequest(seen.method, seen.target, kept, seen.body, seen.connection, seen.at))


@pytest.mark.parametrize(
    "lines",
    [
        [b"anthropic-version: 2023-01-01", b"anthropic-version: 2023-06-01"],
        [b"anthropic-version: 2023-01-01", b"Anthropic-Version: 2023-01-01"],
        [b"anthropic-version: 2023-01-01, 2023-06-01"],
        [b"anthropic-version: 02023-01-01"],
        ["anthropic-version: ２０２３-01-01".encode()],
    ],
    ids=str,
)
async def test_a_version_that_can_be_read_in_two_ways_is_not_passed_on(between: Between, lines: list[bytes]) -> None:
    seen = await between.ask(*lines)
    assert seen is not None
    assert_ours_alone(seen)


@pytest.mark.parametrize(
    "lines",
    [
        [b"x-api-key: " + CANARY, b"anthropic-beta: " + CANARY],
        [b"authorization: Bearer " + CANARY, b"anthropic-beta: a,x" + CANARY + b",b"],
        [b"authorization: bEARER   " + CANARY + b"  ", b"anthropic-beta: a", b"anthropic-beta: " + CANARY],
        [b"authorization: " + CANARY, b"anthropic-beta: " + CANARY],
        [b"authorization: Basic " + CANARY, b"anthropic-beta: " + CANARY],
        [b"x-api-key: key-1", b"anthropic-beta: key-1"],
        [b"x-api-key: " + CANARY, b"anthropic-api-key: " + CANARY, b"proxy-authorization: " + CANARY],
        [b"x-api-key: " + CANARY, b"cookie: key=" + CANARY, b"x-goog-api-key: " + CANARY, b"api-key: " + CANARY],
    ],
    ids=str,
)
async def test_the_clients_own_credential_is_not_carried_on(between: Between, lines: list[bytes]) -> None:
    seen = await between.ask(*lines)
    assert seen is not None
    assert_ours_alone(seen)


@pytest.mark.parametrize(
    "line",
    [
        b"host: canary",
        b"connection: anthropic-beta, x-api-key",
        b"te: trailers",
        b"content-type: text/canary",
        b"accept: text/canary",
        b"anthropic-dangerous-direct-browser-access: true",
        b"anthropic-betas: canary",
        b"anthropic_beta: canary",
        b"x-forwarded-for: canary",
    ],
)
async def test_no_other_header_goes_on(between: Between, line: bytes) -> None:
    seen = await between.ask(line)
    if seen is not None:
        assert_ours_alone(seen)
        assert b"canary" not in str(seen.headers).encode()


async def test_honest_values_arrive_in_the_same_place(between: Between) -> None:
    """The twin: with a credential of its own beside them, and dummy ones that are part of any word."""
    for credential in (b"x-api-key: " + CANARY, b"x-api-key: a", b"authorization: Bearer any"):
        seen = await between.ask(
            credential, b"anthropic-version: 2023-01-01", b"anthropic-beta: any-1, b", b"anthropic-beta: c"
        )
        assert seen is not None
        headers = dict(seen.headers)
        assert headers[b"anthropic-version"] == b"2023-01-01"
        assert headers[b"anthropic-beta"] == b"any-1,b,c"
        assert headers[b"x-api-key"] == OURS.encode()
        assert set(headers) == OWN | {b"anthropic-beta"}
