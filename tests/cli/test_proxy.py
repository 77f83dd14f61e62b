"""`confide proxy`: a tool that knows nothing of proofs never takes an unproven answer for an answer."""

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar, cast

import anthropic
import httpx2
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk

from attested_service import ANSWER, API_KEY, MODEL, AttestedService, Reply, Seen, serving
from cli.outcome import SIMULATED, run
from confide.client.http import AsyncClient
from confide.client.proxy import MAX_BODY_BYTES, TIMEOUTS_S, Proxy
from confide.gateway.app import Gateway
from confide.telemetry.logs import Log
from confide.verifier.policy import Policy
from gateway_app import answering, chat, listening, raw_connection, serving_scripted, token
from proxy_process import started
from running import home_with_weights, running
from scripted import sse_head
from sdk.builders import HELLO, NAMED, WEATHER, WEATHER_TOOL

T = TypeVar("T")
QUESTION: Any = {"model": MODEL, "messages": [{"role": "user", "content": "a secret question"}]}


@dataclass
class Proxied:
    """A proxy in this process. `http` speaks to it as a tool does; `written` is what it logs."""

    url: str
    http: httpx2.AsyncClient
    written: StringIO

    async def ask(self, **headers: str) -> httpx2.Response:
        return await self.http.post("/v1/chat/completions", json=QUESTION, headers=headers)

    def sdk(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=API_KEY)

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.written.getvalue().splitlines()]


@contextlib.asynccontextmanager
async def proxied(
    root: str, policy: Policy, *, api_key: str | None = None, is_exposed: bool = False
) -> AsyncIterator[Proxied]:
    """A proxy in front of the service at `root`."""
    written = StringIO()
    async with AsyncClient(policy, timeout=TIMEOUTS_S) as client:
        application = Proxy(client, httpx2.URL(root), api_key=api_key, is_exposed=is_exposed, log=Log(written))
        async with (
            listening(cast("Gateway", application)) as url,
            httpx2.AsyncClient(base_url=url, timeout=20) as http,
        ):
            yield Proxied(url, http, written)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[AttestedService]:
    with serving(tmp_path, tls=True) as started:
        yield started


@pytest.fixture
async def proxy(service: AttestedService) -> AsyncIterator[Proxied]:
    async with proxied(service.url, service.policy()) as started:
        yield started


def altered(reply: Reply, _: Seen) -> Reply:
    return reply.replacing(b"42.", b"43.")


async def take(pieces: AsyncIterable[T], on_piece: Callable[[T], object] = id) -> None:
    """All the pieces, one by one."""
    async for piece in pieces:
        on_piece(piece)


def message_of(response: httpx2.Response) -> str:
    """The error's message; the envelope has all four members and no others (wire contract 4)."""
    error = response.json()["error"]
    assert list(error) == ["message", "type", "code", "param"]
    return str(error["message"])


# What is proven passes.


async def test_a_buffered_answer_is_passed_on_with_its_verdict(service: AttestedService, proxy: Proxied) -> None:
    answer = await proxy.ask()
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER
    assert answer.headers["x-confide-verdict"] == "VERIFIED"
    assert answer.headers["x-confide-simulated"] == "no hardware protection"
    assert answer.headers["x-receipt-id"] == answer.headers["x-request-id"]
    assert json.loads(service.prompts[0].body) == QUESTION


