"""The official OpenAI SDK through the client that verifies, against the real service over its attested TLS.

The engine is scripted; what is between it and the SDK's user is the real thing: receipts, the report, the handshake.
"""

import asyncio
import gc
import hashlib
import json
import re
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    OpenAI,
    RateLimitError,
)
from openai.types.chat import ChatCompletion, ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from pydantic import BaseModel

import confide
from confide.client.pinning import pinned_context
from confide.client.proof import NoProof
from confide.config import Config, Engine, Limits, Model, Server
from confide.evidence.result import Status, Verdict
from confide.gateway.http import Protocol
from gateway_app import MODEL, ScriptedGateway, answering, chat, serving_scripted, token
from scripted import CLOSE, HANG, Script, sse_head

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
SERVED = (Model(id=MODEL, aliases=("alias/model",), upstream_model="scripted"),)
ATTESTED = Config(server=Server(tls="attested"), model=SERVED)
PLAIN = Config(model=SERVED)
IDS = re.compile(r"(?:chatcmpl|chatcmpl-tool)-[0-9a-f]{32}")
WEATHER: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '<tool_call>\n{"name":"get_weather","arguments":{"city":"Paris"}}\n</tool_call>'


class Fruit(BaseModel):
    colour: str
    pieces: int


class Asking:
    """A service, and SDKs that ask it through clients that verify. `reports`: how often it was asked for a report."""

    def __init__(self, gateway: ScriptedGateway, home: Path) -> None:
        self.gateway = gateway
        self.root = home / "simulator" / "root.pem"
        self.reports = 0
        self._attest = gateway.attester.attest
        self.http = self.client()

    async def attest(self, report_data: bytes) -> Any:
        self.reports += 1
        return await self._attest(report_data)

    def policy(self, **arguments: Any) -> confide.Policy:
        return confide.Policy(**({"trust_roots": (self.root,)} | arguments))

    def client(self, **options: Any) -> confide.AsyncClient:
        return confide.AsyncClient(options.pop("policy", None) or self.policy(), **options)

    def sync_client(self, **options: Any) -> confide.Client:
        return confide.Client(options.pop("policy", None) or self.policy(), **options)

    @property
    def base_url(self) -> str:
        return self.gateway.url + "/v1"

    def sdk(self, http: httpx2.AsyncClient | None = None, *, key: str = "any", max_retries: int = 2) -> AsyncOpenAI:
        return AsyncOpenAI(
            base_url=self.base_url, api_key=key, http_client=http or self.http, max_retries=max_retries, timeout=20
        )

    def sync_sdk(self, http: confide.Client) -> OpenAI:
        return OpenAI(base_url=self.base_url, api_key="any", http_client=http, timeout=20)

    async def ask(self, **members: Any) -> ChatCompletion:
        completion: ChatCompletion = await self.sdk().chat.completions.create(model=MODEL, messages=HELLO, **members)
        return completion


@asynccontextmanager
async def asking(
    home: Path, *scripts: Script, config: Config = ATTESTED, monkeypatch: pytest.MonkeyPatch | None = None
) -> AsyncIterator[Asking]:
    async with serving_scripted(home, *scripts, config=config) as gateway:
        asker = Asking(gateway, home)
        if monkeypatch is not None:
            monkeypatch.setattr(gateway.attester, "attest", asker.attest)
        async with asker.http:
            yield asker


@asynccontextmanager
async def unverified(asker: Asking) -> AsyncIterator[AsyncOpenAI]:
    """The SDK as it comes, but for the certificate, which no authority signed."""
    async with httpx2.AsyncClient(verify=pinned_context(None)) as http:
        yield asker.sdk(http)


def assert_verified(answer: object) -> confide.Proof:
    proof = confide.proof(answer)
    assert proof.verdict is Verdict.VERIFIED
    assert proof.ok
    assert proof.simulated
    assert [check for check in proof if check.status is Status.FAIL] == []
    return proof


def without_ids(document: BaseModel) -> str:
    text: str = IDS.sub("", document.model_dump_json(exclude={"created"}))
    return text


# What the SDK can do.


