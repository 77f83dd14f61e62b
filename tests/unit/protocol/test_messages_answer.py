"""From answers of chat to messages, whole and as events (wire contract 2.6, 2.7, 3.5)."""

import json
from typing import Any

import pytest

from confide.protocol.messages_errors import messages_error, messages_tail
from confide.protocol.messages_request import parse_messages
from confide.protocol.messages_translation import MessagesTranslation
from confide.protocol.translation import Untranslatable

ID = "msg_00112233445566778899aabbccddeeff"
CANARY = "canary-b7f2"
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
COUNTED = {"input_tokens": 9, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 2}
NOTHING = dict.fromkeys(COUNTED, 0)
DONE = b"data: [DONE]\n\n"


def translation(*stops: str) -> MessagesTranslation:
    asked = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "a"}], "stop_sequences": stops}
    return MessagesTranslation(parse_messages(json.dumps(asked).encode()), id=ID, model="m")


def answer(message: dict[str, Any], finish: str | None = "stop", **more: Any) -> bytes:
    choice = {"index": 0, "message": message, "finish_reason": finish, **more}
    return json.dumps({"id": "chatcmpl-1", "choices": [choice], "usage": USAGE}).encode()


def whole(message: dict[str, Any], finish: str | None = "stop", *stops: str, **more: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(translation(*stops).whole(answer(message, finish, **more)))
    return document


def call(arguments: str, id: str = "c1", name: str = "f") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {} if delta is None else delta, "finish_reason": finish, **more}
    return b"data: " + json.dumps({"id": "x", "choices": [choice]}).encode() + b"\n\n"


def piece(index: int, arguments: str | None = None, **more: Any) -> dict[str, Any]:
    function = {"name": more.pop("name", None), "arguments": arguments}
    return {"tool_calls": [{"index": index, "function": function, **more}]}


def counts(usage: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"id": "x", "choices": [], "usage": usage}).encode() + b"\n\n"


def events(*parts: bytes, stops: tuple[str, ...] = (), is_ended: bool = True) -> list[dict[str, Any]]:
    """The events of a stream, each of which has the right framing."""
    made = translation(*stops)
    out = b"".join(made.feed(part) for part in parts) + (made.end() if is_ended else b"")
    found = []
    for raw in out.split(b"\n\n")[:-1]:
        kind, data = raw.split(b"\n")
        document = json.loads(data.removeprefix(b"data: "))
        assert kind == b"event: " + document["type"].encode()
        found.append(document)
    return found


