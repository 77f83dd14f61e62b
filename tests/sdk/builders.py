"""What the tests of the official SDK ask for: ids, a question, a function, a response model."""

from typing import Literal

from openai.types.chat import (
    ChatCompletion,
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageFunctionToolCall,
    ChatCompletionMessageParam,
    ChatCompletionNamedToolChoiceParam,
)
from pydantic import BaseModel, Field

MODEL = "vendor/tiny"
ALIAS = "gpt-4o-mini"
EMBEDDING_MODEL = "vendor/vectors"
MAX_BODY_BYTES = 100_000
CONFIG = f"""
[server]
max_body_bytes = {MAX_BODY_BYTES}

[[model]]
id = "{MODEL}"
aliases = ["{ALIAS}"]
upstream_model = "smollm2-135m"
provider = "vendor"

[[model]]
id = "{EMBEDDING_MODEL}"
kind = "embeddings"
upstream_model = "all-minilm-l6-v2"
"""

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]
WEATHER: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Weather in Paris?"}]
# Every argument is one of few, so that a small model cannot ramble inside a string.
WEATHER_TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NAMED: ChatCompletionNamedToolChoiceParam = {"type": "function", "function": {"name": "get_weather"}}


class Fruit(BaseModel):
    """What a structured answer must hold."""

    colour: Literal["red", "green", "yellow"]
    is_ripe: bool
    pieces: int = Field(ge=1, le=9)


def tool_turn(call: ChatCompletionMessageFunctionToolCall) -> list[ChatCompletionMessageParam]:
    """The question, the call that the model made, and the function's answer to it."""
    function = call.function
    return [
        *WEATHER,
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": function.name, "arguments": function.arguments},
                }
            ],
        },
        {"role": "tool", "tool_call_id": call.id, "content": '{"temperature_c": 21}'},
    ]


def function_call(completion: ChatCompletion) -> ChatCompletionMessageFunctionToolCall:
    """The one call of an answer that is a call and nothing else."""
    choice = completion.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert call.type == "function"
    return call