async def test_buffered_answer_is_the_same_as_without_the_client_and_proven(tmp_path: Path) -> None:
    async with asking(tmp_path, answering("Hi", " there")) as asker, unverified(asker) as plain:
        answer = await asker.ask()
        assert answer.choices[0].message.content == "Hi there"
        other = await plain.chat.completions.create(model=MODEL, messages=HELLO)
        assert without_ids(answer) == without_ids(other)
        proof = assert_verified(answer)
        assert proof.chat_id == answer.id
        assert confide.proof(answer.id) is confide.proof(proof.receipt_id) is proof
        with pytest.raises(NoProof):
            confide.proof(other)


async def test_streamed_answer_is_the_same_as_without_the_client_and_proven(tmp_path: Path) -> None:
    async with asking(tmp_path, answering("Hi", " there")) as asker, unverified(asker) as plain:
        streams = [
            await sdk.chat.completions.create(
                model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
            for sdk in (asker.sdk(), plain)
        ]
        mine, other = [[chunk async for chunk in stream] for stream in streams]
        assert [without_ids(chunk) for chunk in mine] == [without_ids(chunk) for chunk in other]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in mine[:-1]) == "Hi there"
        proof = assert_verified(mine[-1])
        assert confide.proof(mine[0]) is confide.proof(streams[0]) is proof


async def test_bytes_on_the_wire_are_those_of_the_receipt(tmp_path: Path) -> None:
    async with asking(tmp_path, answering("é 🙂")) as asker:
        for is_stream in (False, True):
            async with asker.sdk().chat.completions.with_streaming_response.create(
                model=MODEL, messages=HELLO, stream=is_stream
            ) as raw:
                body = b"".join([part async for part in raw.iter_bytes()])
                sent = raw.http_request.content
            proof = assert_verified(raw.http_response)
            assert proof.answer is not None
            assert proof.answer.response_sha256 == hashlib.sha256(body).hexdigest()
            assert proof.answer.request_sha256 == hashlib.sha256(sent).hexdigest()
            assert asker.gateway.asked()["messages"] == HELLO


async def test_tools_are_called(tmp_path: Path) -> None:
    async with asking(tmp_path, answering(*CALL)) as asker:
        answer = await asker.ask(tools=[WEATHER])
        assert_verified(answer)
        stream = asker.sdk().chat.completions.stream(model=MODEL, messages=HELLO, tools=[WEATHER])
        async with stream as events:
            streamed = await events.get_final_completion()
        for choice in (answer.choices[0], streamed.choices[0]):
            [call] = choice.message.tool_calls or []
            assert call.type == "function"
            assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
        assert_verified(streamed)


async def test_structured_answers_are_parsed(tmp_path: Path) -> None:
    async with asking(tmp_path, answering('{"colour":"red","pieces":3}')) as asker:
        answer = await asker.sdk().chat.completions.parse(model=MODEL, messages=HELLO, response_format=Fruit)
        assert answer.choices[0].message.parsed == Fruit(colour="red", pieces=3)
        assert_verified(answer)


@pytest.mark.parametrize("is_stream", [False, True], ids=["buffered", "streamed"])
async def test_two_choices_are_one_exchange(tmp_path: Path, is_stream: bool) -> None:
    async with asking(tmp_path, answering("one"), answering("two")) as asker:
        create = asker.sdk().chat.completions.create
        if is_stream:
            chunks = [chunk async for chunk in await create(model=MODEL, messages=HELLO, n=2, stream=True)]
            assert {chunk.choices[0].index for chunk in chunks} == {0, 1}
            assert_verified(chunks[0])
        else:
            answer = await create(model=MODEL, messages=HELLO, n=2)
            assert {choice.message.content for choice in answer.choices} == {"one", "two"}
            assert_verified(answer)


async def test_raw_responses_carry_their_proof(tmp_path: Path) -> None:
    async with asking(tmp_path, answering("Hi")) as asker:
        raw = await asker.sdk().chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
        proof = assert_verified(raw)
        assert raw.http_response.extensions["confide.proof"] is proof
        assert raw.headers["x-receipt-id"] == raw.headers["x-request-id"] == proof.receipt_id
        assert raw.parse().choices[0].message.content == "Hi"


async def test_models_are_listed_over_the_attested_channel(tmp_path: Path) -> None:
    async with asking(tmp_path, answering("Hi")) as asker:
        models = [model.id async for model in asker.sdk().models.list()]
        assert models == [MODEL, "alias/model"]
        assert (await asker.sdk().models.retrieve(MODEL)).id == MODEL


