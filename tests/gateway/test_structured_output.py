"""Answers that must be JSON (wire contract 2.5): held to the schema, or refused, or failed; never passed off."""

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from gateway_app import ScriptedGateway, answering, serving_scripted

pytestmark = pytest.mark.asyncio(loop_scope="module")

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["v", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
TAIL = b'"type":"upstream_error","code":502,"param":null}}\n\ndata: [DONE]\n\n'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path_factory.mktemp("home"), answering("Hi")) as gateway:
        yield gateway


def under(schema: object, **members: object) -> dict[str, object]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "shape", "schema": schema, **members}}}


HELD: list[tuple[dict[str, object], str]] = [
    (under(PERSON), '{"name":"Ada","age":36}'),
    (under(PERSON, strict=True, description="A person."), '{"name":"{\\"}\\n🔒","age":0}'),
    (under(TREE), '{"v":1,"next":{"v":2,"next":null}}'),
    (under({"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}), '["a","b","a"]'),
    (under({"type": "string", "pattern": "^[a-c]{3}$"}), '"abc"'),
    (under({"const": 5}), "5"),
    (under({}), '[1,{"a":null}]'),
    (under(None), '"anything"'),
    ({"response_format": {"type": "json_object"}}, '{"a":[1,2,{"b":"}"}]}'),
]


@pytest.mark.parametrize(("members", "text"), HELD, ids=str)
async def test_json_that_holds_to_the_schema_is_the_content(
    gateway: ScriptedGateway, members: dict[str, object], text: str
) -> None:
    gateway.follow(answering(*text))  # a character at a time
    choice = (await gateway.post(**members)).json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": text}
    assert choice["finish_reason"] == "stop"
    assert "grammar" in gateway.asked()
    assert "response_format" not in gateway.asked()
    json.loads(choice["message"]["content"])


BROKEN: dict[str, tuple[dict[str, object], str]] = {
    "prose": (under(PERSON), "Ada is 36."),
    "a fence around it": (under(PERSON), '```json\n{"name":"Ada","age":36}\n```'),
    "a wrong type": (under(PERSON), '{"name":"Ada","age":"36"}'),
    "a number out of range": (under(PERSON), '{"name":"Ada","age":-1}'),
    "a missing member": (under(PERSON), '{"name":"Ada"}'),
    "a further member": (under(PERSON), '{"name":"Ada","age":36,"x":1}'),
    "an end too early": (under(PERSON), '{"name":"Ada","age":36'),
    "nothing": (under(PERSON), ""),
    "two documents": (under(PERSON), '{"name":"A","age":1}{"name":"B","age":2}'),
    "text after it": (under(PERSON), '{"name":"A","age":1} is she.'),
    "an array for an object": ({"response_format": {"type": "json_object"}}, "[1]"),
    "prose for an object": ({"response_format": {"type": "json_object"}}, "Hello"),
    "a pattern not kept": (under({"type": "string", "pattern": "^[a-c]{3}$"}), '"abd"'),
    "an item outside the enumeration": (under({"type": "array", "items": {"enum": ["a"]}}), '["b"]'),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("cut", [1000, 1], ids=["at once", "by character"])
async def test_an_answer_that_breaks_the_schema_is_never_passed_off_as_complete(
    gateway: ScriptedGateway, name: str, cut: int
) -> None:
    members, text = BROKEN[name]
    gateway.follow(answering(*(text[at : at + cut] for at in range(0, len(text), cut))))

    buffered = await gateway.post(**members)
    streamed = await gateway.post(stream=True, **members)

    assert buffered.status_code == 502
    assert buffered.json()["error"]["type"] == "upstream_error"
    if streamed.status_code == 200:
        assert streamed.content.endswith(TAIL)
    else:
        assert streamed.status_code == 502
    assert b'"finish_reason":"' not in streamed.content


async def test_a_token_limit_may_cut_the_json_and_says_so(gateway: ScriptedGateway) -> None:
    gateway.follow(answering('{"name":"A', reason="length"))
    choice = (await gateway.post(**under(PERSON), max_tokens=4)).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == '{"name":"A'


async def test_a_clients_own_stop_string_may_end_the_json(gateway: ScriptedGateway) -> None:
    gateway.follow(answering('{"name":"A'))
    choice = (await gateway.post(**under(PERSON), stop="B")).json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", '{"name":"A')


UNHOLDABLE: list[object] = [
    {"not": {"const": "CANARY"}},
    {"if": {"const": "CANARY"}, "then": False},
    {"type": "object", "propertyNames": {"pattern": "CANARY"}},
    {"type": "array", "contains": {"const": "CANARY"}},
    {"type": "array", "uniqueItems": True},
    {"unevaluatedProperties": False},
    {"oneOf": [{"type": "string"}, {"const": "CANARY"}]},
    {"type": "CANARY"},
    {"type": 7},
    {"enum": "CANARY"},
    {"type": "string", "format": "CANARY"},
    {"type": "string", "pattern": "(?=CANARY)x"},
    {"type": "string", "pattern": "(CANARY"},
    {"$ref": "https://canary.test/CANARY"},
    {"$ref": "file:///CANARY"},
    {"$ref": "#/$defs/CANARY"},
    {"type": "string", "minLength": 5, "maxLength": 2},
    {"type": "object", "properties": {"CANARY": {"not": {}}}},
    {"enum": ["CANARY" * 20_000]},
]


@pytest.mark.parametrize("schema", UNHOLDABLE, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
async def test_a_schema_that_cannot_be_held_is_refused_before_the_engine_hears_of_it(
    gateway: ScriptedGateway, schema: object, stream: bool
) -> None:
    before = len(gateway.engine.requests)
    answer = await gateway.post(stream=stream, **under(schema))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "response_format")
    assert "CANARY" not in answer.text
    assert len(gateway.engine.requests) == before


async def test_a_schema_stands_beside_tools_that_need_not_be_called(gateway: ScriptedGateway) -> None:
    gateway.follow(answering('{"name":"Ada","age":36}'))
    tools = [{"type": "function", "function": {"name": "f"}}]
    choice = (await gateway.post(tools=tools, **under(PERSON))).json()["choices"][0]
    assert choice["message"]["content"] == '{"name":"Ada","age":36}'
    assert choice["finish_reason"] == "stop"
