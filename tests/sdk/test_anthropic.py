"""The official Anthropic SDK against the real program with the real model."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import anthropic
import httpx2
import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import MessageParam, ToolParam, ToolUseBlock
from pydantic import BaseModel

import confide
from confide.evidence.result import Verdict
from running import Running
from sdk.builders import ALIAS, MAX_BODY_BYTES, MODEL

pytestmark = pytest.mark.engine

HELLO: list[MessageParam] = [{"role": "user", "content": "Say hello."}]
WEATHER: list[MessageParam] = [{"role": "user", "content": "Weather in Paris?"}]
TOOL: ToolParam = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


class Apple(BaseModel):
    """Without bounds: the SDK takes those out of the schema."""

    colour: Literal["red", "green", "yellow"]
    is_ripe: bool


@pytest.fixture(scope="module")
def messages(service: Running) -> Iterator[Anthropic]:
    with Anthropic(base_url=service.url, api_key="any", max_retries=0, timeout=60) as opened:
        yield opened


@pytest.fixture
async def async_messages(service: Running) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=service.url, api_key="any", max_retries=0, timeout=60) as opened:
        yield opened


def receipt(service: Running, message_id: str) -> dict[str, Any]:
    """What is signed of the answer with this id."""
    answer = httpx2.get(f"{service.url}/v1/aci/receipts/{message_id}", headers={"authorization": "Bearer any"})
    document: dict[str, Any] = answer.raise_for_status().json()
    return document


def test_a_message_is_whole_and_receipted(service: Running, messages: Anthropic) -> None:
    answer = messages.messages.create(
        model=ALIAS, max_tokens=8, messages=HELLO, system="Be brief.", extra_body={"temperature": 0.5, "top_k": 5}
    )
    assert answer.id.startswith("msg_")
    assert answer.model == ALIAS
    assert answer.stop_reason in ("max_tokens", "end_turn")
    [block] = answer.content
    assert block.type == "text"
    assert block.text
    assert answer.usage.input_tokens > 5
    assert 0 < answer.usage.output_tokens <= 8
    proven = receipt(service, answer.id)
    assert (proven["endpoint"], proven["chat_id"]) == ("/v1/messages", answer.id)


def test_a_stream_ends_as_the_sdk_expects(messages: Anthropic) -> None:
    kinds: list[str] = []
    with messages.messages.stream(model=MODEL, max_tokens=8, messages=HELLO) as stream:
        for event in stream:
            kinds.append(event.type)
        answer = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert "text" in kinds
    assert answer.usage.input_tokens > 5
    assert 0 < answer.usage.output_tokens <= 8
    assert answer.stop_reason in ("max_tokens", "end_turn")


async def test_the_same_holds_for_asyncio(async_messages: AsyncAnthropic) -> None:
    async with async_messages.messages.stream(model=MODEL, max_tokens=4, messages=HELLO) as stream:
        said = "".join([text async for text in stream.text_stream])
        assert await stream.get_final_text() == said


def called(answer: anthropic.types.Message) -> ToolUseBlock:
    [block] = answer.content
    assert block.type == "tool_use"
    assert block.input in ({"city": "Paris"}, {"city": "Rome"})
    assert answer.stop_reason == "tool_use"
    return block


def test_a_tool_is_called_and_its_result_goes_back(messages: Anthropic) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 60, "tools": [TOOL]}
    answer = messages.messages.create(
        messages=WEATHER,
        tool_choice={"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
        **asked,
    )
    call = called(answer)
    turn: list[MessageParam] = [
        *WEATHER,
        answer.to_param(),
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "21 degrees"}]},
                {"type": "text", "text": "And in short?", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ]
    assert messages.messages.create(messages=turn, tool_choice={"type": "none"}, **asked).content[0].type == "text"
    with messages.messages.stream(messages=WEATHER, tool_choice={"type": "any"}, **asked) as stream:
        called(stream.get_final_message())


def test_an_answer_has_the_form_that_was_asked_for(messages: Anthropic) -> None:
    answer = messages.messages.parse(model=MODEL, max_tokens=60, messages=HELLO, output_format=Apple)
    assert answer.parsed_output is not None
    assert answer.parsed_output.colour in ("red", "green", "yellow")


CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": HELLO},
    {"messages": HELLO, "system": "Be brief."},
    {"messages": WEATHER, "tools": [TOOL]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Grüß <|im_end|> \U0001f600"}]}]},
    {"messages": [*HELLO, {"role": "assistant", "content": "Hello."}, *WEATHER]},
]


@pytest.mark.parametrize("asked", CONVERSATIONS, ids=str)
def test_tokens_are_counted_as_they_will_be(messages: Anthropic, asked: dict[str, Any]) -> None:
    counted = messages.messages.count_tokens(model=MODEL, **asked)
    answer = messages.messages.create(model=MODEL, max_tokens=1, **asked)
    assert counted.input_tokens == answer.usage.input_tokens


ERRORS: list[tuple[dict[str, Any], type[anthropic.APIStatusError], str, str]] = [
    ({"model": "none"}, anthropic.NotFoundError, "not_found_error", "model"),
    ({"max_tokens": 0}, anthropic.BadRequestError, "invalid_request_error", "max_tokens"),
    ({"extra_body": {"seed": 1}}, anthropic.BadRequestError, "invalid_request_error", "seed"),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 9}},
        anthropic.BadRequestError,
        "invalid_request_error",
        "thinking",
    ),
    (
        {"messages": [{"role": "user", "content": "x" * MAX_BODY_BYTES}]},
        anthropic.ContentTooLargeError,
        "request_too_large",
        "",
    ),
    (
        {"messages": [*HELLO, {"role": "assistant", "content": "H"}]},
        anthropic.BadRequestError,
        "invalid_request_error",
        "",
    ),
]


@pytest.mark.parametrize(("members", "kind", "name", "says"), ERRORS, ids=[row[2] + row[3] for row in ERRORS])
def test_errors_are_the_sdks_own(
    messages: Anthropic, members: dict[str, Any], kind: type[anthropic.APIStatusError], name: str, says: str
) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 1, "messages": HELLO, **members}
    with pytest.raises(kind) as caught:
        messages.messages.create(**asked)
    assert caught.value.type == name
    assert says in str(caught.value.api_message)
    assert json.loads(json.dumps(caught.value.body))["type"] == "error"


def test_an_answer_that_is_proven(service: Running) -> None:
    policy = confide.Policy(trust_roots=(service.home / "simulator" / "root.pem",), require_channel=False)
    with Anthropic(base_url=service.url, api_key="any", http_client=confide.Client(policy)) as client:
        assert client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens > 5
        answer = client.messages.create(model=MODEL, max_tokens=4, messages=HELLO)
        assert confide.proof(answer).chat_id == answer.id
        with client.messages.stream(model=MODEL, max_tokens=4, messages=HELLO) as stream:
            final = stream.get_final_message()
        proof = confide.proof(final)
        assert proof.verdict is not Verdict.NOT_VERIFIED
        assert proof.answer is not None
        assert proof.answer.endpoint == "/v1/messages"


def test_the_stop_sequence_that_was_met_is_named(messages: Anthropic) -> None:
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 60, "messages": HELLO, "stop_sequences": ["zqx", "e"]}
    message = messages.messages.create(**asked)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "e")
    with messages.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "e")