async def test_over_a_channel_that_is_not_shown_the_verdict_is_partial(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        async with proxied(service.url, service.policy()) as proxy:
            assert (await proxy.ask()).headers["x-confide-verdict"] == "PARTIAL"


async def test_the_official_sdk_works_unchanged(proxy: Proxied) -> None:
    async with proxy.sdk() as client:
        answer = await client.chat.completions.create(**QUESTION)
        assert answer.choices[0].message.content == ANSWER
        stream = await client.chat.completions.create(**QUESTION, stream=True)
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(texts) == ANSWER
        assert [model.id async for model in client.models.list()] == [MODEL]


async def test_a_stream_is_passed_on_byte_for_byte(service: AttestedService, proxy: Proxied) -> None:
    sent: list[bytes] = []

    def recorded(reply: Reply, _: Seen) -> Reply:
        sent.append(reply.body)
        return reply

    service.alter["answer"] = recorded
    answer = await proxy.http.post("/v1/chat/completions", json={**QUESTION, "stream": True})
    assert answer.headers["content-type"] == "text/event-stream"
    assert [answer.content] == sent
    assert "x-confide-verdict" not in answer.headers


async def test_a_stream_passes_as_it_comes(tmp_path: Path) -> None:
    gate = asyncio.Event()
    script = [sse_head(), token("Once upon"), gate, *answering(" a time.")[1:]]
    async with serving_scripted(tmp_path, script) as gateway:
        policy = local_policy(tmp_path)
        async with proxied(gateway.url, policy) as proxy, proxy.sdk() as client:
            stream = await client.chat.completions.create(
                model="vendor/model", messages=[{"role": "user", "content": "Hi"}], stream=True
            )
            async with asyncio.timeout(10):
                texts = [(await anext(stream)).choices[0].delta.content for _ in range(2)]
                assert texts == ["", "Once upon"]
                gate.set()
                assert (await anext(stream)).choices[0].delta.content == " a time."


def local_policy(home: Path) -> Policy:
    return Policy(trust_roots=(home / "simulator" / "root.pem",), require_channel=False)


# Requests.


async def test_requests_arrive_as_they_were_sent(service: AttestedService, proxy: Proxied) -> None:
    hop = {"Connection": "x-mine", "X-Mine": "1", "Proxy-Authorization": "Basic eDp5", "TE": "trailers"}
    kept = {"Authorization": f"Bearer {API_KEY}", "X-Trace": "a b", "OpenAI-Beta": "x=1"}
    body = b'{"model": "vendor/model",  "messages":[]}\n'
    await proxy.http.post("/v1/chat/completions?a=1&b=%2F", content=body, headers={**hop, **kept})
    seen = service.prompts[0]
    assert (seen.path, seen.query, seen.body) == ("/v1/chat/completions", {"a": ["1"], "b": ["/"]}, body)
    assert seen.headers["host"] == f"127.0.0.1:{service.port}"
    for name, value in kept.items():
        assert seen.headers[name.lower()] == value
    assert not {"x-mine", "proxy-authorization", "te"} & seen.headers.keys()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"authorization": "Bearer sk-environment"}),
        ({"Authorization": "Bearer sk-tool"}, {"authorization": "Bearer sk-tool"}),
        ({"x-api-key": "sk-tool"}, {"x-api-key": "sk-tool"}),
    ],
)
async def test_the_key_of_the_environment_is_for_tools_that_send_none(
    service: AttestedService, given: dict[str, str], expected: dict[str, str]
) -> None:
    async with proxied(service.url, service.policy(), api_key="sk-environment") as proxy:
        assert (await proxy.ask(**given)).status_code == 200
    sent = service.prompts[0].headers
    assert {name: sent[name] for name in ("authorization", "x-api-key") if name in sent} == expected


async def test_what_is_no_prompt_passes_without_a_verdict(service: AttestedService, proxy: Proxied) -> None:
    service.alter["models"] = lambda reply, _: reply.but(x_confide_verdict="VERIFIED", alt_svc='h3=":1"')
    models = await proxy.http.get("/v1/models")
    assert (models.status_code, models.json()["data"][0]["id"]) == (200, MODEL)
    assert not {"x-confide-verdict", "alt-svc"} & models.headers.keys()
    refused = await proxy.http.get("/v1/nothing")
    assert (refused.status_code, refused.json()["error"]["type"]) == (404, "not_found")


async def test_a_refusal_by_the_service_passes_as_it_is(service: AttestedService, proxy: Proxied) -> None:
    service.alter["answer"] = lambda reply, _: reply.but(
        b'{"error":{}}', status=429, retry_after="7", x_receipt_id=None
    )
    refused = await proxy.ask()
    assert (refused.status_code, refused.content, refused.headers["retry-after"]) == (429, b'{"error":{}}', "7")
    del service.alter["answer"]
    assert (await proxy.ask()).status_code == 200