def blocks(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The type of each block and what its deltas say, where one is open at a time and their numbers are in order."""
    said: list[tuple[str, str]] = []
    is_open = False
    for event in found:
        if event["type"] == "content_block_start":
            assert not is_open
            assert event["index"] == len(said)
            is_open = True
            said.append((event["content_block"]["type"], ""))
        elif event["type"] == "content_block_delta":
            assert is_open
            assert event["index"] == len(said) - 1
            delta = event["delta"]
            text = delta.get("text") or delta.get("thinking") or delta.get("partial_json")
            said[-1] = (said[-1][0], said[-1][1] + text)
        elif event["type"] == "content_block_stop":
            assert is_open
            assert event["index"] == len(said) - 1
            is_open = False
    assert not is_open
    return said


def test_a_message_has_all_that_the_contract_names() -> None:
    assert whole({"role": "assistant", "content": "Two."}) == {
        "id": ID,
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "Two."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": COUNTED,
    }


def test_thinking_comes_first_then_text_then_calls() -> None:
    message = {"reasoning_content": "hm", "content": "See:", "tool_calls": [call('{"a": 1.0}'), call(" ", "c2", "g")]}
    content = whole(message, "tool_calls")["content"]
    assert content == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "See:"},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1.0}},
        {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
    ]
    assert b'"input":{"a": 1.0}' in translation().whole(answer(message, "tool_calls"))


def test_reasoning_may_have_its_other_name_and_empty_text_is_no_block() -> None:
    assert whole({"reasoning": "hm", "content": ""})["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""}
    ]
    assert whole({"content": None, "tool_calls": None})["content"] == []


ENDS: list[tuple[dict[str, Any], str, dict[str, Any], str, str | None]] = [
    ({"content": "a"}, "stop", {}, "end_turn", None),
    ({"content": "a"}, "length", {}, "max_tokens", None),
    ({"content": "a"}, "content_filter", {}, "refusal", None),
    ({"refusal": "no"}, "stop", {}, "refusal", None),
    ({"tool_calls": [call("{}")]}, "tool_calls", {}, "tool_use", None),
    ({"tool_calls": [call("{}")]}, "stop", {}, "tool_use", None),
    ({"content": "a"}, "stop", {"stop_reason": "END"}, "stop_sequence", "END"),
    ({"content": "a"}, "stop", {"stop_reason": "other"}, "end_turn", None),
    ({"content": "a"}, "stop", {"stop_reason": 151_645}, "end_turn", None),
    ({"content": "a"}, "length", {"stop_reason": "END"}, "max_tokens", None),
]


@pytest.mark.parametrize(("message", "finish", "more", "reason", "sequence"), ENDS, ids=str)
def test_why_it_ended(
    message: dict[str, Any], finish: str, more: dict[str, Any], reason: str, sequence: str | None
) -> None:
    ended = whole(message, finish, "END", **more)
    assert (ended["stop_reason"], ended["stop_sequence"]) == (reason, sequence)
    delta = {name: value for name, value in message.items() if name != "tool_calls"}
    calls = [piece(0, "{}", id="c", name="f")] if "tool_calls" in message else []
    parts = [chunk(delta), *map(chunk, calls), chunk(finish=finish, **more)]
    assert events(*parts, stops=("END",))[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, NOTHING),
        ({}, NOTHING),
        (USAGE, COUNTED),
        (
            {**USAGE, "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": None},
            {**COUNTED, "input_tokens": 5, "cache_read_input_tokens": 4},
        ),
        (
            {**USAGE, "prompt_tokens_details": {"cached_tokens": 99}},
            {**COUNTED, "input_tokens": 0, "cache_read_input_tokens": 9},
        ),
        ({**USAGE, "prompt_tokens_details": {}, "completion_tokens_details": {}}, COUNTED),
        (
            {**USAGE, "completion_tokens_details": {"reasoning_tokens": 1}},
            {**COUNTED, "output_tokens_details": {"thinking_tokens": 1}},
        ),
    ],
    ids=str,
)
def test_what_was_counted(usage: dict[str, Any] | None, expected: dict[str, Any]) -> None:
    body = {**json.loads(answer({"content": "a"})), "usage": usage}
    assert json.loads(translation().whole(json.dumps(body).encode()))["usage"] == expected
    found = events(chunk({"content": "a"}), chunk(finish="stop"), *([] if usage is None else [counts(usage)]))
    assert found[0]["message"]["usage"] == NOTHING
    assert found[-2]["usage"] == expected


def test_a_call_that_the_limit_cut_is_left_out_and_others_must_be_whole() -> None:
    message = {"content": "See:", "tool_calls": [call('{"a":1}'), call('{"a"', "c2")]}
    assert [block["type"] for block in whole(message, "length")["content"]] == ["text", "tool_use"]
    for finish in ("tool_calls", "stop"):
        with pytest.raises(Untranslatable, match=r"tool_calls\[1\]"):
            whole(message, finish)


@pytest.mark.parametrize("arguments", ["[]", "null", '"x"', '{"a":}', "{}{}", "[" * 100_000])
def test_arguments_that_are_no_object_are_no_input(arguments: str) -> None:
    with pytest.raises(Untranslatable, match="arguments"):
        whole({"tool_calls": [call(arguments)]}, "tool_calls")
    with pytest.raises(Untranslatable, match="arguments"):
        events(chunk(piece(0, arguments, id="c", name="f")), chunk(finish="tool_calls"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"{}",
        b'{"choices":[]}',
        b'{"error":{"message":"' + CANARY.encode() + b'"}}',
        answer({"content": [CANARY]}),
        answer({"content": CANARY}, None),
        answer({"content": "a"}, CANARY),
        answer({"tool_calls": [{"id": None, "function": {"name": "f", "arguments": CANARY}}]}),
        b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}],"usage":{"prompt_tokens":-1}}',
    ],
)
def test_what_is_no_answer_of_chat_is_said_and_not_quoted(body: bytes) -> None:
    with pytest.raises(Untranslatable) as caught:
        translation().whole(body)
    assert CANARY not in str(caught.value)
    assert caught.value.__context__ is None


def test_the_events_of_a_text_come_in_order() -> None:
    found = events(
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Tw"}),
        b": PROCESSING\n\n",
        chunk({"role": "assistant", "content": "o."}),
        chunk({"content": None}),
        chunk(finish="stop"),
        counts(USAGE),
        DONE,
    )
    assert [event["type"] for event in found] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = found[0]["message"]
    assert start == {**whole({"content": ""}), "stop_reason": None, "usage": NOTHING}
    assert found[1] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert found[2] == {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Tw"}}
    assert found[-2] == {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": COUNTED,
    }


def test_text_leaves_as_it_comes() -> None:
    made = translation()
    assert b'"text":"a"' in made.feed(chunk({"content": "a"}))
    half = chunk({"content": "b"})
    assert made.feed(half[:20]) == b""
    assert b'"text":"b"' in made.feed(half[20:])


def test_thinking_text_and_calls_are_blocks_of_their_own() -> None:
    found = events(
        chunk({"reasoning_content": "h"}),
        chunk({"reasoning": "m"}),
        chunk({"content": "See:"}),
        chunk(piece(0, "", id="c1", name="f")),
        chunk(piece(0, '{"a":')),
        chunk(piece(0, "1}")),
        chunk(piece(1, "{}", id="c2", name="g")),
        chunk(finish="tool_calls"),
    )
    assert blocks(found) == [("thinking", "hm"), ("text", "See:"), ("tool_use", '{"a":1}'), ("tool_use", "{}")]
    starts = [event["content_block"] for event in found if event["type"] == "content_block_start"]
    assert starts[0] == {"type": "thinking", "thinking": "", "signature": ""}
    assert starts[2:] == [
        {"type": "tool_use", "id": "c1", "name": "f", "input": {}},
        {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
    ]


def test_calls_whose_pieces_are_mixed_come_one_after_the_other() -> None:
    found = events(
        chunk(piece(0, '{"a"', id="c1", name="f")),
        chunk(piece(1, '{"b"', id="c2", name="g")),
        chunk(piece(0, ":1", id="c1", name="f")),
        chunk({"content": "and"}),
        chunk(piece(1, ":2}")),
        chunk(piece(0, "}")),
        chunk(piece(0, "\n")),
        chunk(finish="tool_calls"),
    )
    assert blocks(found) == [("tool_use", '{"a":1}'), ("tool_use", '{"b":2}'), ("text", "and")]


def test_an_id_may_come_after_the_arguments_and_a_call_may_have_none() -> None:
    found = events(
        chunk({"tool_calls": [{"index": 0}]}),
        chunk(piece(0, "{}", name="f")),
        chunk(piece(0, None, id="c1")),
        chunk(piece(1, None, id="c2", name="g")),
        chunk(finish="stop"),
    )
    assert blocks(found) == [("tool_use", "{}"), ("tool_use", "")]
    assert found[-2]["delta"]["stop_reason"] == "tool_use"


def test_a_call_that_the_limit_cut_is_streamed_as_far_as_it_came() -> None:
    found = events(chunk(piece(0, '{"a":"Ro', id="c1", name="f")), chunk(finish="length"))
    assert blocks(found) == [("tool_use", '{"a":"Ro')]
    assert found[-2]["delta"]["stop_reason"] == "max_tokens"


def test_an_answer_of_nothing_has_no_block() -> None:
    assert [event["type"] for event in events(chunk(finish="stop"))] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]


def test_an_engine_that_does_not_count_its_calls_means_the_latest_or_by_an_id_a_new_one() -> None:
    first, second = call("{", "c1", "f"), call("{}", "c2", "g")
    more = {"function": {"arguments": "}"}}
    parts = [chunk({"tool_calls": [each]}) for each in (first, more, second)]
    found = events(*parts, chunk(finish="tool_calls"))
    assert blocks(found) == [("tool_use", "{}"), ("tool_use", "{}")]
    assert [each["content_block"]["name"] for each in found if each["type"] == "content_block_start"] == ["f", "g"]
    assert blocks(events(chunk({"tool_calls": [{**more, "id": "c1"}]}), is_ended=False)) == []


@pytest.mark.parametrize("lacking", [{"id": None}, {"function": None}, {"function": {"arguments": "{}"}}])
def test_a_call_without_an_id_or_a_name_is_none(lacking: dict[str, Any]) -> None:
    with pytest.raises(Untranslatable, match="no id or no name"):
        whole({"tool_calls": [call("{}") | lacking]}, "tool_calls")


BROKEN: list[list[bytes]] = [
    [],
    [DONE],
    [chunk({"content": "a"})],
    [chunk({"content": "a"}), chunk(finish="stop")[:-1]],
    [chunk({"content": "a"}), chunk(finish="stop"), b"data: x"],
    [b'data: {"error":{"message":"canary-b7f2"}}\n\n'],
    [b"data: canary-b7f2\n\n"],
    [b"data: \xff\n\n"],
    [chunk({"content": 5})],
    [chunk({"content": "a"}), chunk({"content": "b"}, "stop", index=1)],
    [chunk(finish="canary-b7f2")],
    [chunk({"tool_calls": [{"id": "c"}]})],
    [chunk(piece(0, "{}", id="c1")), chunk(finish="tool_calls")],
    [chunk(piece(0, "{}", name="f")), chunk(piece(1, "{}", id="c", name="f")), chunk(finish="tool_calls")],
    [chunk(piece(0, "{}", id="c1", name="f")), chunk(piece(0, "{}")), chunk(finish="tool_calls")],
    [chunk(piece(0, '{"a"}', id="c1", name="f")), chunk({"content": "a"}), chunk(finish="tool_calls")],
    [b"data: " + b"x" * (8 * 1024 * 1024 + 1)],
]


@pytest.mark.parametrize("parts", BROKEN, ids=lambda parts: str([part[:60] for part in parts]))
def test_a_stream_that_is_none_of_chats_does_not_end_as_whole(parts: list[bytes]) -> None:
    with pytest.raises(Untranslatable) as caught:
        events(*parts)
    assert CANARY not in str(caught.value)
    assert CANARY not in repr(caught.value.__context__)


def test_a_stream_that_broke_ends_in_an_error() -> None:
    tail = translation().tail("the model stopped", "upstream_error", 502)
    assert tail.startswith(b"\n\nevent: error\ndata: {")
    assert tail.endswith(b"}\n\n")
    assert json.loads(tail.partition(b"data: ")[2]) == {
        "type": "error",
        "error": {"type": "api_error", "message": "the model stopped"},
        "request_id": ID,
    }
    assert json.loads(messages_tail(504, "late").partition(b"data: ")[2])["request_id"] is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "api_error"),
        (504, "timeout_error"),
    ],
)
def test_errors_are_named_by_their_status(status: int, kind: str) -> None:
    said = json.loads(messages_error(status, "no", request_id="rcpt-1"))
    assert said == {"type": "error", "error": {"type": kind, "message": "no"}, "request_id": "rcpt-1"}


def test_the_member_at_fault_is_named_in_the_text() -> None:
    assert json.loads(messages_error(400, "must be 1", param="max_tokens"))["error"]["message"] == (
        "max_tokens: must be 1"
    )
    assert json.loads(messages_error(400, "max_tokens must be 1", param="max_tokens"))["error"]["message"] == (
        "max_tokens must be 1"
    )