# Errors are those of the SDK.


async def test_refusals_are_the_sdks_own_errors_and_leave_the_client_open(tmp_path: Path) -> None:
    config = Config(server=Server(tls="attested"), engine=Engine(slots=1), limits=Limits(queue=0), model=SERVED)
    gate = asyncio.Event()
    async with asking(tmp_path, [*answering("Hi")[:2], gate, *answering("")[2:]], config=config) as asker:
        sdk = asker.sdk(max_retries=0)
        with pytest.raises(BadRequestError) as bad:
            await asker.ask(temperature=9)
        assert bad.value.param == "temperature"
        with pytest.raises(NotFoundError) as unknown:
            await sdk.chat.completions.create(model="vendor/other", messages=HELLO)
        assert unknown.value.code == "model_not_found"
        running = await sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        with pytest.raises(RateLimitError) as full:
            await sdk.chat.completions.create(model=MODEL, messages=HELLO)
        assert int(full.value.response.headers["retry-after"]) >= 1
        gate.set()
        assert_verified([chunk async for chunk in running][-1])
        assert_verified(await asker.ask())


async def test_keys_are_checked_and_the_receipt_is_fetched_with_the_same_one(tmp_path: Path) -> None:
    async with asking(tmp_path, answering("Hi")) as asker:
        key = await asker.gateway.new_key()
        with pytest.raises(AuthenticationError):
            await asker.ask()
        answer = await asker.sdk(key=key).chat.completions.create(model=MODEL, messages=HELLO)
        assert_verified(answer)


@pytest.mark.parametrize("is_stream", [False, True], ids=["buffered", "streamed"])
async def test_engine_that_fails_is_the_sdks_error_with_its_receipt_checked(tmp_path: Path, is_stream: bool) -> None:
    async with asking(tmp_path, [CLOSE]) as asker:
        with pytest.raises(InternalServerError) as caught:
            await asker.sdk(max_retries=0).chat.completions.create(model=MODEL, messages=HELLO, stream=is_stream)
        assert caught.value.status_code == 502
        assert assert_verified(caught.value).facts["outcome"] == "failed"


async def test_error_tail_of_a_stream_is_raised_once_it_is_proven(tmp_path: Path) -> None:
    async with asking(tmp_path, [sse_head(), token("half an ans"), CLOSE]) as asker:
        stream = await asker.sdk().chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        seen: list[Any] = []
        with pytest.raises(APIError, match="the model stopped before the end"):
            await read_into(seen, stream)
        assert seen[-1].choices[0].delta.content == "half an ans"
        assert assert_verified(stream).facts["outcome"] == "truncated"


async def read_into(seen: list[Any], stream: AsyncIterator[Any]) -> None:
    async for chunk in stream:
        seen.append(chunk)


# The channel.


@pytest.mark.parametrize("is_stream", [False, True], ids=["buffered", "streamed"])
async def test_plain_http_is_partial_where_the_policy_can_do_without_the_channel(
    tmp_path: Path, is_stream: bool
) -> None:
    async with asking(tmp_path, answering("Hi"), config=PLAIN) as asker:
        async with asker.client(policy=asker.policy(require_channel=False)) as http:
            answer = await asker.sdk(http).chat.completions.create(model=MODEL, messages=HELLO, stream=is_stream)
            proof = confide.proof([chunk async for chunk in answer][-1] if is_stream else answer)  # type: ignore[union-attr]  # by is_stream
        assert proof.ok
        assert proof.verdict is Verdict.PARTIAL
        assert proof.simulated


async def test_plain_http_gets_no_prompt_where_the_channel_is_required(tmp_path: Path) -> None:
    async with asking(tmp_path, answering("Hi"), config=PLAIN) as asker:
        for _ in range(2):  # and the latch says the same
            with pytest.raises(confide.VerificationError) as caught:
                await asker.ask()
            assert caught.value.check == "id-6"
            assert caught.value.remedy
        assert asker.gateway.engine.requests == []
        assert asker.gateway.outcomes() == []


async def test_hardware_is_what_is_trusted_unless_the_policy_names_a_simulator(tmp_path: Path) -> None:
    async with asking(tmp_path, answering("Hi")) as asker, asker.client(policy=confide.Policy()) as http:
        with pytest.raises(confide.VerificationError) as caught:
            await asker.sdk(http).chat.completions.create(model=MODEL, messages=HELLO)
        assert caught.value.check == "id-1"
        assert asker.gateway.engine.requests == []


