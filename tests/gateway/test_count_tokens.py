"""`POST /v1/messages/count_tokens`: by the embedded engine, or by an upstream that speaks Messages itself."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from attested_service import AttestedService, Reply, Seen, serving
from confide.config import Model, Upstream
from confide.gateway.models import ServedModel
from confide.gateway.opened import open_plain
from confide.upstream.health import FAILURES_MOST
from confide.upstream.router import Candidate, Route
from gateway.test_attested_upstreams import aci, aggregating, broken_report
from gateway_app import MODEL, ScriptedGateway, answering, raw_connection, raw_post, serving_scripted
from relay_app import RelayGateway, answered, completion, local, model, serving_upstreams, upstream
from scripted import ABORT_WITHIN_S, CLOSE, HANG, Script, ScriptedUpstream, chunk, chunked_head, response

pytestmark = pytest.mark.asyncio(loop_scope="module")
COUNT = "/v1/messages/count_tokens"
SEVEN = answered(b'{"input_tokens": 7}')
DOWN = answered(b"{}", status=b"500 Oops")
CUT_BODY: Script = [b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", CLOSE]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path_factory.mktemp("home"), answering("Hi")) as gateway:
        yield gateway


def body(**members: object) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **members}


async def count(gateway: Any, headers: dict[str, str] | None = None, **members: object) -> httpx2.Response:
    answer: httpx2.Response = await gateway.client.post(COUNT, json=body(**members), headers=headers or {})
    return answer


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    said: dict[str, Any] = answer.json()
    assert said["type"] == "error"
    assert set(said) == {"type", "error", "request_id"}
    assert "x-receipt-id" not in answer.headers
    error: dict[str, Any] = said["error"]
    return error


# The embedded engine


async def test_the_tokens_of_the_engines_own_prompt_are_counted(gateway: ScriptedGateway) -> None:
    gateway.follow([response(b'{"prompt":"<s>Hello"}')], [response(b'{"tokens":[1,2,3]}')])
    tool = {"name": "f", "input_schema": {"type": "object"}}
    answer = await count(gateway, system="Be brief.", tools=[tool])
    assert (answer.status_code, answer.json()) == (200, {"input_tokens": 3})
    assert "x-receipt-id" not in answer.headers
    template, tokens = gateway.engine.requests[-2:]
    assert (template.target, tokens.target) == (b"/apply-template", b"/tokenize")
    shown = json.loads(template.body)
    assert [message["role"] for message in shown["messages"]] == ["system", "user"]
    assert shown["chat_template_kwargs"]["tools"][0]["function"]["name"] == "f"
    assert json.loads(tokens.body) == {"content": "<s>Hello", "add_special": True, "parse_special": True}


async def test_what_cannot_be_counted_is_said(gateway: ScriptedGateway) -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://a"}}
    for members, status, says in (
        ({"model": "none"}, 404, "model"),
        ({"max_tokens": 1}, 400, "max_tokens"),
        ({"messages": [{"role": "user", "content": [image]}]}, 400, "messages: the tokens of an image"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, 400, "thinking: this model"),
        ({"system": "x" * 300_000}, 400, "messages: the prompt has"),
    ):
        answer = await count(gateway, **members)
        assert answer.status_code == status
        assert error_of(answer)["message"].startswith(says)
    answer = await count(gateway, provider={"aci_session_ids": ["0" * 64]})
    assert (answer.status_code, answer.json()["error"]["type"]) == (412, "session_not_accepted")


@pytest.mark.parametrize(
    ("scripts", "status"),
    [
        ([[response(b'{"error":{"code":400}}', status=b"400 Bad Request")]], 400),
        ([[response(b'{"prompt":"a"}')], [response(b"{}", status=b"500 Internal Server Error")]], 502),
        ([[response(b'{"prompt":"a"}')], [response(b"no")]], 502),
        ([[response(b"{}")]], 502),
        ([[CLOSE]], 502),
    ],
    ids=str,
)
async def test_an_engine_that_does_not_count_is_an_error(
    gateway: ScriptedGateway, scripts: list[Script], status: int
) -> None:
    gateway.follow(*scripts)
    answer = await count(gateway)
    assert answer.status_code == status
    assert error_of(answer)["type"] == ("invalid_request_error" if status == 400 else "api_error")


async def test_a_service_that_ends_counts_nothing(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        gateway.switch.is_ready = False
        answer = await count(gateway)
        assert (answer.status_code, error_of(answer)["type"]) == (503, "api_error")
        assert answer.headers["retry-after"] == "2"


async def test_a_fault_of_ours_is_recorded_without_its_text(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> int:
        raise ValueError("canary-b7f2")

    monkeypatch.setattr("confide.upstream.kinds.embedded.EmbeddedUpstream.count_tokens", fail)
    answer = await count(gateway)
    assert (answer.status_code, error_of(answer)["type"]) == (500, "api_error")
    assert "canary-b7f2" not in answer.text + gateway.log_text()
    assert '"ValueError"' in gateway.log_text()


async def test_beside_an_upstream_that_judges_bodies_itself_the_engine_still_judges_its_own(
    gateway: ScriptedGateway,
) -> None:
    models = gateway.app.models
    before = models.models
    async with ScriptedUpstream(SEVEN) as engine:
        settings = Upstream(
            name="other", kind="local", base_url=f"http://127.0.0.1:{engine.port}/v1", surfaces=("messages",)
        )
        other = open_plain(settings, bytes(32))
        route = Route([Candidate(other.upstream, "other/model", name="other")])
        theirs = ServedModel(Model(id="other/model", upstream="other"), route, created=1, simulated=True)
        models.replace([*before, theirs])
        try:
            gateway.follow([response(b'{"prompt":"<s>Hello"}')], [response(b'{"tokens":[1,2,3]}')])
            assert (await count(gateway)).json() == {"input_tokens": 3}
            refused = await count(gateway, max_tokens=1)
            assert (refused.status_code, "max_tokens" in error_of(refused)["message"]) == (400, True)
            assert engine.requests == []
            assert (await count(gateway, model="other/model", max_tokens=1)).json() == {"input_tokens": 7}
        finally:
            models.replace(before)
            await other.close()


# Upstreams that speak Messages themselves


def speaking(engine: ScriptedUpstream, name: str = "engine", **keys: Any) -> str:
    return local(engine.port, name, **{"surfaces": ["chat", "messages"], **keys})


@contextlib.asynccontextmanager
async def counting(home: Path, *scripts: Script, **keys: Any) -> AsyncIterator[tuple[RelayGateway, ScriptedUpstream]]:
    """A gateway before one upstream."""
    async with (
        ScriptedUpstream(*scripts) as engine,
        serving_upstreams(home, speaking(engine, **keys) + model('"engine"')) as gateway,
    ):
        yield gateway, engine


@contextlib.asynccontextmanager
async def pair(
    home: Path, first: Script, spare: Script
) -> AsyncIterator[tuple[RelayGateway, ScriptedUpstream, ScriptedUpstream]]:
    """A gateway before two, in this order."""
    async with ScriptedUpstream(first) as one, ScriptedUpstream(spare) as other:
        text = speaking(one, "first") + speaking(other, "spare") + model('["first", "spare"]')
        async with serving_upstreams(home, text) as gateway:
            yield gateway, one, other


async def test_the_question_passes_byte_for_byte_and_one_number_comes_back(tmp_path: Path) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    sent = json.dumps(body(odd=1.50, messages=[{"role": "user", "content": [image]}]), indent=1).encode()
    told = b'{"input_tokens": 7, "context_management": {"original_input_tokens": 9}, "model": "secret/name"}'
    async with counting(tmp_path, answered(told, b"Server: engine-7", b"X-Engine: 10.0.0.7")) as (gateway, engine):
        answer = await gateway.client.post(f"{COUNT}?beta=true", content=sent)
        assert (answer.status_code, answer.content) == (200, b'{"input_tokens":7}')
        assert answer.headers["content-type"] == "application/json"
        assert "engine" not in str(answer.headers)
        assert "x-receipt-id" not in answer.headers
        [seen] = engine.requests
        assert (seen.method, seen.target, seen.body) == (b"POST", b"/v1/messages/count_tokens", sent)


async def test_it_is_told_the_version_and_betas_and_no_credential_of_the_clients(tmp_path: Path) -> None:
    async with counting(tmp_path, SEVEN) as (gateway, engine):
        headers = {"anthropic-beta": "token-counting-2024-11-01", "x-api-key": "sk-of-the-client"}
        assert (await count(gateway, headers)).status_code == 200
        seen = dict(engine.requests[0].headers)
        assert seen[b"anthropic-version"] == b"2023-06-01"
        assert seen[b"anthropic-beta"] == b"token-counting-2024-11-01"
        assert b"sk-of-the-client" not in str(seen).encode()


async def test_what_is_ours_is_rewritten_as_in_a_prompt(tmp_path: Path) -> None:
    sent = (
        b'{"model":"short","provider":{"aci_verified":true,"order":["x"]},"priority":9,'
        b'"cache_salt":"mine","messages":[1.0]}'
    )
    async with ScriptedUpstream(SEVEN) as engine:
        names = {"upstream_model": "Qwen", "aliases": ["short"]}
        text = speaking(engine, cache_salt=True) + model('"engine"', **names)
        async with serving_upstreams(tmp_path, text) as gateway:
            assert (await gateway.client.post(COUNT, content=sent)).json() == {"input_tokens": 7}
        seen = json.loads(engine.requests[0].body)
        assert len(seen.pop("cache_salt")) == 64
        assert list(seen.items()) == [("model", "Qwen"), ("provider", {"order": ["x"]}), ("messages", [1.0])]
        assert b"[1.0]" in engine.requests[0].body


@pytest.mark.parametrize("number", [0, 1, 2**53 - 1])
async def test_any_count_is_passed_on(tmp_path: Path, number: int) -> None:
    async with counting(tmp_path, answered(b'{"input_tokens":%d}' % number)) as (gateway, _):
        assert (await count(gateway)).json() == {"input_tokens": number}


NO_COUNTS = [
    b'{"input_tokens":-1}',
    b'{"input_tokens":7.5}',
    b'{"input_tokens":1e400}',
    b'{"input_tokens":9007199254740992}',
    b'{"input_tokens":true}',
    b'{"input_tokens":"7"}',
    b'{"input_tokens":null}',
    b'{"input_tokens":[7]}',
    b'{"output_tokens":7}',
    b"{}",
    b"7",
    b"[]",
    b"",
    b"<html>",
    b'{"input_tokens":7',
    b'{"input_tokens":7,"x":' + b"[" * 5000,
    b'{"input_tokens":7,"x":"' + b"a" * 70_000 + b'"}',
    b'{"type":"error","error":{"type":"api_error","message":"at 10.0.0.7"}}',
]


@pytest.mark.parametrize("told", NO_COUNTS, ids=lambda told: repr(told[:40]))
async def test_an_answer_that_is_no_count_is_their_failure(tmp_path: Path, told: bytes) -> None:
    async with counting(tmp_path, answered(told)) as (gateway, _):
        answer = await count(gateway)
        assert answer.status_code == 502
        assert error_of(answer)["type"] == "api_error"
        assert "10.0.0.7" not in answer.text


REFUSAL = b'{"type":"error","error":{"type":"invalid_request_error","message":"messages: too many"}}'
TELLING = b'{"type":"error","error":{"type":"invalid_request_error","message":"see http://10.0.0.7/"}}'
FAILURES: dict[str, tuple[Script, int, str]] = {
    "400": (answered(REFUSAL, status=b"400 Bad"), 400, "messages: too many"),
    "400 that names a host": (answered(TELLING, status=b"400 Bad"), 400, "the model could not take the request"),
    "413": (answered(REFUSAL, status=b"413 Large"), 413, "messages: too many"),
    "401": (answered(REFUSAL, status=b"401 No"), 502, ""),
    "403": (answered(REFUSAL, status=b"403 No"), 502, ""),
    "500": (answered(REFUSAL, status=b"500 Oops"), 502, ""),
    "503": (answered(b"{}", b"Retry-After: 7", status=b"503 Busy"), 503, ""),
    "429": (answered(b"{}", b"Retry-After: 7", status=b"429 Busy"), 429, ""),
    "504": (answered(b"{}", status=b"504 Slow"), 504, ""),
    "cut": ([CLOSE], 502, ""),
    "a body cut": (CUT_BODY, 502, ""),
    "no HTTP": ([b"hello\r\n\r\n", CLOSE], 502, ""),
}


@pytest.mark.parametrize(("script", "status", "says"), list(FAILURES.values()), ids=list(FAILURES))
async def test_what_goes_wrong_is_told_as_for_a_prompt(tmp_path: Path, script: Script, status: int, says: str) -> None:
    async with counting(tmp_path, script) as (gateway, _):
        answer = await count(gateway)
        assert answer.status_code == status
        error = error_of(answer)
        assert not says or error["message"] == says
        assert "10.0.0.7" not in answer.text
        if status in (429, 503):
            assert answer.headers["retry-after"] == "7"


LACKING = [b"404 Not Found", b"405 Method Not Allowed", b"501 Not Implemented"]


@pytest.mark.parametrize("status", LACKING, ids=bytes.decode)
async def test_one_that_does_not_count_is_said_to(tmp_path: Path, status: bytes) -> None:
    async with counting(tmp_path, answered(b'{"detail":"Not Found"}', status=status)) as (gateway, _):
        answer = await count(gateway)
        assert answer.status_code == 400
        error = error_of(answer)
        assert error["type"] == "invalid_request_error"
        assert error["message"] == "model: tokens cannot be counted for this model: its upstream does not count them"


@pytest.mark.parametrize("script", [DOWN, answered(b"{}", status=LACKING[0]), CUT_BODY, answered(b"{}")], ids=str)
async def test_another_that_counts_is_asked_where_one_does_not(tmp_path: Path, script: Script) -> None:
    async with pair(tmp_path, script, SEVEN) as (gateway, first, spare):
        assert (await count(gateway)).json() == {"input_tokens": 7}
        assert (len(first.requests), len(spare.requests)) == (1, 1)
        [line] = gateway.lines("attempt")
        assert (line["name"], line["model"]) == ("first", MODEL)


@pytest.mark.parametrize("order", [1, -1])
async def test_that_it_cannot_be_counted_is_said_only_where_nobody_failed_to(tmp_path: Path, order: int) -> None:
    scripts: list[Script] = [DOWN, answered(b"{}", status=LACKING[0])][::order]
    async with pair(tmp_path, *scripts) as (gateway, *_):
        assert (await count(gateway)).status_code == 502


async def test_what_is_wrong_with_the_question_is_asked_once(tmp_path: Path) -> None:
    async with pair(tmp_path, answered(REFUSAL, status=b"400 Bad"), SEVEN) as (gateway, _, spare):
        assert (await count(gateway)).status_code == 400
        assert spare.requests == []


async def test_one_that_speaks_chat_alone_is_passed_over(tmp_path: Path) -> None:
    async with ScriptedUpstream(SEVEN) as first, ScriptedUpstream(SEVEN) as second:
        text = local(first.port, "first") + speaking(second, "second") + model('["first", "second"]')
        async with serving_upstreams(tmp_path, text) as gateway:
            assert (await count(gateway)).json() == {"input_tokens": 7}
            assert first.requests == []
    (tmp_path / "alone").mkdir()
    async with (
        ScriptedUpstream(SEVEN) as engine,
        serving_upstreams(tmp_path / "alone", local(engine.port) + model('"engine"')) as gateway,
    ):
        answer = await count(gateway)
        assert (answer.status_code, "cannot be counted" in error_of(answer)["message"]) == (400, True)
        assert engine.requests == []


@pytest.mark.parametrize(
    "script",
    [
        DOWN,
        answered(b"{}", status=LACKING[2]),
        answered(b"{}", b"Retry-After: 60", status=b"429 Busy"),
        answered(b"{}"),
    ],
    ids=str,
)
async def test_counts_that_fail_say_nothing_of_prompts(tmp_path: Path, script: Script) -> None:
    """Services limit the two apart, and one that cannot count may well answer."""
    async with ScriptedUpstream() as engine:
        engine.choose = lambda seen: script if b"count" in seen.target else answered(completion())
        async with serving_upstreams(tmp_path, speaking(engine) + model('"engine"')) as gateway:
            for _ in range(FAILURES_MOST + 1):
                assert (await count(gateway)).status_code != 200
            assert len(engine.requests) == FAILURES_MOST + 1
            assert (await gateway.post()).status_code == 200
            assert (await gateway.client.get("/health/ready")).json() == {"status": "ready"}


async def test_one_that_counts_is_there_again(tmp_path: Path) -> None:
    """Or a client that counts before it asks would never find out."""
    async with ScriptedUpstream() as engine:
        engine.choose = lambda seen: SEVEN if b"count" in seen.target else DOWN
        async with serving_upstreams(tmp_path, speaking(engine) + model('"engine"')) as gateway:
            for _ in range(FAILURES_MOST):
                await gateway.post()
            assert (await count(gateway)).status_code == 503
            health = gateway.upstreams.opened["engine"].health
            health._alone_until = 0.0
            assert health.is_left_alone
            assert (await count(gateway)).json() == {"input_tokens": 7}
            assert not health.is_left_alone


# What a prompt is spared, a count of it is spared


@pytest.fixture
def service(tmp_path: Path) -> Iterator[AttestedService]:
    with serving(tmp_path / "service", tls=True) as service:
        service.alter["answer"] = five
        yield service


def five(reply: Reply, seen: Seen) -> Reply:
    return Reply((b'{"input_tokens":5}',)) if seen.path == COUNT else reply


def attested(service: AttestedService, **keys: Any) -> str:
    return aci(service, surfaces=["chat", "messages"], **keys)


async def test_a_verified_upstream_counts(tmp_path: Path, service: AttestedService) -> None:
    async with aggregating(tmp_path, attested(service) + model('"second"')) as gateway:
        assert (await count(gateway)).json() == {"input_tokens": 5}
        assert (await count(gateway, provider={"aci_verified": True})).json() == {"input_tokens": 5}
        [session] = (await gateway.client.get("/v1/aci/sessions")).json()["sessions"]
        pinned = {"aci_session_ids": [session["session_id"]]}
        assert (await count(gateway, provider=pinned)).json() == {"input_tokens": 5}
        assert [seen.path for seen in service.prompts] == [COUNT] * 3
        assert all(b"aci_" not in seen.body for seen in service.prompts)


async def test_one_that_does_not_prove_itself_sees_no_count(tmp_path: Path, service: AttestedService) -> None:
    service.alter["report"] = broken_report
    async with aggregating(tmp_path, attested(service) + model('"second"')) as gateway:
        answer = await count(gateway)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "upstream_verification_failed")
        assert "x-receipt-id" not in answer.headers
        assert service.prompts == []


async def test_one_that_loses_its_attestation_sees_no_further_count(tmp_path: Path, service: AttestedService) -> None:
    async with aggregating(tmp_path, attested(service) + model('"second"')) as gateway:
        assert (await count(gateway)).status_code == 200
        service.alter["report"] = broken_report
        await gateway.attested("second").verify()
        assert (await count(gateway)).status_code == 503
        assert len(service.prompts) == 1


async def test_another_session_than_the_pinned_sees_no_count(tmp_path: Path, service: AttestedService) -> None:
    async with aggregating(tmp_path, attested(service) + model('"second"')) as gateway:
        answer = await count(gateway, provider={"aci_session_ids": ["0" * 64]})
        assert (answer.status_code, answer.json()["error"]["type"]) == (412, "session_not_accepted")
        assert service.prompts == []


async def test_another_key_is_verified_before_it_sees_a_count(tmp_path: Path, service: AttestedService) -> None:
    async with aggregating(tmp_path, attested(service) + model('"second"')) as gateway:
        await count(gateway)
        gateway.attested("second").relays[-1].channel.pin(frozenset({bytes(32)}))  # as if the service had been replaced
        reports = len([seen for seen in service.seen if seen.nonce is not None])
        assert (await count(gateway)).status_code == 200
        assert len([seen for seen in service.seen if seen.nonce is not None]) == reports + 1
        gateway.attested("second").relays[-1].channel.pin(frozenset({bytes(32)}))
        service.alter["report"] = broken_report
        assert (await count(gateway)).status_code in (502, 503)
        assert len(service.prompts) == 2


@pytest.mark.parametrize(
    ("members", "keys"),
    [({"provider": {"aci_verified": True}}, {}), ({}, {"tee_only": True})],
    ids=["the client asks for it", "the operator does"],
)
async def test_where_a_tee_is_required_a_provider_that_proves_nothing_sees_no_count(
    tmp_path: Path, service: AttestedService, members: dict[str, Any], keys: dict[str, Any]
) -> None:
    async with ScriptedUpstream(SEVEN) as engine:
        other = upstream(
            "other",
            "openai",
            f"http://127.0.0.1:{engine.port}/v1",
            allow_unverified=True,
            probe="none",
            surfaces=["chat", "messages"],
        )
        async with aggregating(tmp_path, other + attested(service) + model('["other", "second"]', **keys)) as gateway:
            assert (await count(gateway, **members)).json() == {"input_tokens": 5}
            assert engine.requests == []
            service.alter["report"] = broken_report
            await gateway.attested("second").verify()
            answer = await count(gateway, **members)
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, "upstream_verification_failed")
            assert engine.requests == []
            if not keys:  # the twin: where nobody asks for more, it is asked
                assert (await count(gateway)).json() == {"input_tokens": 7}


async def test_a_header_that_asked_for_verification_once_is_refused(tmp_path: Path) -> None:
    async with counting(tmp_path, SEVEN) as (gateway, engine):
        answer = await count(gateway, {"X-Upstream-Verification": "required"})
        assert answer.status_code == 400
        assert engine.requests == []


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b'{"model":"vendor/model","model":"vendor/model"}', 400),
        (b'{"model":"vendor/model","provider":{"aci_other":1}}', 400),
        (b'{"model":"none"}', 404),
    ],
)
async def test_what_nobody_could_route_is_refused_here(tmp_path: Path, content: bytes, status: int) -> None:
    async with counting(tmp_path, SEVEN) as (gateway, engine):
        assert (await gateway.client.post(COUNT, content=content)).status_code == status
        assert engine.requests == []


# Time


async def test_the_client_that_leaves_ends_the_upstreams_work(tmp_path: Path) -> None:
    async with counting(tmp_path, [HANG]) as (gateway, engine):
        async with raw_connection(gateway.url) as client:
            await client.send(raw_post(json.dumps(body()).encode(), target=COUNT.encode()))
            await engine.asked(1)
            left_at = asyncio.get_running_loop().time()
        await engine.left(1)
        assert engine.departures[0].at - left_at < ABORT_WITHIN_S
        await asyncio.wait_for(gateway.lifecycle.drain(5), 5)
        assert gateway.lifecycle.in_flight == 0
        assert gateway.lines("fault") == []


async def test_a_drain_waits_for_a_count_and_ends_it_when_its_time_is_over(tmp_path: Path) -> None:
    async with counting(tmp_path, [HANG]) as (gateway, engine):
        asked = asyncio.create_task(count(gateway))
        await engine.asked(1)
        await gateway.lifecycle.drain(0.01)
        answer = await asked
        assert (answer.status_code, error_of(answer)["type"]) == (503, "api_error")
        assert "retry-after" in answer.headers
        await engine.left(1)
        assert (await count(gateway)).status_code == 503
        assert len(engine.requests) == 1


@pytest.mark.parametrize("script", [[HANG], [chunked_head(), chunk(b" "), HANG]], ids=["silent", "slow"])
async def test_a_count_has_a_time_in_all(tmp_path: Path, script: Script) -> None:
    """Also where the upstream is never silent for long."""
    async with ScriptedUpstream(script) as engine:
        text = "[limits]\nfirst_byte_timeout_s = 0.2\n" + speaking(engine) + model('"engine"')
        async with serving_upstreams(tmp_path, text) as gateway:
            answer = await count(gateway)
            assert (answer.status_code, error_of(answer)["type"]) == (504, "timeout_error")
            await engine.left(1)


async def test_a_stalled_upstream_is_not_repeated_elsewhere(tmp_path: Path) -> None:
    async with ScriptedUpstream([HANG]) as slow, ScriptedUpstream(SEVEN) as spare:
        text = speaking(slow, "slow", first_byte_timeout_s=0.1) + speaking(spare, "spare")
        async with serving_upstreams(tmp_path, text + model('["slow", "spare"]')) as gateway:
            assert (await count(gateway)).status_code == 504
            assert spare.requests == []
