"""The routes that take a prompt (wire contract 2, 3), with requests that work as they stand but for the model."""

from typing import Any

from confide.gateway.openapi import answers, answers_messages, answers_responses, members
from confide.gateway.openapi.documents import StreamError
from confide.gateway.openapi.operations import (
    EVENT_STREAM,
    JSON,
    PROMPT_ERRORS,
    Access,
    Answer,
    Operation,
)
from confide.gateway.openapi.schemas import Either

MODEL, EMBEDDING_MODEL = "confide/smollm2-135m", "confide/all-minilm-l6-v2"
INFERENCE = "Inference"
RECEIPTED = ("X-Receipt-Id", "X-E2EE-Applied")
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Say hello."}]
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: dict[str, Any] = {"name": "weather", "description": "The weather of a city.", "parameters": CITY}

CHAT = Operation(
    method="post",
    path=members.CHAT.endpoint,
    id="createChatCompletion",
    tag=INFERENCE,
    summary="Chat, buffered or streamed",
    description="OpenAI's chat completions. A stream is made of `data:` events and ends by `data: [DONE]`; "
    "one that breaks has an error event before it.",
    access=Access.KEY,
    namespace="chat",
    body=members.CHAT,
    examples={
        "hello": {"model": MODEL, "messages": HELLO, "max_tokens": 40},
        "stream": {
            "model": MODEL,
            "messages": HELLO,
            "max_tokens": 40,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        "tool": {
            "model": MODEL,
            "messages": [{"role": "user", "content": "How is the weather in Oslo?"}],
            "tools": [{"type": "function", "function": WEATHER}],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
            "max_tokens": 80,
        },
        "json_schema": {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Name a city."}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}},
            "max_tokens": 80,
        },
    },
    answers=(Answer(JSON, answers.ChatCompletion), Answer(EVENT_STREAM, Either(answers.ChatChunk, StreamError))),
    errors=PROMPT_ERRORS,
    headers=RECEIPTED,
)
COMPLETIONS = Operation(
    method="post",
    path=members.COMPLETIONS.endpoint,
    id="createCompletion",
    tag=INFERENCE,
    summary="Text that goes on where a prompt ends",
    description="OpenAI's older completions, without turns and tools. A stream ends as that of chat does.",
    access=Access.KEY,
    namespace="completions",
    body=members.COMPLETIONS,
    examples={
        "text": {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 40},
        "stream": {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 40, "stream": True},
    },
    answers=(
        Answer(JSON, answers.TextCompletion),
        Answer(EVENT_STREAM, Either(answers.TextCompletion, StreamError)),
    ),
    errors=PROMPT_ERRORS,
    headers=RECEIPTED,
)
RESPONSES = Operation(
    method="post",
    path=members.RESPONSES.endpoint,
    id="createResponse",
    tag=INFERENCE,
    summary="The Responses format; nothing is stored",
    description="OpenAI's responses, for every model that answers chat ([more](/docs/responses.md)). Each event of a "
    "stream has its type in an `event:` line too; the last is `response.completed` or `response.incomplete`, of a "
    "stream that broke `error`.",
    access=Access.KEY,
    namespace="responses",
    body=members.RESPONSES,
    examples={
        "hello": {"model": MODEL, "input": "Say hello.", "max_output_tokens": 40},
        "stream": {"model": MODEL, "input": "Say hello.", "max_output_tokens": 40, "stream": True},
    },
    answers=(
        Answer(JSON, answers_responses.Response),
        Answer(EVENT_STREAM, Either(*answers_responses.EVENTS), is_named=True),
    ),
    errors=PROMPT_ERRORS,
    headers=RECEIPTED,
)
MESSAGES = Operation(
    method="post",
    path=members.MESSAGES.endpoint,
    id="createMessage",
    tag=INFERENCE,
    summary="Anthropic's Messages",
    description="For every model that answers chat ([more](/docs/messages.md)). Each event of a stream has its type in "
    "an `event:` line too; the last is `message_stop`, of a stream that broke `error`.",
    access=Access.KEY,
    namespace="messages",
    body=members.MESSAGES,
    examples={
        "hello": {"model": MODEL, "max_tokens": 40, "messages": HELLO},
        "stream": {"model": MODEL, "max_tokens": 40, "messages": HELLO, "stream": True},
    },
    answers=(
        Answer(JSON, answers_messages.MessageAnswer),
        Answer(EVENT_STREAM, answers_messages.MessageEvent, is_named=True),
    ),
    errors=PROMPT_ERRORS,
    error_shape="messages",
    headers=RECEIPTED,
)
COUNT_TOKENS = Operation(
    method="post",
    path=members.COUNT_TOKENS.endpoint,
    id="countTokens",
    tag=INFERENCE,
    summary="The tokens of a prompt",
    description="Exactly what the embedded engine would count, or what an upstream says that speaks Messages itself; "
    "for other models it is refused ([more](/docs/messages.md)). Nothing is generated, and there is no receipt.",
    access=Access.KEY,
    namespace="messages",
    body=members.COUNT_TOKENS,
    examples={"hello": {"model": MODEL, "messages": HELLO}},
    answers=(Answer(JSON, answers_messages.TokenCount),),
    errors=PROMPT_ERRORS,
    error_shape="messages",
)
EMBEDDINGS = Operation(
    method="post",
    path=members.EMBEDDINGS.endpoint,
    id="createEmbedding",
    tag=INFERENCE,
    summary="Vectors of texts",
    description="OpenAI's embeddings, of the models that `/v1/embeddings/models` lists ([more](/docs/embeddings.md)). "
    "The answer has no `id`: its receipt is found by `X-Receipt-Id`.",
    access=Access.KEY,
    namespace="embeddings",
    body=members.EMBEDDINGS,
    examples={"texts": {"model": EMBEDDING_MODEL, "input": ["first text", "second text"]}},
    answers=(Answer(JSON, answers.Embeddings),),
    errors=PROMPT_ERRORS,
    headers=RECEIPTED,
)
INFERENCE_OPERATIONS = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, COUNT_TOKENS, EMBEDDINGS)
