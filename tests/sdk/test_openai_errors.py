"""Which class of the official SDK each failure becomes, and what happens to the engine when the SDK's user leaves.

The engine is scripted, as the real one cannot be made to fail on demand; the service before it is the real one.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from openai import (
    APIError,
    APIStatusError,
    APITimeoutError,
    AsyncOpenAI,
    AuthenticationError,
    InternalServerError,
    NotFoundError,
    OpenAI,
    RateLimitError,
)
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam

from confide.config import Config, Engine, Limits, Model, Server
from confide.upstream.channel import Timeouts
from gateway_app import MODEL, ScriptedGateway, answering, event, serving_scripted, token
from scripted import ABORT_WITHIN_S, CLOSE, HANG, LAST_CHUNK, REPEAT, Script, response, sse_head

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
BROKEN: Script = [sse_head(), token("half an ans"), CLOSE]
HANGING: Script = [sse_head(), token("I think"), HANG]
SERVED = (Model(id=MODEL, upstream_model="scripted"),)


def sdk(gateway: ScriptedGateway, *, key: str = "any", max_retries: int = 0, timeout_s: float = 20) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=gateway.url + "/v1", api_key=key, max_retries=max_retries, timeout=timeout_s)


@asynccontextmanager
async def asking(
    home: Path, *scripts: Script, config: Config | None = None, timeouts: Timeouts | None = None
) -> AsyncIterator[tuple[ScriptedGateway, AsyncOpenAI]]:
    """A service before an engine that follows `scripts`, and the SDK pointed at it."""
    async with (
        serving_scripted(home, *scripts, config=config, timeouts=timeouts) as gateway,
        sdk(gateway) as client,
    ):
        yield gateway, client


async def test_missing_and_wrong_keys_are_authentication_errors_and_the_right_one_is_served(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        _, token = gateway.store.create_key("sdk")
        await gateway.authenticator.refresh()
        async with sdk(gateway, key="wrong") as client:
            with pytest.raises(AuthenticationError) as caught:
                await client.chat.completions.create(model=MODEL, messages=HELLO)
        assert (caught.value.type, caught.value.code) == ("authentication_error", "invalid_api_key")
        async with sdk(gateway, key=token) as client:
            completion = await client.chat.completions.create(model=MODEL, messages=HELLO)
        assert completion.choices[0].message.content == "Hi"


async def test_unknown_model_and_unknown_signature_are_not_found(tmp_path: Path) -> None:
    async with asking(tmp_path, answering("Hi")) as (gateway, client):
        with pytest.raises(NotFoundError) as caught:
            await client.chat.completions.create(model="vendor/other", messages=HELLO)
        assert (caught.value.type, caught.value.param) == ("model_not_found", "model")
        with pytest.raises(NotFoundError) as caught:
            await client.get("/signature/chatcmpl-0", cast_to=dict[str, str])
        assert caught.value.type == "not_found"
        assert gateway.engine.requests == []


async def test_body_over_the_limit_is_a_status_error_413(tmp_path: Path) -> None:
    config = Config(server=Server(max_body_bytes=1000), model=SERVED)
    async with asking(tmp_path, answering("Hi"), config=config) as (_, client):
        with pytest.raises(APIStatusError) as caught:
            await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a" * 1000}])
        assert (caught.value.status_code, caught.value.type) == (413, "invalid_request_error")


async def test_full_queue_is_a_rate_limit_error_that_says_when_to_come_back(tmp_path: Path) -> None:
    config = Config(engine=Engine(slots=1), limits=Limits(queue=0), model=SERVED)
    async with asking(tmp_path, HANGING, config=config) as (_, client):
        running = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        with pytest.raises(RateLimitError) as caught:
            await client.chat.completions.create(model=MODEL, messages=HELLO)
        assert (caught.value.type, caught.value.code) == ("rate_limit_error", "rate_limit_exceeded")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        await running.close()


@pytest.mark.parametrize("is_stream", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize("script", [[CLOSE], [response(b"{}", status=b"500 Oops")]], ids=["cut", "refusal"])
async def test_engine_that_fails_before_the_first_byte_is_an_internal_server_error(
    tmp_path: Path, script: Script, is_stream: bool
) -> None:
    async with asking(tmp_path, script) as (_, client):
        with pytest.raises(InternalServerError) as caught:
            await client.chat.completions.create(model=MODEL, messages=HELLO, stream=is_stream)
        assert (caught.value.status_code, caught.value.type) == (502, "upstream_error")


async def test_buffered_answer_that_breaks_half_way_is_an_internal_server_error(tmp_path: Path) -> None:
    async with asking(tmp_path, BROKEN) as (_, client):
        with pytest.raises(InternalServerError) as caught:
            await client.chat.completions.create(model=MODEL, messages=HELLO)
        assert (caught.value.status_code, caught.value.type) == (502, "upstream_error")
        assert "half an ans" not in str(caught.value)


async def test_engine_that_is_loading_is_a_503_and_is_asked_again_by_default(tmp_path: Path) -> None:
    async with asking(tmp_path, answering("Hi")) as (gateway, client):
        gateway.switch.is_ready = False
        with pytest.raises(InternalServerError) as caught:
            await client.chat.completions.create(model=MODEL, messages=HELLO)
        assert (caught.value.status_code, caught.value.type) == (503, "service_unavailable")
        async with sdk(gateway, max_retries=2) as patient:
            asked = asyncio.create_task(patient.chat.completions.create(model=MODEL, messages=HELLO))
            await gateway.outcome(2)
            gateway.switch.is_ready = True
            assert (await asked).choices[0].message.content == "Hi"


async def test_engine_that_does_not_answer_in_time_is_a_504(tmp_path: Path) -> None:
    async with asking(tmp_path, [sse_head(), HANG], timeouts=Timeouts(first_byte_s=0.1)) as (gateway, client):
        with pytest.raises(InternalServerError) as caught:
            await client.chat.completions.create(model=MODEL, messages=HELLO)
        assert (caught.value.status_code, caught.value.type) == (504, "timeout_error")
        await gateway.engine.left(1)


async def test_error_tail_of_a_stream_is_raised_out_of_the_iteration(tmp_path: Path) -> None:
    async with asking(tmp_path, BROKEN) as (_, client):
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        assert (await anext(stream)).choices[0].delta.role == "assistant"
        assert (await anext(stream)).choices[0].delta.content == "half an ans"
        with pytest.raises(APIError) as caught:
            await anext(stream)
        assert (caught.value.type, caught.value.code, caught.value.param) == ("upstream_error", "502", None)
        assert not isinstance(caught.value, APIStatusError)  # the status was 200 long ago


async def test_error_tail_is_raised_by_the_streaming_helper_and_by_the_synchronous_client(tmp_path: Path) -> None:
    async with asking(tmp_path, BROKEN) as (gateway, client):
        with pytest.raises(APIError, match="the model stopped before the end"):
            async with client.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
                await stream.get_final_completion()

        def read_all() -> None:
            with OpenAI(base_url=gateway.url + "/v1", api_key="any", max_retries=0) as sync:
                list(sync.chat.completions.create(model=MODEL, messages=HELLO, stream=True))

        with pytest.raises(APIError, match="the model stopped before the end"):
            await asyncio.to_thread(read_all)


def tool(name: str) -> ChatCompletionFunctionToolParam:
    parameters: dict[str, object] = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def called(name: str, city: str) -> str:
    """A call as the template teaches the model to write it."""
    arguments = json.dumps({"city": city}, separators=(",", ":"), ensure_ascii=False)
    return f'<tool_call>\n{{"name":"{name}","arguments":{arguments}}}\n</tool_call>'


def in_pieces(text: str, size: int) -> Sequence[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
async def test_two_parallel_calls_stay_two_calls_in_the_sdk(tmp_path: Path, size: int) -> None:
    text = "Both.\n" + called("get_weather", "Zürich") + "\n" + called("get_time", 'a "}" b')
    script = answering(*in_pieces(text, size))
    tools = [tool("get_weather"), tool("get_time")]
    async with asking(tmp_path, script) as (_, client):
        buffered = await client.chat.completions.create(model=MODEL, messages=HELLO, tools=tools)
        async with client.chat.completions.stream(model=MODEL, messages=HELLO, tools=tools) as stream:
            indices = {
                part.index
                async for sent in stream
                if sent.type == "chunk"
                for part in sent.chunk.choices[0].delta.tool_calls or []
            }
            streamed = await stream.get_final_completion()
    assert indices == {0, 1}
    for choice in (buffered.choices[0], streamed.choices[0]):
        calls = [call for call in choice.message.tool_calls or [] if call.type == "function"]
        assert choice.finish_reason == "tool_calls"
        assert [call.function.name for call in calls] == ["get_weather", "get_time"]
        assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Zürich", 'a "}" b']
        assert calls[0].id != calls[1].id


async def test_reasoning_and_text_are_kept_apart(tmp_path: Path) -> None:
    thought = event({"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}, "finish_reason": None}]})
    script = [sse_head(), thought, *answering("Yes.")[1:]]
    async with asking(tmp_path, script) as (_, client):
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        deltas = [part.choices[0].delta.model_dump(exclude_unset=True) async for part in stream]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm."
    assert "".join(delta.get("content") or "" for delta in deltas) == "Yes."


async def test_stream_that_its_reader_closes_is_aborted_in_the_engine(tmp_path: Path) -> None:
    async with asking(tmp_path, [sse_head(), REPEAT, token("on and on ")]) as (gateway, client):
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        async with stream:
            async for _ in stream:
                break
        left_at = asyncio.get_running_loop().time()
        await gateway.engine.left(1)
        assert gateway.engine.departures[0].at - left_at < ABORT_WITHIN_S
        assert await gateway.outcome(1) == "client_closed"
        assert gateway.slots.free == 4


@pytest.mark.parametrize("is_stream", [False, True], ids=["buffered", "streamed"])
async def test_timeout_of_the_sdk_is_an_abort_in_the_engine(tmp_path: Path, is_stream: bool) -> None:
    async with asking(tmp_path, [sse_head(), HANG]) as (gateway, client):
        with pytest.raises(APITimeoutError):
            await client.with_options(timeout=0.2).chat.completions.create(
                model=MODEL, messages=HELLO, stream=is_stream
            )
        await gateway.engine.left(1)
        assert await gateway.outcome(1) == "client_closed"
        assert gateway.slots.free == 4


async def test_answer_that_ends_without_a_finish_reason_is_not_taken_for_whole(tmp_path: Path) -> None:
    async with asking(tmp_path, [sse_head(), token("half"), LAST_CHUNK]) as (_, client):
        with pytest.raises(InternalServerError):
            await client.chat.completions.create(model=MODEL, messages=HELLO)
