"""Whatever chat answers, the Responses surface says the same, however the stream is cut and whoever reads it."""

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from confide.errors import InvalidRequest
from confide.protocol.chat import parse_chat
from confide.protocol.responses import ResponsesTranslation
from confide.protocol.responses_request import parse_responses
from confide.protocol.translation import Untranslatable
from responses_reading import checked_by_the_sdk, events_of, in_chat, response_checked_by_the_sdk, told

REQUEST = parse_responses(b'{"model":"m","input":"hi"}')
DONE = b"data: [DONE]\n\n"

texts = st.text(st.characters(codec="utf-8"), max_size=12)
names = st.text("abc_", min_size=1, max_size=6)
pieces = st.lists(texts, max_size=4)


def translation() -> ResponsesTranslation:
    return ResponsesTranslation(REQUEST, id="resp_" + "0f" * 16, created=1, model="m")


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, list[bytes], dict[str, Any]]:
    """One answer of chat: buffered, as the events of its stream in one of many ways, and what it says."""
    reasoning, content, refusal = draw(pieces), draw(pieces), draw(pieces)
    count = draw(st.integers(0, 3))
    calls = [(f"call_{index}", draw(names), draw(pieces)) for index in range(count)]
    reason = draw(st.sampled_from(["tool_calls" if calls else "stop", "length", "content_filter"]))
    usage = draw(st.none() | st.tuples(st.integers(0, 9999), st.integers(0, 9999)))
    message = {
        "role": "assistant",
        "content": "".join(content) if content else None,
        "refusal": "".join(refusal),
        "reasoning_content": "".join(reasoning),
        "tool_calls": [
            {"id": id, "type": "function", "function": {"name": name, "arguments": "".join(arguments)}}
            for id, name, arguments in calls
        ],
    }
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": draw(st.sampled_from(["", None]))}]
    deltas += [{"reasoning_content": piece} for piece in reasoning]
    deltas += [{"content": piece} for piece in content]
    deltas += [{"refusal": piece} for piece in refusal]
    for index, (id, name, arguments) in enumerate(calls):
        function = {"name": name, "arguments": ""}
        deltas.append({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]})
        deltas += [{"tool_calls": [{"index": index, "function": {"arguments": piece}}]} for piece in arguments]
    events = [event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}) for delta in deltas]
    events.append(event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}))
    counts = None if usage is None else {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    if counts is not None:
        events.append(event({"choices": [], "usage": counts}))
    if draw(st.booleans()):
        events.insert(draw(st.integers(0, len(events))), b": PROCESSING\n\n")
    body = {"choices": [{"index": 0, "message": message, "finish_reason": reason}], "usage": counts}
    told_calls = [(id, name, "".join(arguments)) for id, name, arguments in calls]
    says = {
        "message": {
            "content": "".join(content),
            "refusal": "".join(refusal),
            "reasoning_content": "".join(reasoning),
            "tool_calls": told_calls,
        },
        "finish_reason": reason,
        "usage": None if usage is None else (*usage, sum(usage)),
    }
    return json.dumps(body).encode(), [*events, DONE], says


def event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


def streamed(parts: list[bytes]) -> bytes:
    going = translation()
    return b"".join([*(going.feed(part) for part in parts), going.end()])


@given(answer=answers())
def test_there_and_back_again(answer: tuple[bytes, list[bytes], dict[str, Any]]) -> None:
    body, events, says = answer
    response = json.loads(translation().whole(body))
    response_checked_by_the_sdk(response)
    assert in_chat(response) == says

    received = events_of(streamed(events))
    checked_by_the_sdk(received)
    assert told(received) == response


@given(answer=answers(), data=st.data())
def test_any_split_gives_the_same_events(
    answer: tuple[bytes, list[bytes], dict[str, Any]], data: st.DataObject
) -> None:
    stream = b"".join(answer[1])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parts = [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])]
    assert streamed(parts) == streamed([stream])


@given(answer=answers())
def test_one_byte_at_a_time_gives_the_same_events(answer: tuple[bytes, list[bytes], dict[str, Any]]) -> None:
    stream = b"".join(answer[1])
    assert streamed([bytes([byte]) for byte in stream]) == streamed([stream])


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-1, 3)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "a", "stop", "f"])
)
members = st.sampled_from(
    [
        "choices",
        "index",
        "delta",
        "message",
        "content",
        "tool_calls",
        "function",
        "name",
        "id",
        "arguments",
        "finish_reason",
        "usage",
        "prompt_tokens",
        "error",
        "refusal",
        "reasoning",
    ]
)
anything = st.recursive(
    scalars, lambda below: st.lists(below, max_size=2) | st.dictionaries(members, below, max_size=3)
)
chunks = st.lists(anything, max_size=5).map(
    lambda each: b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in each)
)


def outcome(parts: list[bytes]) -> tuple[bytes, bool]:
    """What was told, and whether the stream was one. Any other exception fails the test."""
    going, sent = translation(), b""
    try:
        for part in parts:
            sent += going.feed(part)
        return sent + going.end(), True
    except Untranslatable:
        return sent + going.tail("broke", "upstream_error", 502), False


@given(stream=chunks | st.binary(max_size=60), cut=st.integers(0, 200))
def test_a_stream_that_is_none_ends_alike_wherever_it_is_cut(stream: bytes, cut: int) -> None:
    sent, is_one = outcome([stream[:cut], stream[cut:]])
    assert (sent, is_one) == outcome([stream])
    events = events_of(sent)
    checked_by_the_sdk(events)
    assert is_one is not (events[-1]["type"] == "error")


@given(body=anything.map(lambda each: json.dumps(each).encode()) | st.binary(max_size=40))
def test_a_buffered_answer_is_one_or_is_not(body: bytes) -> None:
    try:
        response_checked_by_the_sdk(json.loads(translation().whole(body)))
    except Untranslatable:
        return


VALID: dict[str, Any] = {
    "model": "m",
    "instructions": "i",
    "input": [
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "t"}, {"type": "input_image", "image_url": "https://a"}],
        },
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "s"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "o", "annotations": []}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "r"},
    ],
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}],
    "tool_choice": {"type": "function", "name": "f"},
    "text": {"format": {"type": "json_schema", "name": "x", "schema": {}}},
    "reasoning": {"effort": "low"},
    "metadata": {"a": "b"},
    "stream": True,
    "provider": {"aci_verified": True},
}


def ways(value: object, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(way for key, each in inner for way in ways(each, (*at, key)))]


def put(value: Any, at: tuple[Any, ...], new: object) -> Any:
    if not at:
        return new
    copy = value.copy()
    copy[at[0]] = put(value[at[0]], at[1:], new)
    return copy


any_json = st.recursive(
    scalars | st.text(st.characters(codec=None), max_size=5),
    lambda below: st.lists(below, max_size=2) | st.dictionaries(st.text(max_size=3), below, max_size=2),
)


@given(at=st.sampled_from(ways(VALID)), value=any_json)
def test_a_request_is_one_of_chat_or_is_refused(at: tuple[Any, ...], value: object) -> None:
    try:
        request = parse_responses(json.dumps(put(VALID, at, value)).encode())
    except InvalidRequest:
        return
    chat = parse_chat(request.chat_body())
    assert (chat.model, chat.stream, chat.provider) == (request.model, request.stream, request.provider)


@given(body=st.binary(max_size=60))
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    try:
        parse_responses(body)
    except InvalidRequest:
        return