# Streams.


async def test_events_are_passed_on_before_the_service_made_the_last(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with asking(tmp_path, [sse_head(), token("Hi"), gate, *answering(" there")[1:]]) as asker:
        stream = await asker.sdk().chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        assert (await anext(stream)).choices[0].delta.role == "assistant"
        first = await anext(stream)
        assert first.choices[0].delta.content == "Hi"
        assert not gate.is_set()
        with pytest.raises(NoProof, match="no proof of this answer is kept"):
            confide.proof(first)
        gate.set()
        rest = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in rest) == " there"
        assert_verified(first)


async def test_a_caller_who_stops_reading_has_no_proof_and_the_connection_is_released(tmp_path: Path) -> None:
    async with asking(tmp_path, [sse_head(), token("Hi"), HANG]) as asker:
        stream = await asker.sdk().chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        async with stream:
            await anext(stream)
            chunk = await anext(stream)
        with pytest.raises(NoProof):
            confide.proof(chunk)
        assert await asker.gateway.outcome(1) == "client_closed"
        asker.gateway.follow(answering("Hi"))
        assert_verified(await asker.ask())


async def test_a_cancelled_request_lets_go_and_the_client_goes_on(tmp_path: Path) -> None:
    async with asking(tmp_path, [sse_head(), HANG]) as asker:
        await asker.http.verify(asker.base_url)
        asked = asyncio.create_task(asker.ask())
        await asker.gateway.engine.asked(1)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert await asker.gateway.outcome(1) == "client_closed"
        asker.gateway.follow(answering("Hi"))
        assert_verified(await asker.ask())


async def test_a_stream_in_another_thread_is_passed_on_as_it_comes(tmp_path: Path) -> None:
    gate, loop = asyncio.Event(), asyncio.get_running_loop()

    def read(asker: Asking) -> list[str | None]:
        with asker.sync_client() as http:
            stream = asker.sync_sdk(http).chat.completions.create(model=MODEL, messages=HELLO, stream=True)
            texts = [next(stream).choices[0].delta.content, next(stream).choices[0].delta.content]
            loop.call_soon_threadsafe(gate.set)
            texts += [chunk.choices[0].delta.content for chunk in stream]
            assert_verified(stream)
            return texts

    async with asking(tmp_path, [sse_head(), token("Hi"), gate, *answering(" there")[1:]]) as asker:
        assert await asyncio.to_thread(read, asker) == ["", "Hi", " there", None]


# Options.


async def test_options_of_httpx2_are_its_own(tmp_path: Path) -> None:
    async with asking(tmp_path, answering("Hi")) as asker:
        options = {"base_url": asker.base_url, "headers": {"x-trace": "7"}, "timeout": 5, "params": {"a": "1"}}
        async with asker.client(**options) as http:
            response = await http.post("/chat/completions", json=chat())
            assert response.status_code == 200
            assert response.request.headers["x-trace"] == "7"
            assert str(response.request.url).endswith("/v1/chat/completions?a=1")
            assert_verified(response)


async def test_the_callers_timeout_is_that_of_the_prompt(tmp_path: Path) -> None:
    async with asking(tmp_path, [sse_head(), HANG]) as asker:
        await asker.http.verify(asker.base_url)
        sdk = asker.sdk(max_retries=0).with_options(timeout=0.1)
        with pytest.raises(APITimeoutError):
            await sdk.chat.completions.create(model=MODEL, messages=HELLO)
        assert await asker.gateway.outcome(1) == "client_closed"
        asker.gateway.follow(answering("Hi"))
        assert_verified(await asker.ask())  # nothing was told about the service


@pytest.mark.parametrize("option", ["verify", "cert", "mounts", "transport"])
def test_options_that_would_take_the_verification_away_are_refused(option: str) -> None:
    options: dict[str, Any] = {option: None}
    for make in (confide.Client, confide.AsyncClient):
        with pytest.raises(confide.ConfigError, match=option) as caught:
            make(**options)
        assert caught.value.remedy


