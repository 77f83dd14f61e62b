"""Which stop text ended an answer is told on every surface that has a place for it (wire contract 2.6, 3.5)."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from gateway_app import MODEL, ScriptedGateway, answering, event, serving_scripted, token
from scripted import LAST_CHUNK, Script, sse_head

pytestmark = pytest.mark.asyncio(loop_scope="module")


def stopped_by(word: str) -> Script:
    """The engine meets this stop text, "" for its own end."""
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "__verbose": {"stopping_word": word}}
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
    return [sse_head(), token("one"), event(last), event(usage), LAST_CHUNK]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path_factory.mktemp("home"), answering("Hi")) as gateway:
        yield gateway


def chunks(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


async def test_chat_tells_it_beside_the_finish_reason(gateway: ScriptedGateway) -> None:
    gateway.follow(stopped_by("two"))
    [choice] = (await gateway.post(stop=["two", "three"])).json()["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "two")
    asked = gateway.asked()
    assert (asked["verbose"], asked["response_fields"]) == (True, ["stopping_word"])
    told = [each["choices"][0] for each in chunks((await gateway.post(stop="two", stream=True)).text)]
    assert [each.get("stop_reason") for each in told] == [None] * (len(told) - 1) + ["two"]


async def test_an_end_of_the_models_own_has_none(gateway: ScriptedGateway) -> None:
    gateway.follow(stopped_by(""))
    assert "stop_reason" not in (await gateway.post(stop="two")).json()["choices"][0]


async def test_the_engine_is_asked_for_nothing_more_without_stop_texts(gateway: ScriptedGateway) -> None:
    gateway.follow(stopped_by(""))
    await gateway.post()
    assert not {"verbose", "response_fields"} & gateway.asked().keys()


async def test_a_text_completion_tells_it_too(gateway: ScriptedGateway) -> None:
    gateway.follow(stopped_by("two"))
    body = {"model": MODEL, "prompt": "Once", "stop": "two"}
    [choice] = (await gateway.client.post("/v1/completions", json=body)).json()["choices"]
    assert choice["stop_reason"] == "two"


@pytest.mark.parametrize(
    ("word", "reason", "sequence"), [("two", "stop_sequence", "two"), ("", "end_turn", None)], ids=["met", "own end"]
)
async def test_a_message_names_the_sequence(
    gateway: ScriptedGateway, word: str, reason: str, sequence: str | None
) -> None:
    gateway.follow(stopped_by(word))
    body = {
        "model": MODEL,
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "Hi"}],
        "stop_sequences": ["two"],
    }
    message = (await gateway.client.post("/v1/messages", json=body)).json()
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)
    streaming = chunks((await gateway.client.post("/v1/messages", json={**body, "stream": True})).text)
    [delta] = [each["delta"] for each in streaming if each["type"] == "message_delta"]
    assert (delta["stop_reason"], delta["stop_sequence"]) == (reason, sequence)
