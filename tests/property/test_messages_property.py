"""Messages by way of chat: nothing is lost, wherever a stream is cut, and the official SDK reads all of it."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
from anthropic._models import validate_type
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import InvalidRequest
from confide.protocol.chat import parse_chat
from confide.protocol.messages_request import parse_messages
from confide.protocol.messages_translation import MessagesTranslation

ID = "msg_00112233445566778899aabbccddeeff"
STOPS = ["END", "###"]
REQUEST = parse_messages(
    json.dumps(
        {
            "model": "m",
            "max_tokens": 5,
            "messages": [{"role": "user", "content": "a"}],
            "stop_sequences": STOPS,
            "stream": True,
        }
    ).encode()
)
Draw = Callable[..., Any]
FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}

texts = st.text(st.characters(codec="utf-8"), max_size=12)
words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
names = st.text("abcXYZ_-09", min_size=1, max_size=8)
inputs = st.dictionaries(texts, st.none() | st.integers(-9, 9) | texts | st.lists(texts, max_size=2), max_size=3)
calls = st.lists(st.tuples(names, inputs), max_size=3)


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Any]:
    """A buffered answer of chat: its content, calls and end fit each other."""
    called = draw(calls)
    message: dict[str, Any] = {"role": "assistant", "content": draw(st.none() | texts)}
    if reasoning := draw(texts):
        message["reasoning_content"] = reasoning
    if called:
        message["tool_calls"] = [
            {"id": f"call-{index}", "type": "function", "function": {"name": name, "arguments": json.dumps(input)}}
            for index, (name, input) in enumerate(called)
        ]
    finish = "tool_calls" if called else draw(st.sampled_from(["stop", "length"]))
    met = draw(st.none() | st.sampled_from(STOPS)) if finish == "stop" else None
    prompt, completion = draw(st.integers(0, 999)), draw(st.integers(0, 999))
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "engine",
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "stop_reason": met}],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": draw(st.integers(0, prompt))},
        },
    }


def cut(draw: Draw, text: str) -> list[str]:
    points = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    return [text[begin:end] for begin, end in zip([0, *points], [*points, len(text)], strict=True)]


def streamed(draw: Draw, answer: dict[str, Any]) -> bytes:
    """The same answer as a stream. The pieces of its calls are mixed, as far as each call stays in order."""
    [choice] = answer["choices"]
    message = choice["message"]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": draw(st.sampled_from(["", None]))}]
    deltas += [{"reasoning_content": part} for part in cut(draw, message.get("reasoning_content", ""))]
    deltas += [{"content": part} for part in cut(draw, message["content"] or "")]
    waiting = [call_deltas(draw, index, call) for index, call in enumerate(message.get("tool_calls", []))]
    opened = [queue.pop(0) for queue in waiting]  # a call begins where its number says
    is_mixed = draw(st.booleans())
    deltas += opened if is_mixed else []
    for first, queue in zip(opened, list(waiting), strict=True):
        deltas += [] if is_mixed else [first, *queue]
    while is_mixed and any(waiting):
        deltas.append(draw(st.sampled_from([queue for queue in waiting if queue])).pop(0))
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    end = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"], "stop_reason": choice["stop_reason"]}
    chunks += [{"choices": [end]}, {"choices": [], "usage": answer["usage"]}]
    line = draw(st.sampled_from(["\n", "\r\n"]))
    comment = draw(st.sampled_from(["", ": PROCESSING" + line * 2]))
    parts = [f"data: {json.dumps(chunk)}{line}{line}{comment}" for chunk in chunks]
    return ("".join(parts) + f"data: [DONE]{line}{line}").encode()


def call_deltas(draw: Draw, index: int, call: dict[str, Any]) -> list[dict[str, Any]]:
    head = {"index": index, "id": call["id"], "type": "function", "function": {"name": call["function"]["name"]}}
    pieces = cut(draw, call["function"]["arguments"])
    return [{"tool_calls": [head]}] + [
        {"tool_calls": [{"index": index, "function": {"arguments": piece}}]} for piece in pieces
    ]


def translation() -> MessagesTranslation:
    return MessagesTranslation(REQUEST, id=ID, model="m")


def whole(answer: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(translation().whole(json.dumps(answer).encode()))
    return document


def fed(*parts: bytes) -> bytes:
    made = translation()
    return b"".join([*(made.feed(part) for part in parts), made.end()])


def chat_of(message: dict[str, Any]) -> dict[str, Any]:
    """What chat would have said, read off a message: the reference reader of the other direction."""
    said: dict[str, Any] = {"text": "", "reasoning": "", "calls": []}
    for block in message["content"]:
        if block["type"] == "tool_use":
            said["calls"].append((block["id"], block["name"], block["input"]))
        else:
            said["text" if block["type"] == "text" else "reasoning"] += block.get("text", "") + block.get(
                "thinking", ""
            )
    usage = message["usage"]
    prompt = usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]
    counted = (prompt, usage["cache_read_input_tokens"], usage["output_tokens"])
    return {**said, "finish": FINISH[message["stop_reason"]], "met": message["stop_sequence"], "counted": counted}


def said_by(answer: dict[str, Any]) -> dict[str, Any]:
    """The same of the chat answer itself."""
    [choice], usage = answer["choices"], answer["usage"]
    message = choice["message"]
    return {
        "text": message["content"] or "",
        "reasoning": message.get("reasoning_content", ""),
        "calls": [
            (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in message.get("tool_calls", [])
        ],
        "finish": choice["finish_reason"],
        "met": choice["stop_reason"],
        "counted": (
            usage["prompt_tokens"],
            usage["prompt_tokens_details"]["cached_tokens"],
            usage["completion_tokens"],
        ),
    }


@given(answers())
def test_a_message_says_all_that_the_answer_of_chat_says(answer: dict[str, Any]) -> None:
    message = whole(answer)
    validate_type(type_=Message, value=message)
    assert chat_of(message) == said_by(answer)


@given(answers(), st.data())
def test_the_events_say_what_the_whole_message_says(answer: dict[str, Any], data: st.DataObject) -> None:
    events = fed(streamed(data.draw, answer))
    message: Any = None
    buffers: dict[int, bytes] = {}
    for raw in events.split(b"\n\n")[:-1]:
        event: Any = validate_type(type_=RawMessageStreamEvent, value=json.loads(raw.partition(b"data: ")[2]))  # type: ignore[arg-type]
        message = accumulate_event(event=event, current_snapshot=message, json_bufs=buffers)
    assert json.loads(message.to_json(exclude_unset=True)) == {**whole(answer), "stop_details": None}  # the SDK's own


@given(answers(), st.data())
def test_the_events_are_the_same_wherever_the_stream_is_cut(answer: dict[str, Any], data: st.DataObject) -> None:
    stream = streamed(data.draw, answer)
    points = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parts = [stream[begin:end] for begin, end in zip([0, *points], [*points, len(stream)], strict=True)]
    assert fed(*parts) == fed(stream)


def test_every_split_point_of_a_stream_gives_the_same_events() -> None:
    deltas: list[dict[str, Any]] = [
        {"reasoning_content": "é"},
        {"content": "\U0001f600"},
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"a":'}}]},
        {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"}"}'}}]},
    ]
    chunks = [{"choices": [{"delta": delta}]} for delta in deltas] + [{"choices": [{"finish_reason": "tool_calls"}]}]
    stream = b"".join(b"data: %b\r\n\r\n" % json.dumps(chunk, ensure_ascii=False).encode() for chunk in chunks)
    stream += b": PROCESSING\n\ndata: [DONE]\n\n"
    expected = fed(stream)
    for at in range(len(stream) + 1):
        assert fed(stream[:at], stream[at:]) == expected
    assert fed(*(stream[at : at + 1] for at in range(len(stream)))) == expected


VALID: dict[str, Any] = {
    "model": "m",
    "max_tokens": 9,
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "t"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}},
                {"type": "image", "source": {"type": "url", "url": "https://a"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "h", "signature": ""},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "r", "is_error": True}]},
        {"role": "system", "content": "x"},
    ],
    "tools": [{"name": "f", "input_schema": {"type": "object"}, "strict": True}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "adaptive", "display": "omitted"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
    "stop_sequences": ["a"],
    "stream": True,
    "metadata": {"user_id": "u"},
    "provider": {"aci_verified": True},
}

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.sampled_from(["text", "tool", "f", "user"])
)
values = st.recursive(
    scalars,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=3), below, max_size=3),
    max_leaves=8,
)


def ways(value: object, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside `value`."""
    found = [at] if at else []
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        found += ways(member, (*at, key))
    return found