async def test_only_what_was_verified_is_reached(service: AttestedService, proxy: Proxied) -> None:
    """Under another root there could be another service; a wrong base URL must not latch the proxy either."""
    for path in ("/other/v1/chat/completions", "//evil.example/v1/models"):
        refused = await proxy.http.post(proxy.url + path, json=QUESTION)
        assert (refused.status_code, refused.json()["error"]["type"]) == (404, "not_found"), path
    assert service.seen == []
    assert (await proxy.ask()).status_code == 200


async def test_a_body_has_a_largest_size(service: AttestedService, proxy: Proxied) -> None:
    most = await proxy.http.post("/v1/chat/completions", content=json.dumps(QUESTION).encode().ljust(MAX_BODY_BYTES))
    assert most.status_code == 200
    refused = await proxy.http.post("/v1/chat/completions", content=b" " * (MAX_BODY_BYTES + 1))
    assert (refused.status_code, refused.json()["error"]["type"]) == (413, "invalid_request_error")
    assert str(MAX_BODY_BYTES) in message_of(refused)
    assert len(service.prompts) == 1


# What is not proven does not.


async def test_an_altered_answer_becomes_an_error_and_the_proxy_sends_nothing_more(
    service: AttestedService, proxy: Proxied
) -> None:
    service.alter["answer"] = altered
    refused = await proxy.ask()
    assert refused.status_code == 502
    assert message_of(refused).startswith("receipt-4: got sha256:")
    assert refused.json()["error"] == {**refused.json()["error"], "type": "upstream_error", "code": None, "param": None}
    assert refused.headers["x-should-retry"] == "false"
    assert "43." not in refused.text
    service.alter.clear()
    asked = len(service.seen)
    for path in ("/v1/chat/completions", "/v1/models"):
        again = await proxy.http.post(path, json=QUESTION)
        assert (again.status_code, again.headers["x-should-retry"]) == (502, "false")
        assert message_of(again).startswith("receipt-4: got sha256:")
        assert "until it is restarted" in message_of(again)
    assert len(service.seen) == asked


async def test_the_sdk_raises_and_does_not_try_again(service: AttestedService, proxy: Proxied) -> None:
    service.alter["answer"] = altered
    async with proxy.sdk() as client:
        with pytest.raises(openai.InternalServerError, match="receipt-4"):
            await client.chat.completions.create(**QUESTION)
    assert len(service.prompts) == 1
    assert len(proxy.log) == 1


async def test_an_altered_stream_ends_in_an_error_and_without_its_end(service: AttestedService, proxy: Proxied) -> None:
    service.alter["answer"] = altered
    received = bytearray()
    async with proxy.http.stream("POST", "/v1/chat/completions", json={**QUESTION, "stream": True}) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx2.RemoteProtocolError):  # the connection is cut inside the body
            await take(answer.aiter_raw(), received.extend)
    assert b"43." in received
    assert b"[DONE]" not in received
    last = json.loads(received.split(b"\n\n")[-2].removeprefix(b"data: "))
    assert list(last) == ["error"]
    assert last["error"]["message"].startswith("receipt-4: got sha256:")
    assert (last["error"]["type"], last["error"]["code"]) == ("upstream_error", 502)
    assert (await proxy.ask()).status_code == 502


async def test_the_sdk_raises_out_of_an_altered_stream(service: AttestedService, proxy: Proxied) -> None:
    service.alter["answer"] = altered
    async with proxy.sdk() as client:
        stream = await client.chat.completions.create(**QUESTION, stream=True)
        chunks: list[ChatCompletionChunk] = []
        with pytest.raises(openai.APIError, match="receipt-4"):
            await take(stream, chunks.append)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "The answer is 43."


