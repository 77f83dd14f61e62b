"""From answers of chat to responses and their events (wire contract 3.4)."""

import json
from typing import Any

import pytest

from confide.protocol.chat_answer import read_answer
from confide.protocol.responses import ResponsesTranslation, error_event, new_response_id
from confide.protocol.responses_request import parse_responses
from confide.protocol.translation import Untranslatable
from responses_reading import checked_by_the_sdk, events_of, response_checked_by_the_sdk, told

OWN = "ab" * 16
ID = f"resp_{OWN}"
DONE = b"data: [DONE]\n\n"
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
CANARY = "canary-b7f2"


def translation(**members: Any) -> ResponsesTranslation:
    request = parse_responses(json.dumps({"model": "m", "input": "hi", **members}).encode())
    return ResponsesTranslation(request, id=ID, created=1780000000, model="m")


def answer(message: Any = None, finish_reason: Any = "stop", **members: Any) -> bytes:
    choice = {
        "index": 0,
        "message": message or {"role": "assistant", "content": "Two."},
        "finish_reason": finish_reason,
    }
    return json.dumps({"id": "chatcmpl-1", "choices": [choice], **members}).encode()


def chunk(delta: Any, finish_reason: Any = None, **members: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: %b\n\n" % json.dumps({"id": "x", "choices": [choice], **members}).encode()


def piece(index: int | None = 0, id: str | None = None, **function: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]}


def whole(body: bytes, **members: Any) -> dict[str, Any]:
    response: dict[str, Any] = json.loads(translation(**members).whole(body))
    response_checked_by_the_sdk(response)
    return response


def streamed(*parts: bytes, **members: Any) -> list[dict[str, Any]]:
    going = translation(stream=True, **members)
    events = events_of(b"".join([*(going.feed(part) for part in parts), going.end()]))
    checked_by_the_sdk(events)
    told(events)
    return events


def output_of(*parts: bytes) -> list[dict[str, Any]]:
    output: list[dict[str, Any]] = streamed(*parts)[-1]["response"]["output"]
    return output


USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}


def test_a_buffered_answer() -> None:
    assert whole(answer(usage=USAGE)) == {
        "id": ID,
        "object": "response",
        "created_at": 1780000000,
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": "m",
        "output": [
            {
                "type": "message",
                "id": f"msg_{OWN}00",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "Two.", "annotations": []}],
            }
        ],
        "usage": {
            "input_tokens": 9,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 11,
        },
        "previous_response_id": None,
        "store": False,
        "truncation": "disabled",
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "reasoning": {"effort": None, "summary": None},
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
    }


def test_the_request_is_echoed_but_for_who_asks() -> None:
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True, "description": None}
    echoed = {
        "instructions": "be brief",
        "max_output_tokens": 64,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low", "summary": "auto"},
        "temperature": 0.5,
        "text": {"format": schema, "verbosity": "low"},
        "tool_choice": {"type": "function", "name": "f"},
        "tools": [TOOL | {"description": None, "strict": None}],
        "top_p": 0.25,
    }
    response = whole(answer(), **echoed, store=True, user=CANARY, safety_identifier=CANARY, prompt_cache_key=CANARY)
    assert {name: response[name] for name in echoed} == echoed
    assert response["store"] is False
    assert CANARY not in json.dumps(response)
    text_only = whole(answer(), text={"verbosity": "high"})
    assert text_only["text"] == {"format": {"type": "text"}, "verbosity": "high"}


def test_the_events_of_an_answer_in_their_order() -> None:
    events = streamed(
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "hm"}),
        chunk({"content": "Tw"}) + chunk({"content": "o."}),
        chunk(piece(id="call_1", name="f", arguments="")),
        chunk(piece(arguments='{"a":')) + chunk(piece(arguments="1}")),
        chunk({}, "tool_calls"),
        b'data: {"choices":[],"usage":' + json.dumps(USAGE).encode() + b"}\n\n",
        DONE,
    )
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    output = events[-1]["response"]["output"]
    assert [item["id"] for item in output] == [f"rs_{OWN}00", f"msg_{OWN}01", f"fc_{OWN}02"]
    assert (output[2]["call_id"], output[2]["name"], output[2]["arguments"]) == ("call_1", "f", '{"a":1}')
    assert events[-1]["response"]["usage"]["total_tokens"] == 11


@pytest.mark.parametrize(
    ("reason", "status", "details"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        (None, "completed", None),
        ("length", "incomplete", {"reason": "max_output_tokens"}),
        ("content_filter", "incomplete", {"reason": "content_filter"}),
    ],
)
def test_why_an_answer_ended(reason: str | None, status: str, details: Any) -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}]
    message = {"content": "Two", "tool_calls": calls}
    response = whole(answer(message, reason))
    assert (response["status"], response["incomplete_details"]) == (status, details)
    assert [item["status"] for item in response["output"]] == ["completed", status]
    *_, last = streamed(chunk({"content": "Two"}), chunk({"tool_calls": [{"index": 0, **calls[0]}]}), chunk({}, reason))
    assert last["type"] == f"response.{status}"
    assert last["response"] == response


