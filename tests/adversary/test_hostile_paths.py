"""The attacker has no key and controls every byte of a request: its target, its Host, its method, its framing.

They want a prompt answered, or the decision about the key made on another path than the one that is served. The twin of
each attempt is the honest request beside it, which is refused without a key and served with one.
"""

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from gateway_app import RawAnswer, ScriptedGateway, answering, bearer, chat, raw_connection, raw_post, serving_scripted

BODY = json.dumps(chat("CANARY")).encode()


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path_factory.mktemp("home"), answering("Hi")) as gateway:
        yield gateway


async def exchanged(gateway: ScriptedGateway, *requests: bytes) -> list[RawAnswer]:
    """The answers to requests that are written at once; fewer when the gateway closes the connection."""
    answers = []
    async with raw_connection(gateway.url) as connection:
        await connection.send(b"".join(requests))
        for _ in requests:
            try:
                answers.append(await connection.answer())
            except (EOFError, ConnectionError):
                break
    return answers


async def assert_keeps_out(gateway: ScriptedGateway, *requests: bytes) -> None:
    """Nothing of this reaches the engine without a key; the honest caller is served after it."""
    key = await gateway.new_key()
    before = len(gateway.engine.requests)
    for answer in await exchanged(gateway, *requests):
        assert answer.status != 200
        assert b"chat.completion" not in answer.body
        assert b"CANARY" not in answer.body
    assert len(gateway.engine.requests) == before
    honest = await gateway.client.post("/v1/chat/completions", json=chat(), headers=bearer(key))
    assert honest.status_code == 200
    assert "CANARY" not in gateway.log_text()


TARGETS = [
    b"/v1/chat/completions",
    b"/v1/chat/completions?key=x",
    b"/v1/chat/completions#/health",
    b"/v1/chat/completions/",
    b"/v1/chat/completions/.",
    b"/v1/chat/completions/../completions",
    b"//v1/chat/completions",
    b"/v1//chat/completions",
    b"/v1/chat//completions",
    b"/./v1/chat/completions",
    b"/health/../v1/chat/completions",
    b"/v1/models/../chat/completions",
    b"/v1/models/%2e%2e/chat/completions",
    b"/v1/models/..%2fchat%2fcompletions",
    b"/%2e/v1/chat/completions",
    b"/v1/%63hat/completions",
    b"/v1/chat%2fcompletions",
    b"/v1%2Fchat%2Fcompletions",
    b"%2fv1/chat/completions",
    b"/v1/chat/completions%00",
    b"/v1/chat/completions%20",
    b"/v1/chat/completions;x=y",
    b"/v1/chat/completions%3fx=y",
    b"/v1/chat/completions%23",
    b"/v1/chat/%252e/completions",
    b"/V1/CHAT/COMPLETIONS",
    b"/v1\\chat\\completions",
    b"/v1/chat/completions\xc0\xae",
    b"/v1/chat/completion\xe2\x80\x8bs",
    b"http://confide/v1/chat/completions",
    b"https://other.example:8443/v1/chat/completions",
    b"http://user:password@confide/v1/chat/completions",
    b"http://confide/health?/v1/chat/completions",
    b"http:///v1/chat/completions",
    b"HTTP://CONFIDE/v1/chat/completions",
    b"ftp://confide/v1/chat/completions",
    b"unix:/v1/chat/completions",
    b"v1/chat/completions",
    b"?/v1/chat/completions",
    b"*",
    b"",
]


@pytest.mark.parametrize("target", TARGETS, ids=repr)
async def test_no_spelling_of_the_path_goes_past_the_key(gateway: ScriptedGateway, target: bytes) -> None:
    await assert_keeps_out(gateway, raw_post(BODY, target=target))


@pytest.mark.parametrize(
    "target", [b"/v1/chat%2fcompletions", b"http://confide/v1/chat/completions", b"/v1/%63hat/completions"]
)
async def test_a_spelling_that_means_the_route_is_served_with_a_key(gateway: ScriptedGateway, target: bytes) -> None:
    key = (await gateway.new_key()).encode()
    request = raw_post(BODY, b"Authorization: Bearer " + key, target=target)
    assert [answer.status for answer in await exchanged(gateway, request)] == [200]


