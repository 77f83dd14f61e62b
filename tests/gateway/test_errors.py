"""Every error a client can meet has the one shape, the right class, and says nothing of content (wire contract 4)."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import openai
import pytest

from confide.config import Config, Engine, Limits, Server
from confide.upstream.channel import Timeouts
from gateway_app import MODEL, ScriptedGateway, answering, bearer, chat, serving_scripted, token
from scripted import HANG, response, sse_head

CANARY = "CANARY-3f9a1c"
SMALL = Config(
    server=Server(max_body_bytes=2000),
    limits=Limits(queue=1, queue_timeout_s=0.05),
    engine=Engine(slots=1),
    model=(msgspec.structs.replace(Config().model[0], id=MODEL),),
)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    timeouts = Timeouts(first_byte_s=0.3, idle_s=0.3)
    async with serving_scripted(tmp_path, answering("Hi"), config=SMALL, timeouts=timeouts) as gateway:
        yield gateway


async def ask(gateway: ScriptedGateway, **members: object) -> httpx2.Response:
    """A request that carries the canary wherever content may stand."""
    headers = {"X-Custom": CANARY, "X-Request-Id": CANARY}
    body = chat(CANARY, user=CANARY, stop=CANARY, metadata={CANARY: CANARY}, **members)
    return await gateway.client.post(f"/v1/chat/completions?q={CANARY}", json=body, headers=headers)


async def malformed(gateway: ScriptedGateway) -> httpx2.Response:
    return await gateway.client.post("/v1/chat/completions", content=f'{{"{CANARY}": "{CANARY}'.encode())


async def wrong_member(gateway: ScriptedGateway) -> httpx2.Response:
    return await ask(gateway, temperature=CANARY)


async def unknown_algorithm(gateway: ScriptedGateway) -> httpx2.Response:
    return await gateway.client.get(f"/v1/signature/x?signing_algo={CANARY}")


async def no_key(gateway: ScriptedGateway) -> httpx2.Response:
    await gateway.new_key()
    return await ask(gateway)


async def wrong_key(gateway: ScriptedGateway) -> httpx2.Response:
    await gateway.new_key()
    return await gateway.client.post("/v1/chat/completions", json=chat(CANARY), headers=bearer(CANARY))


async def bound_proof(gateway: ScriptedGateway) -> httpx2.Response:
    key = await gateway.new_key()
    answer = await gateway.client.post("/v1/chat/completions", json=chat(CANARY), headers=bearer(key))
    return await gateway.client.get(f"/v1/signature/{answer.json()['id']}")


async def unknown_model(gateway: ScriptedGateway) -> httpx2.Response:
    return await ask(gateway, model=CANARY)


async def unknown_route(gateway: ScriptedGateway) -> httpx2.Response:
    return await gateway.client.get(f"/v1/{CANARY}?{CANARY}")


async def unknown_proof(gateway: ScriptedGateway) -> httpx2.Response:
    return await gateway.client.get(f"/v1/signature/{CANARY}")


async def wrong_method(gateway: ScriptedGateway) -> httpx2.Response:
    return await gateway.client.put("/v1/models", content=CANARY)


async def wrong_method_on_prompts(gateway: ScriptedGateway) -> httpx2.Response:
    return await gateway.client.get("/v1/chat/completions")


async def too_large(gateway: ScriptedGateway) -> httpx2.Response:
    return await gateway.client.post("/v1/chat/completions", json=chat(CANARY * 500))


async def too_many(gateway: ScriptedGateway) -> httpx2.Response:
    await gateway.slots.acquire()  # there is one slot, and one place in the queue
    return await ask(gateway, n=2)


async def our_fault(gateway: ScriptedGateway) -> httpx2.Response:
    break_method(gateway.store, "commit")
    return await ask(gateway)


async def our_fault_elsewhere(gateway: ScriptedGateway) -> httpx2.Response:
    break_method(gateway.attester, "attest")
    return await gateway.client.get("/v1/attestation/report")


def break_method(part: object, name: str) -> None:
    """Put a fault into the service, as no input of a client's brings one about."""

    async def broken(_: object) -> None:
        raise RuntimeError(CANARY)

    setattr(part, name, broken)


async def engine_failed(gateway: ScriptedGateway) -> httpx2.Response:
    gateway.follow([response(CANARY.encode(), status=b"500 X")])
    return await ask(gateway)


async def engine_down(gateway: ScriptedGateway) -> httpx2.Response:
    gateway.switch.is_ready = False
    return await ask(gateway)


async def shutting_down(gateway: ScriptedGateway) -> httpx2.Response:
    await gateway.lifecycle.drain(0, grace_s=0)
    return await ask(gateway)


async def no_slot_in_time(gateway: ScriptedGateway) -> httpx2.Response:
    await gateway.slots.acquire()
    return await ask(gateway)


async def store_closed(gateway: ScriptedGateway) -> httpx2.Response:
    await gateway.store.close()
    return await ask(gateway)


async def engine_silent(gateway: ScriptedGateway) -> httpx2.Response:
    gateway.follow([sse_head(), token(CANARY), HANG])
    return await ask(gateway)


Cause = Callable[[ScriptedGateway], Awaitable[httpx2.Response]]