def test_a_refusal_is_a_part_of_the_message() -> None:
    parts = [{"type": "output_text", "text": "Well.", "annotations": []}, {"type": "refusal", "refusal": "No."}]
    assert whole(answer({"content": "Well.", "refusal": "No."}))["output"][0]["content"] == parts
    events = streamed(chunk({"content": "Well."}), chunk({"refusal": "N"}), chunk({"refusal": "o."}, "stop"))
    assert events[-1]["response"]["output"][0]["content"] == parts
    assert [event["content_index"] for event in events if event["type"] == "response.refusal.delta"] == [1, 1]


def test_text_after_a_call_is_another_message() -> None:
    output = output_of(chunk({"content": "a"}), chunk(piece(id="c", name="f", arguments="{}")), chunk({"content": "b"}))
    assert [item["type"] for item in output] == ["message", "function_call", "message"]
    assert len({item["id"] for item in output}) == 3


CALLS: dict[str, list[Any]] = {
    "as documented": [piece(id="c", name="fun", arguments=""), piece(arguments="{"), piece(arguments="}")],
    "all at once": [piece(id="c", name="fun", arguments="{}")],
    "the name in pieces": [piece(id="c", name="f"), piece(name="un"), piece(arguments="{}")],
    "the name repeated": [
        piece(id="c", name="fun"),
        piece(id="c", name="fun", arguments="{"),
        piece(name="fun", arguments="}"),
    ],
    "not counted": [piece(None, "c", name="fun", arguments="{"), piece(None, arguments="}")],
    "counted late": [piece(None, "c", name="fun", arguments="{"), piece(arguments="}")],
    "empty ids and names": [piece(id="c", name="fun"), piece(id="", name="", arguments="{}")],
    "a function that is null": [
        piece(id="c", name="fun"),
        {"tool_calls": [{"index": 0, "function": None}]},
        piece(arguments="{}"),
    ],
    "no calls in between": [piece(id="c", name="fun"), {"tool_calls": []}, {"tool_calls": None}, piece(arguments="{}")],
}


@pytest.mark.parametrize("deltas", list(CALLS.values()), ids=list(CALLS))
def test_engines_give_calls_in_many_ways(deltas: list[Any]) -> None:
    [call] = output_of(*map(chunk, deltas))
    assert (call["call_id"], call["name"], call["arguments"]) == ("c", "fun", "{}")


def test_a_call_without_arguments_or_id() -> None:
    [first, second] = output_of(chunk(piece(name="f")), chunk(piece(1, name="g")))
    assert (first["arguments"], second["arguments"]) == ("", "")
    assert first["call_id"] != second["call_id"]
    assert [item["name"] for item in (first, second)] == ["f", "g"]


def test_calls_that_are_all_counted_as_the_first() -> None:
    output = output_of(chunk(piece(id="a", name="f", arguments="{}")), chunk(piece(id="b", name="f", arguments="[]")))
    assert [(item["call_id"], item["arguments"]) for item in output] == [("a", "{}"), ("b", "[]")]


VARIED = {
    "the role again and again": chunk({"role": "assistant", "content": "a"})
    + chunk({"role": "assistant", "content": "b"}, "stop"),
    "content that is null": chunk({"role": "assistant", "content": None})
    + chunk({"content": "ab"})
    + chunk({"content": None}, "stop"),
    "no delta": chunk({"content": "ab"}) + b'data: {"choices":[{"index":0,"finish_reason":"stop"}]}\n\n',
    "comments": b": PROCESSING\n\n" + chunk({"content": "ab"}, "stop") + b": PROCESSING\n\n" + DONE,
    "crlf": chunk({"content": "ab"}, "stop").replace(b"\n", b"\r\n"),
    "null for the choices": chunk({"content": "ab"}, "stop") + b'data: {"choices":null,"usage":null,"error":null}\n\n',
    "unknown members": chunk({"content": "ab", "x": {}}, "stop", system_fingerprint="f", timings={}),
    "reasoning that is no text": chunk({"content": "ab", "reasoning": {"a": 1}}, "stop"),
    "usage without counts": chunk({"content": "ab"}, "stop", usage={}),
    "no finish": chunk({"content": "ab"}) + DONE,
}


@pytest.mark.parametrize("stream", list(VARIED.values()), ids=list(VARIED))
def test_engines_differ_in_what_they_leave_out_and_repeat(stream: bytes) -> None:
    response = streamed(stream)[-1]["response"]
    assert [part["text"] for item in response["output"] for part in item["content"]] == ["ab"]
    assert (response["status"], response["usage"]) == ("completed", None)


def test_the_other_name_of_reasoning() -> None:
    [item] = whole(answer({"content": None, "reasoning": "hm"}))["output"]
    assert (item["type"], item["content"]) == ("reasoning", [{"type": "reasoning_text", "text": "hm"}])


def test_an_answer_of_nothing_has_no_items() -> None:
    assert whole(answer({"role": "assistant", "content": ""}))["output"] == []
    assert len(streamed(chunk({"role": "assistant", "content": ""}, "stop"))) == 3