def put(document: Any, way: tuple[Any, ...], value: object) -> None:
    for key in way[:-1]:
        document = document[key]
    document[way[-1]] = value


def require_chat_takes(body: bytes) -> None:
    """What is accepted is a request of chat; any exception but a refusal fails the test."""
    try:
        request = parse_messages(body)
    except InvalidRequest:
        return
    made = request.chat_body()
    assert made == parse_messages(body).chat_body()
    chat = parse_chat(made)
    assert (chat.model, chat.stream, chat.stop) == (request.model, request.stream, request.stop_sequences)
    assert chat.include_usage is request.stream
    assert chat.provider == request.provider


@given(st.sampled_from(ways(VALID)), values, st.sampled_from(ways(VALID)), values)
def test_whatever_is_accepted_is_a_request_of_chat(
    way: tuple[Any, ...], value: object, other: tuple[Any, ...], second: object
) -> None:
    document = json.loads(json.dumps(VALID))
    put(document, way, value)
    require_chat_takes(json.dumps(document).encode())
    document = json.loads(json.dumps(VALID))
    put(document, other, second)
    document["messages"] = document["messages"] if isinstance(document["messages"], list) else VALID["messages"]
    require_chat_takes(msgspec.json.encode(document))


@given(st.binary(max_size=60) | texts.map(str.encode))
def test_whatever_bytes_come_are_parsed_or_refused(body: bytes) -> None:
    require_chat_takes(body)


@given(st.integers(0, 2_000), st.binary(max_size=3), st.integers(0, 9))
def test_a_damaged_request_is_parsed_or_refused(at: int, junk: bytes, gone: int) -> None:
    body = json.dumps(VALID).encode()
    at %= len(body)
    require_chat_takes(body[:at] + junk + body[at + gone :])