class ConnectProxy:
    """An HTTP proxy that opens tunnels and passes bytes on. `heads`: what it was asked."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        host, _, port = head.split()[1].decode().partition(":")
        out_reader, out_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(self.pump(reader, out_writer), self.pump(out_reader, writer), return_exceptions=True)

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


async def test_a_proxy_passes_ciphertext_and_the_key_is_checked_behind_it(tmp_path: Path) -> None:
    proxy = ConnectProxy()
    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as server, asking(tmp_path, answering("Hi")) as asker:
        proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with asker.client(proxy=proxy.url) as http:
            answer = await asker.sdk(http).chat.completions.create(model=MODEL, messages=HELLO)
            assert_verified(answer)
        assert {head.split()[0] for head in proxy.heads} == {b"CONNECT"}
        assert len(proxy.heads) == 2  # one for the report, one for the rest


# Many at once.


async def test_requests_at_once_verify_the_service_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asking(tmp_path, answering("Hi"), monkeypatch=monkeypatch) as asker:
        answers = await asyncio.gather(*(asker.ask() for _ in range(32)))
        proofs = {assert_verified(answer).receipt_id for answer in answers}
        assert len(proofs) == 32
        assert asker.reports == 1


async def test_threads_that_share_a_client_verify_the_service_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_at_once(asker: Asking) -> list[str]:
        together = threading.Barrier(16)
        with asker.sync_client() as http, ThreadPoolExecutor(16) as pool:
            sdk = asker.sync_sdk(http)

            def ask(number: int) -> str:
                together.wait(10)
                if number % 2:
                    return assert_verified(sdk.chat.completions.create(model=MODEL, messages=HELLO)).receipt_id
                chunks = list(sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
                return assert_verified(chunks[-1]).receipt_id

            return list(pool.map(ask, range(16)))

    async with asking(tmp_path, answering("Hi"), monkeypatch=monkeypatch) as asker:
        receipts = await asyncio.to_thread(all_at_once, asker)
        assert len(set(receipts)) == 16
        assert asker.reports == 1


async def test_one_connection_carries_prompts_and_receipts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the report, which has a connection of its own: a receipt costs no handshake, not for a stream either."""
    connections = []
    made = Protocol.connection_made

    def count(protocol: Protocol, transport: asyncio.Transport) -> None:
        connections.append(transport)
        made(protocol, transport)

    monkeypatch.setattr(Protocol, "connection_made", count)
    async with asking(tmp_path, answering("Hi")) as asker:
        for is_stream in (True, False, True):
            response = await asker.http.post(asker.base_url + "/chat/completions", json=chat(stream=is_stream))
            assert_verified(response)
        assert len(connections) == 2


async def test_a_closed_client_leaves_nothing_open(tmp_path: Path) -> None:
    def ask(asker: Asking) -> None:
        with asker.sync_client() as http:
            assert_verified(asker.sync_sdk(http).chat.completions.create(model=MODEL, messages=HELLO))
            stream = asker.sync_sdk(http).chat.completions.create(model=MODEL, messages=HELLO, stream=True)
            next(stream)
        del stream
        gc.collect()  # an open socket would be a warning here, and warnings are errors
        with pytest.raises(RuntimeError, match="closed"):
            http.post(asker.base_url + "/chat/completions", json=chat())

    async with asking(tmp_path, answering("Hi"), [sse_head(), token("Hi"), HANG]) as asker:
        await asyncio.to_thread(ask, asker)
        assert await asker.gateway.outcome(2) == "client_closed"


# What is not to be had at the moment.


async def test_a_service_that_cannot_give_its_report_now_may_be_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(tmp_path, answering("Hi")) as asker:
        with monkeypatch.context() as busy:
            busy.setattr(asker.gateway.attester, "_max_waiting", 0)
            with pytest.raises(APIConnectionError) as caught:
                await asker.sdk(max_retries=0).chat.completions.create(model=MODEL, messages=HELLO)
            assert "status 503" in str(caught.value.__cause__)
        assert asker.gateway.engine.requests == []
        assert_verified(await asker.ask())


async def test_a_service_that_is_not_there_is_a_connection_error_and_latches_nothing(tmp_path: Path) -> None:
    async with asking(tmp_path, answering("Hi")) as asker:
        with pytest.raises(httpx2.ConnectError):
            await asker.http.post("https://127.0.0.1:1/v1/chat/completions", json=chat())
        assert_verified(await asker.ask())