@pytest.mark.parametrize("is_stream", [False, True], ids=["buffered", "streamed"])
async def test_to_anthropics_sdk_it_speaks_the_form_that_this_reads(
    service: AttestedService, proxy: Proxied, is_stream: bool
) -> None:
    """An event that is not named is none to it."""
    service.alter["answer"] = altered
    async with AsyncAnthropic(base_url=proxy.url, api_key=API_KEY) as client:

        async def ask() -> None:
            answer: Any = await client.messages.create(**QUESTION, max_tokens=5, stream=is_stream)
            await take(answer)

        with pytest.raises(anthropic.APIStatusError) as caught:
            await ask()
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "api_error")
    assert body["error"]["message"].startswith("receipt-4: got sha256:")
    assert len(service.prompts) == 1


async def test_an_answer_without_a_receipt_is_an_error(service: AttestedService, proxy: Proxied) -> None:
    service.alter["answer"] = lambda reply, _: reply.but(x_receipt_id=None)
    answer = await proxy.http.post("/v1/chat/completions", json=QUESTION)
    assert (answer.status_code, message_of(answer)[:11]) == (502, "receipt-1: ")


async def test_a_stream_without_a_receipt_is_an_error(service: AttestedService, proxy: Proxied) -> None:
    service.alter["answer"] = lambda reply, _: reply.but(x_receipt_id=None)
    async with proxy.sdk() as client:
        stream = await client.chat.completions.create(**QUESTION, stream=True)
        with pytest.raises(openai.APIError, match="receipt-1"):
            await take(stream)


async def test_a_service_that_is_not_verified_gets_no_prompt(service: AttestedService) -> None:
    async with proxied(service.url, service.policy(trust_roots=("intel",))) as proxy:
        refused = await proxy.ask()
        assert (refused.status_code, refused.headers["x-should-retry"]) == (502, "false")
        assert message_of(refused).startswith("id-1: tdx.root: ")
    assert service.prompts == []


@pytest.mark.parametrize("location", ["http://127.0.0.1:1/v1/chat/completions", "//:1"])
async def test_a_redirect_is_not_passed_on(service: AttestedService, proxy: Proxied, location: str) -> None:
    """An SDK would follow it, with key and prompt, past the proxy."""
    service.alter["answer"] = lambda reply, _: reply.but(status=307, location=location, x_receipt_id=None)
    refused = await proxy.ask()
    assert refused.status_code == 502
    assert "location" not in refused.headers
    assert "redirect" in message_of(refused)


async def test_a_stream_that_breaks_is_an_error_and_the_next_request_is_sent(
    service: AttestedService, proxy: Proxied
) -> None:
    service.alter["answer"] = lambda reply, _: reply.but(*reply.parts[:3]).cut()
    async with proxy.sdk() as client:
        stream = await client.chat.completions.create(**QUESTION, stream=True)
        with pytest.raises(openai.APIError, match="receipt-4"):
            await take(stream)
        service.alter.clear()
        assert (await client.chat.completions.create(**QUESTION)).choices[0].message.content == ANSWER


async def test_a_service_that_is_not_there_is_an_error_that_may_pass(tmp_path: Path) -> None:
    with serving(tmp_path, tls=True) as service:
        url, policy, port = service.url, service.policy(), service.port
    async with proxied(url, policy) as proxy:
        refused = await proxy.ask()
        assert (refused.status_code, refused.json()["error"]["type"]) == (502, "upstream_error")
        assert str(port) not in message_of(refused)
        assert "until it is restarted" not in message_of(refused)
        assert "x-should-retry" not in refused.headers
        again = await proxy.ask()
        assert "cannot be reached" in message_of(again)


# Who may ask, and what is kept of it.


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Host": "evil.example"},
        {"Host": "evil.example:8081"},
        {"Host": ""},
    ],
    ids=str,
)
async def test_a_web_page_is_not_a_tool_of_this_machine(
    service: AttestedService, proxy: Proxied, headers: dict[str, str]
) -> None:
    refused = await proxy.ask(**headers)
    assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
    assert service.seen == []


