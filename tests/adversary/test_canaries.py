"""The attacker reads everything that the service leaves behind: its log, its output, its database, its error messages.

They must not find a prompt, an answer, a key, a header or any other text of a client. Every such text here carries a
mark; the twin of each search shows that the text did go where it should, so that an empty house does not look safe.
"""

import ast
import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from confide.config import Config, Limits, Model, Server
from confide.engine.slots import Slots
from confide.telemetry.logs import ALLOWED
from confide.upstream.channel import Exchange, Timeouts
from gateway_app import MODEL, ScriptedGateway, answering, bearer, chat, event, serving_scripted, token
from scripted import CLOSE, HANG, LAST_CHUNK, Script, response, sse_head

SOURCE = Path(__file__).parent.parent.parent / "src" / "confide"
PATH, COUNT = "/v1/chat/completions", "/v1/messages/count_tokens"
MARK = "canary"
ANSWER = "canary-answer"
TEXTS = {
    "prompt": "canary-prompt",
    "user": "canary-user",
    "safety_identifier": "canary-safety",
    "prompt_cache_key": "canary-cache",
    "header": "canary-header",
    "tool": "canary_tool",
    "argument": "canary-argument",
    "metadata": "canary-metadata",
    "unknown": "canary-unknown-member",
}

TOOL = {
    "name": TEXTS["tool"],
    "description": "canary-description",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def marked(**members: object) -> dict[str, object]:
    """A request with a mark in every text that a client can choose and that is served."""
    texts: dict[str, object] = {
        "user": TEXTS["user"],
        "safety_identifier": TEXTS["safety_identifier"],
        "prompt_cache_key": TEXTS["prompt_cache_key"],
        "metadata": {TEXTS["metadata"]: TEXTS["metadata"]},
        "tools": [{"type": "function", "function": TOOL}],
        "stop": ["canary-stop"],
        "canary_member": TEXTS["unknown"],
    }
    return chat(TEXTS["prompt"]) | texts | members


@dataclass
class Observed:
    """A gateway, a client with a marked key, and all that was said in refusals and in the tails of broken streams."""

    gateway: ScriptedGateway
    home: Path
    key: str
    said: list[bytes] = field(default_factory=list)

    async def ask(
        self, body: dict[str, object] | bytes, *, key: str | None = None, path: str = PATH
    ) -> httpx2.Response:
        """Ask with marked headers; an error is kept for the search."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {**bearer(key or self.key), "X-Canary": TEXTS["header"], "User-Agent": TEXTS["header"]}
        answer = await self.gateway.client.post(path, content=content, headers=headers)
        if answer.status_code != 200:
            self.said.append(answer.content)
            self.said.append(repr(answer.headers.raw).encode())
        elif b'"error"' in answer.content:
            self.said.append(answer.content.partition(b'"error"')[2])
        return answer

    def left_behind(self) -> dict[str, bytes]:
        """What is on the disk, in the log, and in the error messages."""
        files = {path.name: path.read_bytes() for path in self.home.rglob("*") if path.is_file()}
        assert {"confide.db", "confide.db-wal"} <= set(files)
        return {**files, "log": self.gateway.log_text().encode(), "said": b"\n".join(self.said)}

    def assert_clean(self, *more: str) -> None:
        for where, data in self.left_behind().items():
            for text in (MARK, self.key, *more):
                assert text.encode() not in data.lower(), f"{text} was found in {where}"


@pytest.fixture
async def observed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Observed]:
    """A closed service. Afterwards neither its output nor a record of any logger may hold a mark."""
    caplog.set_level(logging.DEBUG, "confide")
    caplog.set_level(logging.DEBUG, "uvicorn")
    config = Config(
        model=(Model(id=MODEL, upstream_model="scripted"),),
        server=Server(max_body_bytes=20_000),
        limits=Limits(queue=0),
    )
    short = Timeouts(first_byte_s=0.1, idle_s=0.1)
    async with serving_scripted(tmp_path, answering(ANSWER), config=config, timeouts=short) as gateway:
        _, key = gateway.store.create_key("tenant")
        await gateway.authenticator.refresh()
        yield Observed(gateway, tmp_path, key)
    output = capfd.readouterr()
    records = [record for phase in ("setup", "call") for record in caplog.get_records(phase)]
    # The access log is off; pytest gives even a logger that is cut off from the others a handler of its own.
    logged = "\n".join(logging.Formatter().format(record) for record in records if record.name != "uvicorn.access")
    for where, text in {"stdout": output.out, "stderr": output.err, "logging": logged}.items():
        assert MARK not in text.lower(), f"a mark was found in {where}"
        assert key not in text, f"the key was found in {where}"


class QuotingFault(Exception):
    """A fault whose text quotes what was being worked on, as those of decoders and codecs do."""


def quoting(*_: object, **__: object) -> bytes:
    raise QuotingFault(f"{ANSWER} {TEXTS['prompt']}")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_leaves_nothing_behind(observed: Observed, stream: bool) -> None:
    answer = await observed.ask(marked(stream=stream))
    assert ANSWER in answer.text  # the twin: it went where it should
    assert TEXTS["prompt"].encode() in observed.gateway.engine.requests[0].body
    observed.assert_clean()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_call_leaves_nothing_behind(observed: Observed, stream: bool) -> None:
    call = f'{{"name":"{TEXTS["tool"]}","arguments":{{"city":"{TEXTS["argument"]}"}}}}'
    observed.gateway.engine.scripts = (answering(f"<tool_call>\n{call}\n</tool_call>"),)
    history: list[object] = [
        {"role": "user", "content": TEXTS["prompt"]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "canary-call",
                    "type": "function",
                    "function": {"name": TEXTS["tool"], "arguments": '{"city":"canary-argument"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "canary-call", "content": "canary-result"},
    ]
    body = marked(stream=stream, messages=history, stop=None)
    answer = await observed.ask(body)
    assert answer.status_code == 200
    assert TEXTS["tool"] in answer.text
    observed.assert_clean()


REFUSED: dict[str, tuple[dict[str, object] | bytes, int]] = {
    "no JSON": (b'{"canary": canary', 400),
    "not UTF-8": (b'{"model": "canary\xff"}', 400),
    "no object": (b'["canary"]', 400),
    "nested too deeply": (b'{"canary":' + b"[" * 9000, 400),
    "unknown model": (marked() | {"model": "canary-model"}, 404),
    "model of the wrong type": (marked() | {"model": {"canary": "canary"}}, 400),
    "unknown role": (marked(messages=[{"role": "canary-role", "content": "canary"}]), 400),
    "unknown part": (marked(messages=[{"role": "user", "content": [{"type": "canary-part"}]}]), 400),
    "image": (
        marked(
            messages=[
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "https://canary.example/canary.png"}}],
                }
            ]
        ),
        400,
    ),
    "temperature": (marked(temperature="canary"), 400),
    "stop": (marked(stop=[""]), 400),
    "logit bias": (marked(logit_bias={"canary": 1}), 400),
    "metadata": (marked(metadata={"canary": {"canary": "canary"}}), 400),
    "tool choice": (marked(tool_choice={"type": "function", "function": {"name": "canary_other"}}), 400),
    "two tools of one name": (
        marked(tools=[{"type": "function", "function": {"name": "canary_twin"}}] * 2),
        400,
    ),
    "tool name": (marked(tools=[{"type": "function", "function": {"name": "canary tool!"}}]), 400),
    "schema": (
        marked(
            tools=None,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "canary", "schema": {"$ref": "#/$defs/canary"}},
            },
        ),
        400,
    ),
    "reasoning": (marked(reasoning={"canary": "canary"}), 400),
    "template arguments": (marked(chat_template_kwargs={"canary": "canary"}), 400),
    "provider": (marked(provider={"aci_canary words": "canary"}), 400),
    "provider of the wrong type": (marked(provider="canary"), 400),
    "a pinned session": (marked(provider={"aci_session_ids": ["canary"]}), 400),
    "a pinned session of the right form": (marked(provider={"aci_session_ids": ["ab" * 32], "canary": "canary"}), 412),
    "too many choices": (marked(n=99), 400),
    "too large": (marked(messages=[{"role": "user", "content": "canary" * 9000}]), 413),
}


@pytest.mark.parametrize(("body", "status"), list(REFUSED.values()), ids=list(REFUSED))
async def test_a_refusal_repeats_nothing(observed: Observed, body: dict[str, object] | bytes, status: int) -> None:
    assert (await observed.ask(body)).status_code == status
    assert observed.gateway.outcomes() == ["refused"]
    observed.assert_clean()


async def test_a_count_of_tokens_leaves_nothing_behind(observed: Observed) -> None:
    engine = observed.gateway.engine
    engine.choose = lambda seen: [response(b'{"prompt":"canary"}' if b"template" in seen.target else b'{"tokens":[1]}')]
    asked: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": TEXTS["prompt"]}]}
    for members, status in (({}, 200), ({"max_tokens": "canary"}, 400), ({"model": "canary-model"}, 404)):
        assert (await observed.ask(asked | members, path=COUNT)).status_code == status
    engine.choose = lambda _: [response(b'{"error":{"code":400,"message":"canary-prompt"}}', status=b"400 canary")]
    assert (await observed.ask(asked, path=COUNT)).status_code == 400
    assert TEXTS["prompt"].encode() in engine.requests[0].body  # the twin: it went where it should
    assert observed.gateway.outcomes() == ["complete", "refused", "refused", "refused"]
    observed.assert_clean()


@pytest.mark.parametrize("key", ["canary-key", "cfd_" + "canary" * 7])
async def test_a_wrong_key_is_not_repeated(observed: Observed, key: str) -> None:
    assert (await observed.ask(marked(), key=key)).status_code == 401
    observed.assert_clean()


async def test_a_fault_outside_the_prompt_path_is_known_by_its_type_only(
    observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observed.gateway.store, "proof", quoting)
    for path in ("/v1/signature/x", "/v1/aci/receipts/x"):
        answer = await observed.gateway.client.get(path, headers=bearer(observed.key))
        assert answer.status_code == 500
        observed.said.append(answer.content)
    assert '"error":"QuotingFault"' in observed.gateway.log_text()
    observed.assert_clean()


async def test_a_path_and_a_query_are_not_repeated(observed: Observed) -> None:
    for path in (
        "/canary",
        "/v1/signature/canary-id?model=canary",
        "/v1/signature/x?signing_algo=canary",
        "/v1/aci/receipts/rcpt-canary",
        "/v1/aci/keysets/sha256:canary",
        "/v1/aci/sessions/canary?model=canary",
        "/v1/aci/attestation?nonce=canary",
    ):
        answer = await observed.gateway.client.get(path, headers=bearer(observed.key))
        assert answer.status_code in (400, 404)
        observed.said.append(answer.content)
    for query in ("nonce=canary", "version=canary", "signing_address=canary", "model=canary"):
        answer = await observed.gateway.client.get(f"/v1/attestation/report?{query}")
        assert answer.status_code in (400, 404)
        observed.said.append(answer.content)
    observed.assert_clean()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_receipt_holds_hashes_and_no_text(observed: Observed, stream: bool) -> None:
    answer = await observed.ask(marked(stream=stream, provider={"aci_verified": True, "canary": "canary"}))
    headers = bearer(observed.key)
    receipt = await observed.gateway.client.get(f"/v1/aci/receipts/{answer.headers['x-receipt-id']}", headers=headers)
    assert receipt.status_code == 200
    assert hashlib.sha256(answer.content).hexdigest() in receipt.text  # the twin: it is of this answer
    assert MARK not in receipt.text
    assert observed.key not in receipt.text
    observed.assert_clean()


ENGINE_FAILURES: dict[str, Script] = {
    "cut": [sse_head(), token(ANSWER), CLOSE],
    "stalled": [sse_head(), token(ANSWER), HANG],
    "no finish": [sse_head(), token(ANSWER), LAST_CHUNK],
    "no HTTP": [b"canary-answer\r\n\r\n", CLOSE],
    "no JSON": [sse_head(), event("canary")[:-8] + b"canary", CLOSE],
    "an error that quotes": [
        response(b'{"error":{"code":500,"message":"canary-prompt","type":"canary"}}', status=b"500 canary")
    ],
    "a refusal that quotes": [
        response(b'{"error":{"code":400,"message":"canary-prompt","type":"canary"}}', status=b"400 canary")
    ],
    "an error event that quotes": [
        sse_head(),
        event({"error": {"code": 500, "message": "canary-prompt", "type": "canary"}}),
        LAST_CHUNK,
    ],
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", list(ENGINE_FAILURES.values()), ids=list(ENGINE_FAILURES))
async def test_a_failure_of_the_engine_tells_nothing(observed: Observed, script: Script, stream: bool) -> None:
    observed.gateway.engine.scripts = (script,)
    answer = await observed.ask(marked(stream=stream))
    assert answer.status_code != 200 or b'"error"' in answer.content
    assert observed.gateway.outcomes()[0] in ("failed", "truncated", "refused")
    observed.assert_clean()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("owner", "name"), [(Exchange, "read"), (Slots, "check_room")])
async def test_a_fault_of_ours_is_known_by_its_type_only(
    observed: Observed, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, stream: bool
) -> None:
    monkeypatch.setattr(owner, name, quoting)
    assert (await observed.ask(marked(stream=stream))).status_code == 500
    assert '"error":"QuotingFault"' in observed.gateway.log_text()
    observed.assert_clean()


async def test_a_client_that_leaves_leaves_nothing_behind(observed: Observed) -> None:
    observed.gateway.engine.scripts = ([sse_head(), token(ANSWER), HANG],)
    headers = bearer(observed.key)
    async with observed.gateway.client.stream("POST", PATH, json=marked(stream=True), headers=headers) as answer:
        assert ANSWER.encode() in await anext(answer.aiter_raw())
    asking = asyncio.create_task(observed.ask(marked()))
    await observed.gateway.engine.asked(2)
    asking.cancel()
    await observed.gateway.engine.left(2)
    await observed.gateway.outcome(2)
    assert observed.gateway.outcomes() == ["client_closed"] * 2
    observed.assert_clean()


async def test_a_full_queue_and_a_drain_tell_nothing(observed: Observed) -> None:
    observed.gateway.engine.scripts = ([HANG],)
    held = [asyncio.create_task(observed.ask(marked())) for _ in range(4)]
    await observed.gateway.engine.asked(4)
    assert (await observed.ask(marked())).status_code == 429
    await observed.gateway.lifecycle.drain(0.001)
    assert [(await each).status_code for each in held] == [503] * 4
    assert (await observed.ask(marked())).status_code == 503
    observed.assert_clean()


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call of `write` on something that is named as a log, with its place."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "write"
                and ast.unparse(node.func.value).rpartition(".")[2].lstrip("_") == "log"
            ):
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", node


def test_every_line_of_the_log_is_written_with_allowed_fields_by_name() -> None:
    calls = dict(log_calls())
    assert len(calls) >= 4  # the twin: they are found
    for place, call in calls.items():
        assert len(call.args) == 1, place
        assert isinstance(call.args[0], ast.Constant), place
        assert {keyword.arg for keyword in call.keywords} <= ALLOWED, place


def test_what_standard_loggers_write_is_constant_text_and_named_values() -> None:
    """The database's warnings go through `logging`; a message built at run time could hold anything."""
    found = 0
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and ast.unparse(node.func.value) in ("logger", "logging")
                and node.func.attr in ("debug", "info", "warning", "error", "exception", "critical", "log")
            ):
                found += 1
                place = f"{path.relative_to(SOURCE)}:{node.lineno}"
                assert node.func.attr != "exception", place
                assert isinstance(node.args[0], ast.Constant), place
                assert not {"exc_info", "stack_info", "extra"} & {keyword.arg for keyword in node.keywords}, place
    assert found >= 2  # they are found