TABLE: list[tuple[Cause, int, str, str | None, str | None]] = [
    # what happens, status, type, code, param
    (malformed, 400, "invalid_request_error", None, None),
    (wrong_member, 400, "invalid_request_error", None, "temperature"),
    (unknown_algorithm, 400, "invalid_signing_algo", None, "signing_algo"),
    (no_key, 401, "authentication_error", "invalid_api_key", None),
    (wrong_key, 401, "authentication_error", "invalid_api_key", None),
    (bound_proof, 401, "unauthorized", None, None),
    (unknown_model, 404, "model_not_found", "model_not_found", "model"),
    (unknown_route, 404, "not_found", None, None),
    (unknown_proof, 404, "not_found", None, None),
    (wrong_method, 405, "invalid_request_error", None, None),
    (wrong_method_on_prompts, 405, "invalid_request_error", None, None),
    (too_large, 413, "invalid_request_error", None, None),
    (too_many, 429, "rate_limit_error", "rate_limit_exceeded", None),
    (our_fault, 500, "internal_error", None, None),
    (our_fault_elsewhere, 500, "internal_error", None, None),
    (engine_failed, 502, "upstream_error", None, None),
    (engine_down, 503, "service_unavailable", None, None),
    (shutting_down, 503, "service_unavailable", None, None),
    (no_slot_in_time, 503, "service_unavailable", None, None),
    (store_closed, 503, "service_unavailable", None, None),
    (engine_silent, 504, "timeout_error", None, None),
]


@pytest.mark.parametrize(
    ("cause", "status", "type", "code", "param"), TABLE, ids=lambda value: getattr(value, "__name__", None)
)
async def test_an_error_is_the_documented_envelope_and_quotes_nothing(
    gateway: ScriptedGateway,
    caplog: pytest.LogCaptureFixture,
    cause: Cause,
    status: int,
    type: str,
    code: str | None,
    param: str | None,
) -> None:
    caplog.set_level(logging.WARNING)
    answer = await cause(gateway)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert list(error) == ["message", "type", "code", "param"]
    assert (error["type"], error["code"], error["param"]) == (type, code, param)
    assert error["message"]
    for said in (answer.text, str(answer.headers), gateway.log_text(), caplog.text):
        assert CANARY not in said
        assert "Traceback" not in said


@pytest.mark.parametrize("cause", [row[0] for row in TABLE if row[1] in (429, 503)], ids=lambda cause: cause.__name__)
async def test_whoever_should_try_again_is_told_when(gateway: ScriptedGateway, cause: Cause) -> None:
    assert 1 <= int((await cause(gateway)).headers["retry-after"]) <= 60


@pytest.mark.parametrize("cause", [row[0] for row in TABLE if row[1] == 401], ids=lambda cause: cause.__name__)
async def test_whoever_lacks_a_key_is_told_the_scheme(gateway: ScriptedGateway, cause: Cause) -> None:
    assert (await cause(gateway)).headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("cause", [row[0] for row in TABLE if row[1] == 500], ids=lambda cause: cause.__name__)
async def test_a_fault_of_ours_is_recorded_by_its_type(gateway: ScriptedGateway, cause: Cause) -> None:
    await cause(gateway)
    assert '"event":"fault","error":"RuntimeError"' in gateway.log_text()


SDK_CLASSES: list[tuple[Cause, type[openai.APIStatusError]]] = [
    (wrong_member, openai.BadRequestError),
    (no_key, openai.AuthenticationError),
    (unknown_model, openai.NotFoundError),
    (too_many, openai.RateLimitError),
    (engine_failed, openai.InternalServerError),
    (engine_down, openai.InternalServerError),
]


@pytest.mark.parametrize(("cause", "expected"), SDK_CLASSES, ids=lambda value: value.__name__)
async def test_the_official_sdk_raises_its_own_class(
    gateway: ScriptedGateway, cause: Cause, expected: type[openai.APIStatusError]
) -> None:
    status = (await cause(gateway)).status_code
    changes: dict[Cause, dict[str, object]] = {
        wrong_member: {"temperature": 9},
        unknown_model: {"model": CANARY},
        too_many: {"n": 2},
    }
    arguments: Any = chat(CANARY) | changes.get(cause, {})
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(expected) as caught:
            await client.chat.completions.create(**arguments)
    assert caught.value.status_code == status
    assert caught.value.type


GET_ROUTES = [
    "/", "/health", "/health/ready", "/llms.txt", "/v1/models", f"/v1/models/{MODEL}", "/v1/models/providers/confide",
    "/v1/embeddings/models", "/v1/attestation/report",
]  # fmt: skip


async def test_head_is_get_without_a_body(gateway: ScriptedGateway) -> None:
    for path in GET_ROUTES:
        got, head = await gateway.client.get(path), await gateway.client.head(path)
        assert head.status_code == got.status_code == 200, path
        assert head.content == b""
        assert head.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE"])
async def test_a_route_that_is_there_refuses_a_wrong_method(gateway: ScriptedGateway, method: str) -> None:
    for path in (*GET_ROUTES, "/v1/signature/x"):
        answer = await gateway.client.request(method, path)
        assert answer.status_code == 405, path
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE"])
async def test_the_prompt_route_takes_post_alone(gateway: ScriptedGateway, method: str) -> None:
    answer = await gateway.client.request(method, "/v1/chat/completions")
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"]
    assert method == "HEAD" or answer.json()["error"]["type"] == "invalid_request_error"


NO_ROUTES = [
    "/v1",
    "/v1/",
    "/v1/chat",
    "/v1/chat/completions/",
    "/v2/models",
    "/health/",
    "/redoc",
    "/openapi.yaml",
    "/x",
]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
async def test_a_route_that_is_not_there_is_not_found_and_leads_nowhere(gateway: ScriptedGateway, method: str) -> None:
    for path in NO_ROUTES:
        answer = await gateway.client.request(method, path)
        assert answer.status_code == 404, path
        assert answer.json()["error"]["type"] == "not_found"
