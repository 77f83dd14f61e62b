"""Every member of every table of the reference, sent: what becomes of it is what the table says.

A request without the member is compared with one that has it: by what the engine is asked, and by what is answered.
"""

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from confide.gateway.openapi.inference import EMBEDDING_MODEL, MODEL
from confide.gateway.openapi.members import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    MESSAGES,
    RESPONSES,
    TABLES,
    Effect,
    Table,
)
from gateway_app import VECTOR_LENGTH, ScriptedGateway, finish, serving_scripted, token
from obliging_engine import CONFIG, obliging
from scripted import LAST_CHUNK, Script, sse_head

pytestmark = pytest.mark.asyncio(loop_scope="module")

TURN = [{"role": "user", "content": "Hello"}]
BASE: dict[str, dict[str, Any]] = {
    CHAT.endpoint: {"model": MODEL, "messages": TURN},
    COMPLETIONS.endpoint: {"model": MODEL, "prompt": "Hello"},
    RESPONSES.endpoint: {"model": MODEL, "input": "Hello"},
    MESSAGES.endpoint: {"model": MODEL, "max_tokens": 5, "messages": TURN},
    COUNT_TOKENS.endpoint: {"model": MODEL, "messages": TURN},
    EMBEDDINGS.endpoint: {"model": EMBEDDING_MODEL, "input": "Hello"},
}
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
CHAT_TOOL = {"tools": [{"type": "function", "function": FUNCTION}]}
RESPONSES_TOOL = {"tools": [{"type": "function", **FUNCTION}]}
MESSAGES_TOOL = {"tools": [{"name": "f", "input_schema": FUNCTION["parameters"]}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
PINNED = {"provider": {"aci_session_ids": ["0" * 64]}}

# What is sent for a member: what must stand beside it, and the member.
Sample = tuple[dict[str, Any], Any]
NUMBERS: dict[str, Sample] = {
    "temperature": ({}, 0.3),
    "top_p": ({}, 0.5),
    "top_k": ({}, 3),
    "min_p": ({}, 0.2),
    "repetition_penalty": ({}, 1.5),
    "presence_penalty": ({}, 0.5),
    "frequency_penalty": ({}, 0.5),
    "logit_bias": ({}, {"7": 5}),
    "seed": ({}, 7),
    "n": ({}, 2),
    "stop": ({}, "x"),
    "max_tokens": ({}, 9),
    "stream": ({}, True),
    "stream_options": ({"stream": True}, {"include_usage": True}),
    "provider": ({}, PINNED["provider"]),
    "model": ({}, "vendor/none"),
    "user": ({}, "somebody"),
}
SAMPLES: dict[str, dict[str, Sample]] = {
    CHAT.endpoint: {
        **NUMBERS,
        "messages": ({}, [{"role": "user", "content": "Bye"}]),
        "max_completion_tokens": ({}, 9),
        "logprobs": ({}, True),
        "top_logprobs": ({"logprobs": True}, 2),
        "tools": ({}, CHAT_TOOL["tools"]),
        "tool_choice": (CHAT_TOOL, "required"),
        "parallel_tool_calls": (CHAT_TOOL, False),
        "response_format": ({}, {"type": "json_object"}),
        "chat_template_kwargs": ({}, {}),
        "modalities": ({}, ["text"]),
        "reasoning": ({}, {"effort": "high"}),
        "reasoning_effort": ({}, "high"),
        "include_reasoning": ({}, False),
        "metadata": ({}, {"a": "b"}),
        "priority": ({}, 3),
        "prompt_cache_key": ({}, "key"),
        "safety_identifier": ({}, "somebody"),
        "service_tier": ({}, "default"),
        "store": ({}, True),
        "verbosity": ({}, "low"),
    },
    COMPLETIONS.endpoint: {
        **NUMBERS,
        "prompt": ({}, "Bye"),
        "echo": ({}, True),
        "logprobs": ({}, 2),
        "best_of": ({"n": 2}, 2),
    },
    RESPONSES.endpoint: {
        **{name: NUMBERS[name] for name in ("temperature", "top_p", "stream", "provider", "model", "user")},
        "input": ({}, "Bye"),
        "instructions": ({}, "Be brief."),
        "max_output_tokens": ({}, 20),
        "tools": ({}, RESPONSES_TOOL["tools"]),
        "tool_choice": (RESPONSES_TOOL, "required"),
        "parallel_tool_calls": (RESPONSES_TOOL, False),
        "text": ({}, {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}),
        "reasoning": ({}, {"effort": "high"}),
        "background": ({}, False),
        "include": ({}, ["reasoning.encrypted_content"]),
        "metadata": ({}, {"a": "b"}),
        "prompt_cache_key": ({}, "key"),
        "safety_identifier": ({}, "somebody"),
        "service_tier": ({}, "default"),
        "store": ({}, True),
        "stream_options": ({"stream": True}, {"include_obfuscation": False}),
        "top_logprobs": ({}, 0),
        "truncation": ({}, "disabled"),
    },
    MESSAGES.endpoint: {
        **{
            name: NUMBERS[name]
            for name in ("temperature", "top_p", "top_k", "max_tokens", "stream", "provider", "model")
        },
        "messages": ({}, [{"role": "user", "content": "Bye"}]),
        "system": ({}, "Be brief."),
        "stop_sequences": ({}, ["x"]),
        "tools": ({}, MESSAGES_TOOL["tools"]),
        "tool_choice": (MESSAGES_TOOL, {"type": "any"}),
        "output_config": ({}, {"format": {"type": "json_schema", "schema": SCHEMA}}),
        "thinking": ({}, {"type": "enabled", "budget_tokens": 9}),
        "cache_control": ({}, {"type": "ephemeral"}),
        "metadata": ({}, {"user_id": "somebody"}),
        "service_tier": ({}, "auto"),
        "speed": ({}, "standard"),
    },
    COUNT_TOKENS.endpoint: {
        "provider": NUMBERS["provider"],
        "model": NUMBERS["model"],
        "messages": ({}, [{"role": "user", "content": "Bye"}]),
        "system": ({}, "Be brief."),
        "tools": ({}, MESSAGES_TOOL["tools"]),
        "tool_choice": (MESSAGES_TOOL, {"type": "none"}),
        "output_config": ({}, {"effort": "high"}),
        "thinking": ({}, {"type": "enabled", "budget_tokens": 9}),
        "cache_control": ({}, {"type": "ephemeral"}),
        "speed": ({}, "standard"),
    },
    EMBEDDINGS.endpoint: {
        "provider": NUMBERS["provider"],
        "model": NUMBERS["model"],
        "user": NUMBERS["user"],
        "input": ({}, "Bye bye"),
        "encoding_format": ({}, "base64"),
        "dimensions": ({}, VECTOR_LENGTH),
        "stream": ({}, True),
    },
}
# A value that asks for what is not done, of members that may be sent as long as they ask for nothing.
ASKING: dict[str, Any] = {
    "chat_template_kwargs": {"a": 1},
    "modalities": ["text", "audio"],
    "best_of": 3,
    "dimensions": VECTOR_LENGTH + 1,
    "background": True,
    "suffix": "x",
}


def generate(_: dict[str, Any]) -> Script:
    return [sse_head(), token("{}"), finish(), LAST_CHUNK]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path_factory.mktemp("plain"), [], config=CONFIG) as gateway:
        gateway.engine.choose = obliging(generate)
        yield gateway


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reasoning(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path_factory.mktemp("reasoning"), [], config=CONFIG, reasons=True) as gateway:
        gateway.engine.choose = obliging(generate)
        yield gateway


class Observed:
    """What became of a request: what the engine was asked, and what was answered, ids and times aside."""

    def __init__(self, answer: httpx2.Response, asked: list[bytes]) -> None:
        self.answer = answer
        self.asked = asked
        self.told = re.sub(r"[0-9a-f]{32,}|\"created(_at)?\":\d+", "", answer.text)

    @property
    def param(self) -> str:
        """The member at fault."""
        error = self.answer.json()["error"]
        return str(error["param"] if "param" in error else error["message"].partition(":")[0].partition(" ")[0])


async def observed(gateway: ScriptedGateway, endpoint: str, body: dict[str, Any]) -> Observed:
    before = len(gateway.engine.requests)
    answer = await gateway.client.post(endpoint, json=body)
    return Observed(answer, [request.body for request in gateway.engine.requests[before:]])


async def compared(gateway: ScriptedGateway, table: Table, name: str) -> tuple[Observed, Observed]:
    """A request without the member, and the same with it."""
    beside, value = SAMPLES[table.endpoint][name]
    base = BASE[table.endpoint] | beside
    return await observed(gateway, table.endpoint, base), await observed(gateway, table.endpoint, base | {name: value})


def each(*effects: Effect) -> list[Any]:
    return [
        pytest.param(table, member.name, id=f"{table.title}-{member.name}")
        for table in TABLES
        for member in table.members
        if member.effect in effects
    ]


@pytest.mark.parametrize(("table", "name"), each(Effect.HONOURED))
async def test_what_is_honoured_changes_what_the_engine_is_asked_or_what_is_answered(
    plain: ScriptedGateway, table: Table, name: str
) -> None:
    without, given = await compared(plain, table, name)
    assert without.answer.status_code in (200, 502), without.answer.text  # 502: this engine keeps to no grammar
    assert given.answer.status_code != 400, given.answer.text
    assert (given.asked, given.told) != (without.asked, without.told)


@pytest.mark.parametrize(("table", "name"), each(Effect.WITHOUT_EFFECT, Effect.LIMITED))
async def test_what_is_without_effect_is_taken_and_the_engine_is_asked_the_same(
    plain: ScriptedGateway, table: Table, name: str
) -> None:
    without, given = await compared(plain, table, name)
    assert (without.answer.status_code, given.answer.status_code) == (200, 200), given.answer.text
    assert given.asked == without.asked


@pytest.mark.parametrize(("table", "name"), each(Effect.BY_SOME))
async def test_what_some_models_honour_they_do_and_others_refuse(
    plain: ScriptedGateway, reasoning: ScriptedGateway, table: Table, name: str
) -> None:
    without, given = await compared(reasoning, table, name)
    assert (without.answer.status_code, given.answer.status_code) == (200, 200), given.answer.text
    if name == "include_reasoning":  # it leaves out what the engine thought, and this one does not think
        return
    assert given.asked != without.asked
    _, refused = await compared(plain, table, name)
    assert refused.answer.status_code == 400
    assert refused.param.partition(".")[0] == name


@pytest.mark.parametrize(("table", "name"), each(Effect.REFUSED))
async def test_what_is_refused_is_named(plain: ScriptedGateway, table: Table, name: str) -> None:
    given = await observed(plain, table.endpoint, BASE[table.endpoint] | {name: ASKING.get(name, "CANARY")})
    assert given.answer.status_code == 400
    assert given.param == name
    assert given.asked == []
    assert "CANARY" not in given.told
    absent = await observed(plain, table.endpoint, BASE[table.endpoint] | {name: None})
    assert absent.answer.status_code == 200


@pytest.mark.parametrize(("table", "name"), each(Effect.LIMITED))
async def test_what_asks_for_more_than_nothing_is_refused(plain: ScriptedGateway, table: Table, name: str) -> None:
    given = await observed(plain, table.endpoint, BASE[table.endpoint] | {name: ASKING[name]})
    assert given.answer.status_code == 400
    assert given.param == name


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
async def test_what_is_unknown_is_refused_or_ignored_as_the_table_says(plain: ScriptedGateway, table: Table) -> None:
    base = BASE[table.endpoint]
    without = await observed(plain, table.endpoint, base)
    given = await observed(plain, table.endpoint, base | {"nobody_knows": 1})
    if table.refuses_unknown:
        assert given.answer.status_code == 400
        assert given.param == "nobody_knows"
    else:
        assert given.answer.status_code == 200
        assert given.asked == without.asked


@pytest.mark.parametrize(
    ("table", "name"),
    [
        pytest.param(table, member.name, id=f"{table.title}-{member.name}")
        for table in TABLES
        for member in table.members
        if member.required
    ],
)
async def test_what_is_required_is_missed_by_its_name(plain: ScriptedGateway, table: Table, name: str) -> None:
    body = {key: value for key, value in BASE[table.endpoint].items() if key != name}
    given = await observed(plain, table.endpoint, body)
    assert given.answer.status_code == 400
    assert given.param == name


async def test_the_catalogue_lists_what_is_honoured_and_no_more(
    plain: ScriptedGateway, reasoning: ScriptedGateway
) -> None:
    """`supported_parameters` (wire contract 3.1): those that the other tests of this file find honoured."""
    honoured = {member.name for member in CHAT.members if member.effect is Effect.HONOURED}
    by_some = {member.name for member in CHAT.members if member.effect is Effect.BY_SOME}
    for gateway, expected in ((plain, honoured), (reasoning, honoured | by_some)):
        entry = (await gateway.client.get(f"/v1/models/{MODEL}")).json()
        assert set(entry["supported_parameters"]) | {"model", "messages", "provider"} == expected
        entry = (await gateway.client.get(f"/v1/models/{EMBEDDING_MODEL}")).json()
        vectors = {member.name for member in EMBEDDINGS.members if member.effect is Effect.HONOURED}
        assert set(entry["supported_parameters"]) | {"model", "input", "provider"} == vectors