@pytest.mark.parametrize("headers", [{"Origin": "http://localhost:3000"}, {"Host": "localhost:9"}, {"Host": "[::1]:9"}])
async def test_a_page_of_this_machine_is(proxy: Proxied, headers: dict[str, str]) -> None:
    assert (await proxy.ask(**headers)).status_code == 200


async def test_an_exposed_proxy_asks_nobody_where_they_come_from(service: AttestedService) -> None:
    async with proxied(service.url, service.policy(), is_exposed=True) as proxy:
        assert (await proxy.ask(Host="proxy.internal:8081")).status_code == 200


async def test_a_log_line_holds_no_content(service: AttestedService, proxy: Proxied) -> None:
    await proxy.http.post("/v1/chat/completions?q=hidden", json=QUESTION, headers={"Authorization": "Bearer sk-hidden"})
    await proxy.http.get("/v1/hidden-path")
    service.alter["answer"] = altered
    await proxy.ask()
    first, second, third = proxy.log
    assert (first["event"], first["endpoint"], first["status"]) == ("request", "/v1/chat/completions", 200)
    assert (first["outcome"], first["receipt"][:5]) == ("VERIFIED", "rcpt-")
    assert (second["endpoint"], second["status"], second["outcome"]) == ("other", 404, "passed on")
    assert (third["status"], third["outcome"], third["error"]) == (502, "not verified", "receipt-4")
    written = re.sub(r'"at":\d+\.\d+,', "", proxy.written.getvalue())  # a time may end in 42, too
    assert '"at"' not in written
    for secret in ("hidden", "secret question", "42.", "43."):
        assert secret not in written


