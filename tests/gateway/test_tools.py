"""Tool calls through the whole service (wire contract 2.4, 2.6, 2.7): named, required, auto; buffered and streamed.

The engine writes text under a grammar; what a client sees of it must be the same calls wherever that text was cut.
"""

import json
import re
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI

from gateway_app import MODEL, ScriptedGateway, answering, chat, serving_scripted

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALL_ID = re.compile(r"chatcmpl-tool-[0-9a-f]{32}")
WEATHER_PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER_PARAMETERS}}
NOTE = {"type": "function", "function": {"name": "note", "description": "Keep it.", "parameters": {"type": "object"}}}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOTE, NOW]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path_factory.mktemp("home"), answering("Hi")) as gateway:
        yield gateway


def named(name: str) -> dict[str, object]:
    return {"type": "function", "function": {"name": name}}


def marked(name: str, arguments: str) -> str:
    """One call as the engine writes it in the auto form."""
    return f'<tool_call>\n{{"name":"{name}","arguments":{arguments}}}\n</tool_call>'


def calls_of(message: dict[str, Any]) -> list[tuple[str, str]]:
    """The calls of a buffered message as name and arguments; ids and types are checked here."""
    calls = message.get("tool_calls", [])
    assert all(set(call) == {"id", "type", "function"} and call["type"] == "function" for call in calls)
    assert all(CALL_ID.fullmatch(call["id"]) for call in calls)
    assert len({call["id"] for call in calls}) == len(calls)
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def put_together(wire: str) -> dict[str, Any]:
    """The message that the deltas of a stream add up to, with every rule of the order of 2.7 checked on the way."""
    assert wire.endswith("data: [DONE]\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in wire.split("\n\n")[:-2]]
    choices = [event["choices"][0] for event in events]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert choices[-1]["delta"] == {}
    assert all(choice["finish_reason"] is None for choice in choices[:-1])
    message: dict[str, Any] = {"role": "assistant", "content": "", "finish_reason": choices[-1]["finish_reason"]}
    for choice in choices[1:-1]:
        delta = choice["delta"]
        if "content" in delta:
            assert "tool_calls" not in message
            message["content"] += delta["content"]
        for call in delta.get("tool_calls", []):
            add_call(message.setdefault("tool_calls", []), call)
    return message


def add_call(calls: list[dict[str, Any]], delta: dict[str, Any]) -> None:
    index = delta.pop("index")
    if "id" in delta:
        assert index == len(calls)
        assert delta["function"]["arguments"] == ""
        calls.append(delta)
    else:
        assert index == len(calls) - 1
        assert set(delta) == {"function"}
        assert set(delta["function"]) == {"arguments"}
        calls[index]["function"]["arguments"] += delta["function"]["arguments"]


async def both_forms(gateway: ScriptedGateway, pieces: Sequence[str], **members: object) -> list[Any]:
    """Content, calls and finish reason of the same engine text, buffered and streamed."""
    gateway.follow(answering(*pieces))
    choice = (await gateway.post(**members)).json()["choices"][0]
    streamed = put_together((await gateway.post(stream=True, **members)).text)
    message = choice["message"]
    assert message["role"] == "assistant"
    return [
        (message["content"] or "", calls_of(message), choice["finish_reason"]),
        (streamed["content"], calls_of(streamed), streamed["finish_reason"]),
    ]


# Braces, quotes, markers and line ends inside strings, nested values, characters of two and four bytes.
TRICKY = '{"q":"}}]\\"{\\n</tool_call>\\\\","n":{"a":[{"b":{}}]},"u":"é🔒\u2028"}'

CASES: dict[str, tuple[dict[str, object], str, str, list[tuple[str, str]], str]] = {
    # name: (members, engine's text, content, calls, finish reason)
    "a named function": (
        {"tools": TOOLS, "tool_choice": named("get_weather")},
        '{"city":"Paris","days":3}',
        "",
        [("get_weather", '{"city":"Paris","days":3}')],
        "tool_calls",
    ),
    "a named function with tricky arguments": (
        {"tools": TOOLS, "tool_choice": named("note")},
        TRICKY,
        "",
        [("note", TRICKY)],
        "tool_calls",
    ),
    "a named function without parameters": (
        {"tools": TOOLS, "tool_choice": named("now")},
        "{}",
        "",
        [("now", "{}")],
        "tool_calls",
    ),
    "a required call": (
        {"tools": TOOLS, "tool_choice": "required"},
        '{"name":"get_weather","arguments":{"city":"a}b"}}',
        "",
        [("get_weather", '{"city":"a}b"}')],
        "tool_calls",
    ),
    "a required call with tricky arguments": (
        {"tools": TOOLS, "tool_choice": "required"},
        f'{{"name":"note","arguments":{TRICKY}}}',
        "",
        [("note", TRICKY)],
        "tool_calls",
    ),
    "a required call without parameters": (
        {"tools": [NOW], "tool_choice": "required"},
        '{"name":"now","arguments":{}}',
        "",
        [("now", "{}")],
        "tool_calls",
    ),
    "auto, text alone": ({"tools": TOOLS}, "No need to call.", "No need to call.", [], "stop"),
    "auto, nothing": ({"tools": TOOLS}, "", "", [], "stop"),
    "auto, text that begins like a call": (
        {"tools": TOOLS, "tool_choice": "auto"},
        "a < b, <tool, <tool_call> {} <tool_call",
        "a < b, <tool, <tool_call> {} <tool_call",
        [],
        "stop",
    ),
    "auto, one call": (
        {"tools": TOOLS},
        marked("get_weather", '{"city":"Rome"}'),
        "",
        [("get_weather", '{"city":"Rome"}')],
        "tool_calls",
    ),
    "auto, text before the call": (
        {"tools": TOOLS},
        "Let me look. <\n" + marked("note", TRICKY),
        "Let me look. <\n",
        [("note", TRICKY)],
        "tool_calls",
    ),
    "auto, two parallel calls": (
        {"tools": TOOLS},
        "Both:" + marked("get_weather", '{"city":"Rome"}') + "\n" + marked("get_weather", '{"city":"Oslo","days":1}'),
        "Both:",
        [("get_weather", '{"city":"Rome"}'), ("get_weather", '{"city":"Oslo","days":1}')],
        "tool_calls",
    ),
    "auto, three calls without a break between them": (
        {"tools": TOOLS},
        marked("now", "{}") + marked("note", TRICKY) + marked("now", "{}"),
        "",
        [("now", "{}"), ("note", TRICKY), ("now", "{}")],
        "tool_calls",
    ),
    "parallel calls forbidden, one made": (
        {"tools": TOOLS, "parallel_tool_calls": False},
        "One:" + marked("now", "{}"),
        "One:",
        [("now", "{}")],
        "tool_calls",
    ),
}


@pytest.mark.parametrize("name", CASES)
async def test_the_engines_text_becomes_calls_in_both_forms(gateway: ScriptedGateway, name: str) -> None:
    members, text, *expected = CASES[name]
    assert await both_forms(gateway, [text] if text else [], **members) == [tuple(expected)] * 2


@pytest.mark.parametrize(
    "name",
    [
        "a named function with tricky arguments",
        "a required call with tricky arguments",
        "auto, text before the call",
        "auto, two parallel calls",
    ],
)
async def test_a_cut_anywhere_in_the_engines_text_changes_nothing(gateway: ScriptedGateway, name: str) -> None:
    members, text, *expected = CASES[name]
    for at in range(1, len(text)):
        gateway.follow(answering(text[:at], text[at:]))
        streamed = put_together((await gateway.post(stream=True, **members)).text)
        assert [streamed["content"], calls_of(streamed), streamed["finish_reason"]] == expected, at


@pytest.mark.parametrize("name", CASES)
async def test_a_character_at_a_time_changes_nothing(gateway: ScriptedGateway, name: str) -> None:
    members, text, *expected = CASES[name]
    assert await both_forms(gateway, list(text), **members) == [tuple(expected)] * 2


ARGUMENTS = st.dictionaries(
    st.text(st.sampled_from('ab"\\}{<>/\n'), max_size=4),
    st.recursive(
        st.none() | st.integers(0, 9) | st.text(st.sampled_from('}{"\\<tool_cal>/\n é🔒'), max_size=12), st.lists
    ),
    max_size=3,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(arguments=st.lists(ARGUMENTS, min_size=1, max_size=3), data=st.data())
async def test_any_arguments_survive_any_cuts(
    gateway: ScriptedGateway, arguments: list[dict[str, object]], data: st.DataObject
) -> None:
    written = [json.dumps(each, ensure_ascii=False, separators=(",", ":")) for each in arguments]
    text = "So: " + "\n".join(marked("note", each) for each in written)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    expected = ("So: ", [("note", each) for each in written], "tool_calls")
    assert await both_forms(gateway, pieces, tools=TOOLS) == [expected] * 2


async def test_a_buffered_answer_of_calls_alone_has_null_content(gateway: ScriptedGateway) -> None:
    gateway.follow(answering(marked("now", "{}")))
    message = (await gateway.post(tools=TOOLS)).json()["choices"][0]["message"]
    assert list(message) == ["role", "content", "tool_calls"]
    assert message["content"] is None


async def test_the_first_delta_of_a_call_is_exactly_the_documented_one(gateway: ScriptedGateway) -> None:
    gateway.follow(answering('{"ci', 'ty":"Rome"}'))
    wire = (await gateway.post(stream=True, tools=TOOLS, tool_choice=named("get_weather"))).text
    call_id = re.search(r'"tool_calls":\[\{"index":0,"id":"(chatcmpl-tool-[0-9a-f]{32})"', wire)
    assert call_id
    call = f'"index":0,"id":"{call_id[1]}","type":"function","function":{{"name":"get_weather","arguments":""}}'
    assert f'"delta":{{"tool_calls":[{{{call}}}]}},"finish_reason":null' in wire
    assert '"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\\"ci"}}]},"finish_reason":null' in wire


@pytest.mark.parametrize(
    ("members", "text", "arguments"),
    [
        ({"tool_choice": named("get_weather")}, '{"city":"Pa', '{"city":"Pa'),
        ({"tool_choice": "required"}, '{"name":"get_weather","arguments":{"city":"Pa', '{"city":"Pa'),
        ({"tool_choice": "auto"}, '<tool_call>\n{"name":"get_weather","arguments":{"city":"Pa', '{"city":"Pa'),
    ],
    ids=["named", "required", "auto"],
)
async def test_a_call_that_the_token_limit_cut_says_length(
    gateway: ScriptedGateway, members: dict[str, object], text: str, arguments: str
) -> None:
    gateway.follow(answering(text, reason="length"))
    choice = (await gateway.post(tools=TOOLS, **members)).json()["choices"][0]
    streamed = put_together((await gateway.post(stream=True, tools=TOOLS, **members)).text)
    assert choice["finish_reason"] == streamed["finish_reason"] == "length"
    assert calls_of(choice["message"]) == calls_of(streamed) == [("get_weather", arguments)]


async def test_each_of_n_choices_has_calls_of_its_own(gateway: ScriptedGateway) -> None:
    gateway.follow(answering(marked("now", "{}")), answering("Text."))
    choices = (await gateway.post(n=2, tools=TOOLS)).json()["choices"]
    assert sorted(choice["finish_reason"] for choice in choices) == ["stop", "tool_calls"]


async def test_the_official_sdk_puts_two_streamed_calls_together(gateway: ScriptedGateway) -> None:
    text = "Both: " + marked("get_weather", '{"city":"Rome"}') + "\n" + marked("note", TRICKY)
    gateway.follow(answering(*(text[at : at + 7] for at in range(0, len(text), 7))))
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any") as client:
        messages: Any = chat()["messages"]
        tools: Any = TOOLS
        async with client.chat.completions.stream(model=MODEL, messages=messages, tools=tools) as stream:
            completion = await stream.get_final_completion()
    message = completion.choices[0].message
    assert message.content == "Both: "
    assert [(call.function.name, call.function.arguments) for call in message.tool_calls or []] == [
        ("get_weather", '{"city":"Rome"}'),
        ("note", TRICKY),
    ]


async def test_an_answer_and_its_results_continue_the_turn(gateway: ScriptedGateway) -> None:
    gateway.follow(answering(marked("get_weather", '{"city":"Rome"}')), answering("Sunny."))
    answer = (await gateway.post(tools=TOOLS)).json()["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": answer["tool_calls"][0]["id"], "content": "sun"}

    final = await gateway.post(messages=[{"role": "user", "content": "Weather?"}, answer, result], tools=TOOLS)

    assert final.json()["choices"][0]["message"]["content"] == "Sunny."
    shown = gateway.asked()["messages"]
    assert shown[1]["tool_calls"] == answer["tool_calls"]
    assert shown[2] == result


async def test_the_engine_is_shown_the_tools_and_bound_by_a_grammar(gateway: ScriptedGateway) -> None:
    gateway.follow(answering(marked("now", "{}")))
    await gateway.post(tools=TOOLS)
    asked = gateway.asked()
    assert [tool["function"]["name"] for tool in asked["chat_template_kwargs"]["tools"]] == [
        "get_weather",
        "note",
        "now",
    ]
    assert asked["chat_template_kwargs"]["tools"][0]["function"]["parameters"] == WEATHER_PARAMETERS
    assert "get_weather" in asked["grammar"]
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(asked)


async def test_with_tool_choice_none_the_engine_hears_of_no_tool(gateway: ScriptedGateway) -> None:
    gateway.follow(answering("Text with <tool_call>\n in it."))
    answer = await gateway.post(tools=TOOLS, tool_choice="none")
    assert answer.json()["choices"][0]["message"]["content"] == "Text with <tool_call>\n in it."
    assert not {"grammar", "chat_template_kwargs", "tools"} & set(gateway.asked())


LEAVES_THE_GRAMMAR: dict[str, tuple[dict[str, object], str]] = {
    "plain text for a named function": ({"tool_choice": named("get_weather")}, "The weather is fine."),
    "a wrong type": ({"tool_choice": named("get_weather")}, '{"city":7}'),
    "a missing member": ({"tool_choice": named("get_weather")}, '{"days":7}'),
    "a further member": ({"tool_choice": named("get_weather")}, '{"city":"x","country":"y"}'),
    "arguments that end early": ({"tool_choice": named("get_weather")}, '{"city":"x"'),
    "nothing for a named function": ({"tool_choice": named("get_weather")}, ""),
    "text after the arguments": ({"tool_choice": named("get_weather")}, '{"city":"x"} Done.'),
    "plain text for a required call": ({"tool_choice": "required"}, "The weather is fine."),
    "a function that is not there": ({"tool_choice": "required"}, '{"name":"rm","arguments":{}}'),
    "two required calls": ({"tool_choice": "required"}, '{"name":"now","arguments":{}}{"name":"now","arguments":{}}'),
    "arguments of another function": ({"tool_choice": "required"}, '{"name":"now","arguments":{"city":"x"}}'),
    "an unknown function between markers": ({}, marked("rm", "{}")),
    "wrong arguments between markers": ({}, "Well: " + marked("get_weather", '{"days":1}')),
    "a call that is not closed": ({}, '<tool_call>\n{"name":"now","arguments":{}}'),
    "a second call where one is allowed": ({"parallel_tool_calls": False}, marked("now", "{}") + marked("now", "{}")),
    "text after a call": ({}, marked("now", "{}") + " Done."),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAVES_THE_GRAMMAR)
@pytest.mark.parametrize("cut", [1000, 1], ids=["at once", "by character"])
async def test_calls_that_break_the_schema_are_never_passed_off_as_complete(
    gateway: ScriptedGateway, name: str, cut: int
) -> None:
    members, text = LEAVES_THE_GRAMMAR[name]
    gateway.follow(answering(*(text[at : at + cut] for at in range(0, len(text), cut))))

    buffered = await gateway.post(tools=TOOLS, **members)
    streamed = await gateway.post(stream=True, tools=TOOLS, **members)

    assert buffered.status_code == 502
    assert buffered.json()["error"]["type"] == "upstream_error"
    if streamed.status_code == 200:
        assert streamed.text.endswith('"type":"upstream_error","code":502,"param":null}}\n\ndata: [DONE]\n\n')
    else:
        assert streamed.status_code == 502
    assert '"finish_reason":"' not in streamed.text


UNHOLDABLE: list[dict[str, object]] = [
    {"not": {"const": "CANARY"}},
    {"properties": {"CANARY": {"type": "array", "uniqueItems": True}}},
    {"properties": {"CANARY": {"type": "strCANARY"}}},
    {"properties": {"CANARY": {"$ref": "https://CANARY.test/schema"}}},
    {"properties": {"CANARY": {"pattern": "(?=CANARY)", "type": "string"}}},
    {"properties": {"CANARY": {"enum": ["x" * 70_000]}}},
]


@pytest.mark.parametrize("parameters", UNHOLDABLE, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("choice", ["auto", "required", named("f")], ids=["auto", "required", "named"])
async def test_a_schema_that_cannot_be_held_is_refused(
    gateway: ScriptedGateway, parameters: dict[str, object], choice: object
) -> None:
    before = len(gateway.engine.requests)
    function = {"name": "f", "parameters": {"type": "object", **parameters}}
    answer = await gateway.post(tools=[{"type": "function", "function": function}], tool_choice=choice)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools"
    assert "CANARY" not in answer.text
    assert len(gateway.engine.requests) == before


@pytest.mark.parametrize("shape", [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x"}}])
async def test_a_forced_call_and_a_response_format_exclude_each_other(
    gateway: ScriptedGateway, shape: dict[str, object]
) -> None:
    answer = await gateway.post(tools=TOOLS, tool_choice="required", response_format=shape)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "response_format"
