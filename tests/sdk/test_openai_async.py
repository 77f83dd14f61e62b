"""The official SDK, asynchronous, against the real program (wire contract 2, 3.1)."""

import asyncio
import json

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, pydantic_function_tool
from openai.types.chat import ChatCompletionMessageFunctionToolCall
from openai.types.chat.chat_completion_message_function_tool_call import Function
from pydantic import BaseModel

from sdk.builders import (
    ALIAS,
    HELLO,
    MODEL,
    NAMED,
    WEATHER,
    WEATHER_TOOL,
    Fruit,
    function_call,
    tool_turn,
)

pytestmark = pytest.mark.engine


async def test_stream_gives_the_text_of_the_buffered_answer_with_the_same_seed(async_client: AsyncOpenAI) -> None:
    create = async_client.chat.completions.create
    buffered = await create(model=MODEL, messages=HELLO, max_tokens=12, seed=5)
    stream = await create(
        model=MODEL, messages=HELLO, max_tokens=12, seed=5, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == buffered.choices[0].message.content
    assert last.choices == []
    assert last.usage == buffered.usage


async def test_more_requests_than_slots_are_all_answered(async_client: AsyncOpenAI) -> None:
    create = async_client.chat.completions.create
    no_end = {"2": -100}  # the token that ends SmolLM2's turn: by chance an answer is shorter than its limit
    completions = await asyncio.gather(
        *(create(model=MODEL, messages=HELLO, max_tokens=4, logit_bias=no_end) for _ in range(8))
    )
    assert [completion.choices[0].finish_reason for completion in completions] == ["length"] * 8
    assert len({completion.id for completion in completions}) == 8


async def test_choices_of_one_stream_are_told_apart_by_their_index(async_client: AsyncOpenAI) -> None:
    stream = await async_client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=8, seed=11, n=2, stream=True
    )
    choices = [chunk.choices[0] async for chunk in stream]
    texts = []
    for index in range(2):
        own = [choice for choice in choices if choice.index == index]
        assert [choice.delta.role for choice in own] == ["assistant"] + [None] * (len(own) - 1)
        assert [choice.finish_reason for choice in own] == [None] * (len(own) - 1) + ["length"]
        texts.append("".join(choice.delta.content or "" for choice in own))
    assert len({choice.index for choice in choices}) == 2
    assert texts[0] != texts[1]


async def test_named_function_is_called(async_client: AsyncOpenAI) -> None:
    completion = await async_client.chat.completions.create(
        model=MODEL, messages=WEATHER, tools=[WEATHER_TOOL], tool_choice=NAMED, max_tokens=60
    )
    call = function_call(completion)
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


async def test_streamed_answer_to_a_tool_continues_the_turn(async_client: AsyncOpenAI) -> None:
    call = ChatCompletionMessageFunctionToolCall(
        id="call-1", type="function", function=Function(name="get_weather", arguments='{"city":"Paris"}')
    )
    stream = await async_client.chat.completions.create(
        model=MODEL, messages=tool_turn(call), tools=[WEATHER_TOOL], tool_choice="auto", max_tokens=12, stream=True
    )
    deltas = [chunk.choices[0].delta async for chunk in stream]
    assert any(delta.content or delta.tool_calls for delta in deltas)


async def test_streamed_tool_call_is_put_together_by_the_sdk(async_client: AsyncOpenAI) -> None:
    class GetWeather(BaseModel):
        is_forecast: bool

    async with async_client.chat.completions.stream(
        model=MODEL,
        messages=WEATHER,
        tools=[pydantic_function_tool(GetWeather)],
        tool_choice="required",
        max_tokens=60,
    ) as stream:
        completion = await stream.get_final_completion()
    [call] = completion.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, GetWeather)


async def test_structured_answer_parses_into_its_model(async_client: AsyncOpenAI) -> None:
    completion = await async_client.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": "Describe an apple."}], response_format=Fruit, max_tokens=60
    )
    assert isinstance(completion.choices[0].message.parsed, Fruit)


async def test_models_are_listed_and_found_by_an_id_with_a_slash(async_client: AsyncOpenAI) -> None:
    assert [model.id async for model in async_client.models.list()] == [MODEL, ALIAS]
    assert (await async_client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(NotFoundError, match="no such model"):
        await async_client.models.retrieve("vendor/other")


async def test_raw_response_still_parses(async_client: AsyncOpenAI) -> None:
    raw = await async_client.chat.completions.with_raw_response.create(model=ALIAS, messages=HELLO, max_tokens=1)
    assert raw.parse().model == json.loads(raw.content)["model"] == ALIAS


async def test_schema_that_cannot_be_held_is_refused_before_a_stream_begins(async_client: AsyncOpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        await async_client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            stream=True,
            response_format={"type": "json_schema", "json_schema": {"name": "odd", "schema": {"not": {}}}},
        )
    assert caught.value.param == "response_format"
