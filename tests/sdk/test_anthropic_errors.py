"""Which class of the official Anthropic SDK each failure becomes, and that the engine stops when its user leaves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anthropic
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import MessageParam

from confide.upstream.channel import Timeouts
from gateway_app import MODEL, ScriptedGateway, answering, event, serving_scripted, token
from scripted import ABORT_WITHIN_S, CLOSE, HANG, Script, response, sse_head

HELLO: list[MessageParam] = [{"role": "user", "content": "Hello"}]


@asynccontextmanager
async def asking(
    home: Path, *scripts: Script, key: str = "any", max_retries: int = 0, timeouts: Timeouts | None = None
) -> AsyncIterator[tuple[ScriptedGateway, AsyncAnthropic]]:
    """A service before an engine that follows `scripts`, and the SDK pointed at it."""
    async with (
        serving_scripted(home, *scripts, timeouts=timeouts) as gateway,
        AsyncAnthropic(base_url=gateway.url, api_key=key, max_retries=max_retries, timeout=20) as client,
    ):
        yield gateway, client


async def test_a_wrong_key_is_an_authentication_error(tmp_path: Path) -> None:
    async with asking(tmp_path, answering("Hi"), key="wrong") as (gateway, client):
        key = await gateway.new_key()
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await client.messages.create(model=MODEL, max_tokens=5, messages=HELLO)
        assert caught.value.type == "authentication_error"
        with pytest.raises(anthropic.AuthenticationError):
            await client.messages.count_tokens(model=MODEL, messages=HELLO)
        await client.with_options(api_key=key).messages.create(model=MODEL, max_tokens=5, messages=HELLO)


async def test_an_engine_that_fails_is_asked_again_by_the_sdk(tmp_path: Path) -> None:
    failing = [response(b"{}", status=b"500 Internal Server Error")]
    async with asking(tmp_path, failing, answering("Hi"), max_retries=1) as (_, client):
        message = await client.messages.create(model=MODEL, max_tokens=5, messages=HELLO)
        assert message.content[0].type == "text"


async def test_an_engine_that_is_silent_is_a_timeout(tmp_path: Path) -> None:
    short = Timeouts(first_byte_s=0.05, idle_s=0.05)
    async with asking(tmp_path, [HANG], timeouts=short) as (_, client):
        with pytest.raises(anthropic.InternalServerError) as caught:
            await client.messages.create(model=MODEL, max_tokens=5, messages=HELLO)
        assert (caught.value.status_code, caught.value.type) == (504, "timeout_error")


async def test_a_stream_that_breaks_raises_after_what_came(tmp_path: Path) -> None:
    async with asking(tmp_path, [sse_head(), token("half an ans"), CLOSE]) as (gateway, client):
        said: list[str] = []

        async def read() -> None:
            async with client.messages.stream(model=MODEL, max_tokens=5, messages=HELLO) as stream:
                async for text in stream.text_stream:
                    said.append(text)

        with pytest.raises(anthropic.APIStatusError) as caught:
            await read()
        assert said == ["half an ans"]
        assert caught.value.type == "api_error"
        assert await gateway.outcome(1) == "truncated"


async def test_a_call_that_is_no_json_is_never_a_whole_message(tmp_path: Path) -> None:
    cut = event({"choices": [{"index": 0, "delta": {"content": '{"a'}, "finish_reason": "stop"}]})
    async with asking(tmp_path, [sse_head(), cut, CLOSE]) as (_, client):
        with pytest.raises(anthropic.InternalServerError):
            await client.messages.create(
                model=MODEL,
                max_tokens=5,
                messages=HELLO,
                tools=[{"name": "f", "input_schema": {"type": "object"}}],
                tool_choice={"type": "any"},
            )


async def test_the_engine_stops_when_the_user_leaves_a_stream(tmp_path: Path) -> None:
    async with asking(tmp_path, [sse_head(), token("I think"), HANG]) as (gateway, client):
        loop = asyncio.get_running_loop()
        async with client.messages.stream(model=MODEL, max_tokens=5, messages=HELLO) as stream:
            async for _ in stream.text_stream:
                break
            left_at = loop.time()
        await gateway.engine.left(1)
        assert gateway.engine.departures[0].at - left_at < ABORT_WITHIN_S
        assert await gateway.outcome(1) == "client_closed"
