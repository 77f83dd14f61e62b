"""The official SDK, synchronous, against the real program (wire contract 2, 3.1).

What its users do on their first day.
"""

import hashlib
import json
import re

import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI, pydantic_function_tool
from openai.lib.streaming.chat import ContentDeltaEvent, FunctionToolCallArgumentsDoneEvent
from pydantic import BaseModel

from confide.protocol.signature import Algo, verify_text
from running import Running
from sdk.builders import (
    ALIAS,
    HELLO,
    MAX_BODY_BYTES,
    MODEL,
    NAMED,
    WEATHER,
    WEATHER_TOOL,
    Fruit,
    function_call,
    tool_turn,
)

pytestmark = pytest.mark.engine


def test_chat_answers_with_text_and_counts(client: OpenAI) -> None:
    completion = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8, seed=1)
    [choice] = completion.choices
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", completion.id)
    assert (completion.object, completion.model) == ("chat.completion", MODEL)
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert completion.usage is not None
    assert completion.usage.prompt_tokens > 0
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


def test_stream_gives_the_text_of_the_buffered_answer_with_the_same_seed(client: OpenAI) -> None:
    buffered = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=12, seed=5)
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=12, seed=5, stream=True)
    chunks = list(stream)
    assert all(len(chunk.choices) == 1 for chunk in chunks)  # published examples index choices[0] unguarded
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == buffered.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == buffered.choices[0].finish_reason


def test_usage_comes_in_a_last_chunk_of_its_own_when_asked_for(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=3, seed=1, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 3
    assert all(chunk.usage is None for chunk in chunks)


def test_one_seed_gives_one_answer(client: OpenAI) -> None:
    # One after the other: requests that run together change the last bits of each other's logits.
    first, second = (
        client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=12, seed=11) for _ in range(2)
    )
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.id != second.id


def test_choices_of_one_seed_differ(client: OpenAI) -> None:
    completion = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8, seed=11, n=2)
    texts = [choice.message.content for choice in completion.choices]
    assert [choice.index for choice in completion.choices] == [0, 1]
    assert texts[0] != texts[1]


def test_log_probabilities_are_there_for_each_token(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=4, seed=1, logprobs=True, top_logprobs=2
    )
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == completion.choices[0].message.content
    assert all(len(entry.top_logprobs) == 2 for entry in logprobs.content)


def test_named_function_is_called_with_an_id_and_arguments_under_its_schema(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model=MODEL, messages=WEATHER, tools=[WEATHER_TOOL], tool_choice=NAMED, max_tokens=60
    )
    call = function_call(completion)
    assert re.fullmatch(r"chatcmpl-tool-[0-9a-f]{32}", call.id)
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_answer_of_a_required_tool_continues_the_turn(client: OpenAI) -> None:
    asked = client.chat.completions.create(
        model=MODEL, messages=WEATHER, tools=[WEATHER_TOOL], tool_choice="required", max_tokens=60
    )
    answered = client.chat.completions.create(
        model=MODEL, messages=tool_turn(function_call(asked)), tools=[WEATHER_TOOL], tool_choice="auto", max_tokens=12
    )
    message = answered.choices[0].message
    assert message.content or message.tool_calls
    assert asked.usage is not None
    assert answered.usage is not None
    assert answered.usage.prompt_tokens > asked.usage.prompt_tokens  # the call and its answer were read


def test_streamed_tool_call_is_put_together_by_the_sdk(client: OpenAI) -> None:
    class GetWeather(BaseModel):
        is_forecast: bool

    tool = pydantic_function_tool(GetWeather)
    with client.chat.completions.stream(
        model=MODEL, messages=WEATHER, tools=[tool], tool_choice="required", max_tokens=60
    ) as stream:
        done = [event for event in stream if isinstance(event, FunctionToolCallArgumentsDoneEvent)]
        completion = stream.get_final_completion()
    [call] = completion.choices[0].message.tool_calls or []
    assert completion.choices[0].finish_reason == "tool_calls"
    assert isinstance(call.function.parsed_arguments, GetWeather)
    assert [(event.name, event.index) for event in done] == [("GetWeather", 0)]


def test_structured_answer_parses_into_its_model(client: OpenAI) -> None:
    completion = client.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": "Describe an apple."}], response_format=Fruit, max_tokens=60
    )
    assert isinstance(completion.choices[0].message.parsed, Fruit)


def test_streamed_structured_answer_parses_into_its_model(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": "Describe an apple."}], response_format=Fruit, max_tokens=60
    ) as stream:
        text = "".join(event.delta for event in stream if isinstance(event, ContentDeltaEvent))
        parsed = stream.get_final_completion().choices[0].message.parsed
    assert parsed == Fruit.model_validate_json(text)


def test_models_are_listed_and_found_by_an_id_with_a_slash(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, ALIAS]
    model = client.models.retrieve(MODEL)
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "vendor")
    assert client.models.retrieve(ALIAS).id == ALIAS


def test_alias_answers_under_its_own_name(client: OpenAI) -> None:
    assert client.chat.completions.create(model=ALIAS, messages=HELLO, max_tokens=1).model == ALIAS


@pytest.mark.parametrize("is_stream", [False, True], ids=["buffered", "streamed"])
def test_raw_bytes_that_the_sdk_saw_are_the_signed_ones(client: OpenAI, service: Running, is_stream: bool) -> None:
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=HELLO, max_tokens=3, stream=is_stream
    ) as raw:
        assert raw.headers["content-type"] == ("text/event-stream" if is_stream else "application/json")
        body, sent = b"".join(raw.iter_bytes()), raw.http_request.read()
    match = re.search(rb'"id":"(chatcmpl-[0-9a-f]{32})"', body)
    assert match is not None
    proof = client.get(f"/signature/{match[1].decode()}", cast_to=dict[str, str])
    assert proof["text"] == f"{hashlib.sha256(sent).hexdigest()}:{hashlib.sha256(body).hexdigest()}"
    verify_text(proof["text"], proof["signature"], proof["signing_address"], Algo.ECDSA)


def test_raw_response_still_parses(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, max_tokens=1)
    assert raw.status_code == 200
    assert raw.headers["x-e2ee-applied"] == "false"
    assert raw.parse().id == json.loads(raw.content)["id"]


def test_parameter_out_of_range_is_a_bad_request_that_names_it(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=HELLO, temperature=9)
    assert (caught.value.type, caught.value.param, caught.value.code) == ("invalid_request_error", "temperature", None)


def test_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.chat.completions.create(model="vendor/other", messages=HELLO)
    assert caught.value.code == "model_not_found"
    with pytest.raises(NotFoundError, match="no such model"):
        client.models.retrieve("vendor/other")


def test_body_over_the_limit_is_413_and_the_client_goes_on(client: OpenAI) -> None:
    with pytest.raises(APIStatusError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a" * MAX_BODY_BYTES}])
    assert (caught.value.status_code, caught.value.type) == (413, "invalid_request_error")
    assert client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1).choices


def test_prompt_longer_than_the_context_is_a_bad_request(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 9000}])
    assert caught.value.type == "invalid_request_error"