async def test_a_tool_that_leaves_ends_the_request_at_the_service(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with serving_scripted(tmp_path, [sse_head(), token("Once upon"), gate]) as gateway:
        async with proxied(gateway.url, local_policy(tmp_path)) as proxy:
            async with proxy.http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
                await anext(answer.aiter_raw())
            assert await gateway.outcome(1) == "client_closed"
            async with asyncio.timeout(5):
                while not proxy.log:
                    await asyncio.sleep(0.005)
            assert proxy.log[0]["outcome"] == "client_left"
        gate.set()


async def test_a_tool_that_leaves_inside_its_request_is_no_trouble(service: AttestedService, proxy: Proxied) -> None:
    async with raw_connection(proxy.url) as connection:
        await connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{")
    assert (await proxy.ask()).status_code == 200
    assert len(service.prompts) == 1


# The program.


def test_it_verifies_then_says_that_it_is_ready_and_ends_on_sigterm(service: AttestedService, tmp_path: Path) -> None:
    with started(service.url, tmp_path, CONFIDE_API_KEY="sk-environment") as proxy:
        assert [seen.path for seen in service.seen] == ["/v1/aci/attestation"]
        shown = proxy.stderr.read_text().splitlines()
        assert shown[-2].startswith("VERIFIED (SIMULATED ROOT sim:")
        assert shown[-1] == SIMULATED
        with httpx2.Client(base_url=proxy.url) as http:
            answer = http.post("/v1/chat/completions", json=QUESTION)
            assert answer.headers["x-confide-verdict"] == "VERIFIED"
            assert service.prompts[0].headers["authorization"] == "Bearer sk-environment"
            assert proxy.terminate() == 0  # with a connection that is kept open
    written = proxy.stderr.read_text()
    assert len(written.splitlines()) == len(shown) + 1
    assert "sk-environment" not in written
    assert "Traceback" not in written


def test_a_cut_stream_leaves_no_traceback(service: AttestedService, tmp_path: Path) -> None:
    service.alter["answer"] = altered
    with started(service.url, tmp_path) as proxy:
        with OpenAI(base_url=f"{proxy.url}/v1", api_key="any") as client:
            stream = client.chat.completions.create(**QUESTION, stream=True)
            with pytest.raises(openai.APIError, match="receipt-4"):
                list(stream)
        assert proxy.terminate() == 0
    assert "Traceback" not in proxy.stderr.read_text()
    assert json.loads(proxy.stderr.read_text().splitlines()[-1])["error"] == "receipt-4"


async def test_an_answer_that_does_not_end_is_cut_when_the_proxy_has_to(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with serving_scripted(tmp_path, [sse_head(), token("Once upon"), gate]) as gateway:
        with contextlib.ExitStack() as stack:
            plain = started(gateway.url, tmp_path, "--no-require-channel")
            proxy = await asyncio.to_thread(stack.enter_context, plain)
            async with (
                httpx2.AsyncClient(base_url=proxy.url, timeout=20) as http,
                http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer,
            ):
                pieces = answer.aiter_raw()
                await anext(pieces)
                ending = asyncio.create_task(asyncio.to_thread(proxy.terminate))
                with pytest.raises(httpx2.RemoteProtocolError):
                    await take(pieces)
                assert await ending == 0
            assert await gateway.outcome(1) == "client_closed"
        gate.set()
    assert "Traceback" not in proxy.stderr.read_text()


async def test_a_service_that_does_not_hold_starts_no_proxy(service: AttestedService, tmp_path: Path) -> None:
    refused = await run("proxy", service.url, "--port", "0", home=tmp_path)
    assert (refused.status, refused.check, refused.stdout) == (1, "id-1", "")


async def test_nobody_there_is_status_3(tmp_path: Path) -> None:
    refused = await run("proxy", "http://127.0.0.1:1", "--port", "0", "--no-require-channel", home=tmp_path)
    assert (refused.status, refused.stdout) == (3, "")


async def test_wrong_usage_is_status_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments in (
            (),
            ("127.0.0.1:8080",),
            ("http://127.0.0.1:1", "--port", "70000"),
            ("http://127.0.0.1:1", "--port", str(taken.getsockname()[1])),
            ("http://127.0.0.1:1", "--host", "no.such.host.invalid", "--expose"),
            ("http://127.0.0.1:1", "--host", "a" * 70, "--expose"),
            ("http://127.0.0.1:1", "--allow-simulated"),
        ):
            assert (await run("proxy", *arguments, home=tmp_path)).status == 2, arguments


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "proxy.internal", "", "a b", "127.0.0.1@evil.example"])
async def test_others_do_not_reach_it_by_accident(tmp_path: Path, host: str) -> None:
    refused = await run("proxy", "http://127.0.0.1:1", "--host", host, home=tmp_path)
    assert refused.status == 2
    assert "--expose" in refused.remedy


def test_an_exposed_proxy_lends_its_key_to_nobody(service: AttestedService, tmp_path: Path) -> None:
    exposed = ("--host", "0.0.0.0", "--expose")
    with started(service.url, tmp_path, *exposed, CONFIDE_API_KEY="sk-environment") as proxy:
        url = proxy.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx2.post(f"{url}/v1/chat/completions", json=QUESTION).status_code == 200
    assert "authorization" not in service.prompts[0].headers
    assert "CONFIDE_API_KEY is not used" in proxy.stderr.read_text()


@pytest.mark.engine
def test_the_whole_way_with_the_real_service(tmp_path: Path, engine_home: Path) -> None:
    home = home_with_weights(tmp_path, engine_home)
    with (
        running(home, config='[server]\ntls = "attested"\n') as service,
        started(service.url, home) as proxy,
        OpenAI(base_url=f"{proxy.url}/v1", api_key="any", max_retries=0, timeout=60) as client,
    ):
        model = client.models.list().data[0].id
        raw = client.chat.completions.with_raw_response.create(model=model, messages=HELLO, max_tokens=8)
        assert raw.headers["x-confide-verdict"] == "VERIFIED"
        assert raw.parse().choices[0].message.content
        stream = client.chat.completions.create(model=model, messages=HELLO, max_tokens=8, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        called = client.chat.completions.create(
            model=model, messages=WEATHER, tools=[WEATHER_TOOL], tool_choice=NAMED, max_tokens=64
        )
        calls = called.choices[0].message.tool_calls
        assert calls
        assert calls[0].type == "function"
        assert calls[0].function.name == "get_weather"
        assert proxy.terminate() == 0
