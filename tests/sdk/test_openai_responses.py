"""The official SDK's Responses API: against the real program, before a scripted engine, and with every answer verified
(wire contract 3.4).
"""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import (
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    OpenAI,
)
from openai.types.responses import FunctionToolParam, ResponseFunctionToolCall, ResponseInputItemParam

import confide
from gateway_app import MODEL as SCRIPTED
from gateway_app import ScriptedGateway, answering, event, serving_scripted, token
from running import Running
from scripted import CLOSE, Script, sse_head
from sdk.builders import MODEL, Fruit

WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
CALL = '<tool_call>\n{"name":"get_weather","arguments":{"city":"Paris"}}\n</tool_call>'


def verifying(root: Path, **arguments: Any) -> confide.Policy:
    return confide.Policy(trust_roots=(root,), require_channel=False, **arguments)


# The real program.


@pytest.mark.engine
def test_a_response_has_text_and_counts(client: OpenAI) -> None:
    response = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=16, temperature=0)
    assert re.fullmatch(r"resp_[0-9a-f]{32}", response.id)
    assert response.output_text
    assert response.status in ("completed", "incomplete")
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens > 0


@pytest.mark.engine
def test_a_stream_gives_the_text_of_the_buffered_response(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": "Say hello.", "max_output_tokens": 16, "temperature": 0}
    buffered = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == buffered.output_text
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert events[-1].response.usage == buffered.usage


@pytest.mark.engine
def test_structured_output_is_parsed(client: OpenAI) -> None:
    response = client.responses.parse(
        model=MODEL, input="Describe an apple.", text_format=Fruit, max_output_tokens=100, temperature=0
    )
    assert isinstance(response.output_parsed, Fruit)


@pytest.mark.engine
def test_a_tool_is_called_and_its_result_taken(client: OpenAI) -> None:
    said: list[ResponseInputItemParam] = [{"role": "user", "content": "Weather in Paris?"}]
    response = client.responses.create(
        model=MODEL, input=said, tools=[WEATHER], tool_choice={"type": "function", "name": "get_weather"}
    )
    [call] = response.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    said += [call.to_dict(), {"type": "function_call_output", "call_id": call.call_id, "output": "12 C"}]  # type: ignore[list-item]  # the SDK's own answer
    assert client.responses.create(model=MODEL, input=said, tools=[WEATHER], max_output_tokens=16).id != response.id


@pytest.mark.engine
def test_every_response_is_verified(service: Running) -> None:
    with (
        confide.Client(policy=verifying(service.home / "simulator" / "root.pem")) as http,
        OpenAI(base_url=service.url + "/v1", api_key="any", max_retries=0, http_client=http) as client,
    ):
        response = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=16)
        assert confide.proof(response).chat_id == response.id
        *_, last = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=16, stream=True)
        assert last.type in ("response.completed", "response.incomplete")
        assert confide.proof(last.response).chat_id == last.response.id


# Before a scripted engine.


@asynccontextmanager
async def asking(home: Path, *scripts: Script) -> AsyncIterator[tuple[ScriptedGateway, AsyncOpenAI]]:
    async with (
        serving_scripted(home, *scripts) as gateway,
        AsyncOpenAI(base_url=gateway.url + "/v1", api_key="any", max_retries=0, timeout=20) as client,
    ):
        yield gateway, client


async def test_the_sdks_own_stream_gives_the_final_response(tmp_path: Path) -> None:
    thought = event({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": None}]})
    async with (
        asking(tmp_path, [sse_head(), thought, *answering("Look: ", CALL)[1:]]) as (_, client),
        client.responses.stream(model=SCRIPTED, input="Weather?", tools=[WEATHER]) as stream,
    ):
        kinds = {event.type async for event in stream}
        final = await stream.get_final_response()
    assert {"response.reasoning_text.delta", "response.output_text.delta", "response.completed"} <= kinds
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    [*_, call] = final.output
    assert call.type == "function_call"
    assert call.parsed_arguments == {"city": "Paris"}


async def test_a_conversation_goes_on_with_what_was_answered(tmp_path: Path) -> None:
    thought = event({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": None}]})
    async with asking(tmp_path, [sse_head(), thought, *answering("Look: ", CALL)[1:]]) as (gateway, client):
        response = await client.responses.create(model=SCRIPTED, input="Weather?", tools=[WEATHER], store=False)
        for answered in (response.output, [item.model_dump() for item in response.output]):
            said: list[Any] = [{"role": "user", "content": "Weather?"}, *answered]
            said.append(
                {"type": "function_call_output", "call_id": response.output[-1].to_dict()["call_id"], "output": "12 C"}
            )
            await client.responses.create(model=SCRIPTED, input=said, tools=[WEATHER])
            _, turn, result = gateway.asked()["messages"]
            assert turn["content"] == "Look: "
            assert turn["tool_calls"][0]["id"] == result["tool_call_id"]


async def test_what_goes_wrong_is_the_sdks_own_error(tmp_path: Path) -> None:
    async with asking(tmp_path, answering("Hi")) as (gateway, client):
        with pytest.raises(BadRequestError) as caught:
            await client.responses.create(model=SCRIPTED, input="a", previous_response_id="resp_1")
        assert caught.value.param == "previous_response_id"
        with pytest.raises(NotFoundError):
            await client.responses.create(model="vendor/other", input="a")
        with pytest.raises(NotFoundError):
            await client.responses.retrieve("resp_1")
        gateway.follow([CLOSE])
        with pytest.raises(InternalServerError):
            await client.responses.create(model=SCRIPTED, input="a")
        gateway.follow([sse_head(), token("half an ans"), CLOSE])
        events = [each async for each in await client.responses.create(model=SCRIPTED, input="a", stream=True)]
        *before, last = events
        assert [each.delta for each in before if each.type == "response.output_text.delta"] == ["half an ans"]
        assert last.type == "error"  # this SDK gives it to its user as an event
        assert (last.code, last.sequence_number) == ("server_error", len(before))
        await gateway.new_key()
        with pytest.raises(AuthenticationError):
            await client.responses.create(model=SCRIPTED, input="a")


async def test_the_last_event_is_held_back_until_it_is_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        policy = verifying(tmp_path / "simulator" / "root.pem")
        async with (
            confide.AsyncClient(policy) as http,
            AsyncOpenAI(base_url=gateway.url + "/v1", api_key="any", max_retries=0, http_client=http) as client,
        ):
            events = [each async for each in await client.responses.create(model=SCRIPTED, input="a", stream=True)]
            assert events[-1].type == "response.completed"
            assert confide.proof(events[-1].response).ok

            async def none(*_: object, **__: object) -> None:
                return None

            monkeypatch.setattr(gateway.store, "proof", none)
            seen: list[str] = []

            async def read() -> None:
                async for each in await client.responses.create(model=SCRIPTED, input="a", stream=True):
                    seen.append(each.type)

            with pytest.raises(confide.VerificationError):
                await read()
            assert "response.output_text.delta" in seen
            assert "response.completed" not in seen