def test_the_usage_that_came_last_counts_with_its_details() -> None:
    details = {
        "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": None},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    response = streamed(chunk({"content": "a"}, usage=USAGE), chunk({}, "stop", usage=USAGE | details))[-1]["response"]
    assert response["usage"]["input_tokens_details"] == {"cached_tokens": 4, "cache_write_tokens": 0}
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 1}


NO_ANSWERS = {
    "no JSON": b"<html>",
    "no UTF-8": b'{"choices":[{"message":{"content":"\xff"}}]}',
    "an error": b'{"error":{"message":"no"}}',
    "no choices": b'{"choices":[]}',
    "two choices": b'{"choices":[{"message":{}},{"message":{}}]}',
    "no message": b'{"choices":[{"index":0,"delta":{}}]}',
    "content of parts": answer({"content": [{"type": "text"}]}),
    "a call without a name": answer({"tool_calls": [{"id": "c"}]}),
    "the same call twice": answer({"tool_calls": [{"id": "c", "function": {"name": "f"}}] * 2}),
    "an unknown reason": answer(finish_reason="abort"),
    "an array": b"[]",
    "nested": b'{"x":' + b"[" * 100_000,
}


@pytest.mark.parametrize("body", list(NO_ANSWERS.values()), ids=list(NO_ANSWERS))
def test_what_is_no_answer_of_chat_is_told_apart(body: bytes) -> None:
    with pytest.raises(Untranslatable) as caught:
        translation().whole(body)
    assert caught.value.__context__ is None


NO_CHUNKS = {
    "no JSON": b"data: <html>\n\n",
    "an error": b'data: {"error":{"message":"no"}}\n\n',
    "another choice": b'data: {"choices":[{"index":1,"delta":{"content":"b"}}]}\n\n',
    "a name that changes": chunk(piece(id="c", name="f", arguments="{")) + chunk(piece(name="g")),
    "a call gone back to": chunk(piece(id="c", name="f", arguments="{"))
    + chunk(piece(1, "d", name="f"))
    + chunk(piece(0, "c", arguments="}")),
    "arguments of no call": chunk(piece(arguments="{}")),
}


@pytest.mark.parametrize("broken", list(NO_CHUNKS.values()), ids=list(NO_CHUNKS))
def test_what_came_before_a_chunk_that_is_none_is_told_first(broken: bytes) -> None:
    going = translation()
    events = events_of(going.feed(chunk({"content": "a"}) + broken))
    assert events[4]["type"] == "response.output_text.delta"
    with pytest.raises(Untranslatable):
        going.feed(DONE)
    with pytest.raises(Untranslatable):
        going.end()
    tail = going.tail("The backend stopped.", "upstream_error", 502)
    assert json.loads(tail.split(b"data: ")[1])["sequence_number"] == len(events)


def test_an_event_that_is_too_large_is_none() -> None:
    going = translation()
    events_of(going.feed(chunk({"content": "a"})))
    assert going.feed(b"data: " + b"x" * (16 * 1024 * 1024)) == b""
    with pytest.raises(Untranslatable):
        going.end()


def test_a_stream_of_nothing_is_no_answer() -> None:
    going = translation()
    assert going.feed(b": PROCESSING\n\n" + DONE) == b""
    with pytest.raises(Untranslatable):
        going.end()


def test_a_stream_that_ends_in_a_call_without_a_name_is_no_answer() -> None:
    going = translation()
    going.feed(chunk(piece(id="c")))
    with pytest.raises(Untranslatable):
        going.end()


def test_a_stream_with_an_unknown_reason_does_not_end() -> None:
    going = translation()
    going.feed(chunk({"content": "a"}, "abort"))
    with pytest.raises(Untranslatable):
        going.end()


@pytest.mark.parametrize(
    ("status", "code"), [(502, "server_error"), (429, "rate_limit_exceeded"), (400, "invalid_prompt")]
)
def test_how_a_stream_ends_that_broke(status: int, code: str) -> None:
    going = translation()
    sent = going.feed(chunk({"content": "a"}))
    tail = going.tail("The backend stopped.", "upstream_error", status)
    error = {"type": "error", "code": code, "message": "The backend stopped.", "param": None, "sequence_number": 5}
    assert tail == b"\n\nevent: error\ndata: %b\n\n" % json.dumps(error, separators=(",", ":")).encode()
    events = events_of(sent + tail)
    checked_by_the_sdk(events)


def test_a_stream_that_broke_before_its_first_event() -> None:
    tail = error_event("The backend stopped.", 502, sequence_number=0)
    assert translation().tail("The backend stopped.", "upstream_error", 502) == tail


def test_an_end_that_is_not_told_after_all_leaves_no_gap() -> None:
    going = translation()
    sent = going.feed(chunk({"content": "a"}, "stop"))
    going.end()
    events_of(sent + going.tail("The receipt could not be kept.", "internal_error", 500))


def test_new_ids() -> None:
    assert new_response_id(bytes(15) + b"\xab") == "resp_" + "00" * 15 + "ab"


def test_nothing_shows_the_answer() -> None:
    said, *_ = read_answer(answer({"content": CANARY}))
    assert CANARY not in repr(said)