HOSTS = [
    b"/health",
    b"confide/health?",
    b"confide/v1/models#",
    b"confide:80/health/",
    b"health@confide",
    b"[::1]/health",
    b"..",
    b"x\ty",
    b"",
    b"a" * 5000,
    b"confide\x00",
    b"evil.example",
]


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: repr(host[:20]))
async def test_a_host_header_decides_nothing(gateway: ScriptedGateway, host: bytes) -> None:
    prompt = raw_post(BODY).replace(b"Host: confide", b"Host: " + host)
    await assert_keeps_out(gateway, prompt)
    for answer in await exchanged(gateway, prompt):
        assert answer.status in (400, 401)
    for answer in await exchanged(gateway, b"GET /health HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"):
        assert answer.status == 400 or json.loads(answer.body) == {"status": "ok"}


FORWARDED = [
    b"X-Original-URL: /health",
    b"X-Rewrite-URL: /health",
    b"X-Forwarded-Prefix: /health",
    b"X-Forwarded-Path: /health",
    b"X-Forwarded-Host: confide/health",
    b"X-Forwarded-For: 127.0.0.1",
    b"X-Forwarded-User: admin",
    b"X-Real-IP: 127.0.0.1",
    b"Forwarded: for=127.0.0.1;host=confide;proto=https",
    b"X-HTTP-Method-Override: GET",
    b"X-Remote-User: admin",
    b"Referer: http://confide/health",
    b"Cookie: api_key=x; session=admin",
    b"Proxy-Authorization: Bearer x",
    b"Connection: Authorization, close",
]


@pytest.mark.parametrize("header", FORWARDED, ids=lambda header: header.decode().split(":")[0])
async def test_a_header_of_a_proxys_lets_nobody_in(gateway: ScriptedGateway, header: bytes) -> None:
    await assert_keeps_out(gateway, raw_post(BODY, header))
    assert [answer.status for answer in await exchanged(gateway, raw_post(BODY, header))] == [401]


@pytest.mark.parametrize(
    "method", [b"GET", b"HEAD", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"PROPFIND", b"post", b"XPOST"]
)
async def test_no_other_method_is_taken_for_a_prompt(gateway: ScriptedGateway, method: bytes) -> None:
    key, before = (await gateway.new_key()).encode(), len(gateway.engine.requests)
    request = raw_post(BODY, b"Authorization: Bearer " + key, b"X-HTTP-Method-Override: POST")
    async with raw_connection(gateway.url) as connection:
        await connection.send(method + request.removeprefix(b"POST"))
        if method != b"HEAD":
            assert (await connection.answer()).status in (204, 400, 405)
    assert len(gateway.engine.requests) == before


SMUGGLED = raw_post(BODY)


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"Content-Length: 0\r\nContent-Length: %d" % len(SMUGGLED),
        b"Content-Length:\x0b0",
    ],
    ids=repr,
)
async def test_no_second_request_hides_in_the_body_of_a_first(gateway: ScriptedGateway, head: bytes) -> None:
    first = b"POST /v1/models HTTP/1.1\r\nHost: confide\r\n" + head + b"\r\n\r\n0\r\n\r\n"
    await assert_keeps_out(gateway, first, SMUGGLED)


async def test_an_upgrade_lets_nobody_in(gateway: ScriptedGateway) -> None:
    upgrade = raw_post(BODY, b"Connection: Upgrade", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__")
    await assert_keeps_out(gateway, upgrade)


async def test_websockets_are_not_spoken(gateway: ScriptedGateway) -> None:
    lines = [b"GET /v1/chat/completions HTTP/1.1", b"Host: x", b"Connection: Upgrade", b"Upgrade: websocket"]
    lines += [b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    await assert_keeps_out(gateway, b"\r\n".join(lines) + b"\r\n\r\n")


async def test_a_key_on_one_request_of_a_connection_is_none_on_the_next(gateway: ScriptedGateway) -> None:
    key = (await gateway.new_key()).encode()
    with_key, without = raw_post(BODY, b"Authorization: Bearer " + key), raw_post(BODY)
    before = len(gateway.engine.requests)
    answers = await exchanged(gateway, with_key, without, with_key)
    assert [answer.status for answer in answers] == [200, 401, 200]
    assert len(gateway.engine.requests) == before + 2


async def test_a_path_cannot_name_a_file(gateway: ScriptedGateway) -> None:
    for target in (
        b"/../../etc/passwd",
        b"/llms.txt/../../pyproject.toml",
        b"/%2e%2e/%2e%2e/etc/passwd",
        b"/.git/config",
    ):
        (answer,) = await exchanged(gateway, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.status == 404
        assert json.loads(answer.body)["error"]["type"] == "not_found"
