"""A browser may call every route from any page, and read every answer and every error (wire contract 1)."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from gateway_app import ScriptedGateway, answering, bearer, chat, serving_scripted
from scripted import response

ORIGIN = {"Origin": "https://app.example"}
PATHS = [
    "/v1/chat/completions", "/v1/models", "/v1/models/vendor/model", "/v1/signature/x", "/v1/attestation/report",
    "/health", "/", "/no/such/route",
]  # fmt: skip


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        yield gateway


def assert_readable_by_a_page(answer: httpx2.Response) -> None:
    assert answer.headers.get_list("access-control-allow-origin") == ["*"]
    exposed = answer.headers["access-control-expose-headers"].lower().replace(" ", "").split(",")
    assert {"x-receipt-id", "x-aci-version", "x-aci-keyset-digest", "x-e2ee-applied", "retry-after"} <= set(exposed)
    assert "access-control-allow-credentials" not in answer.headers  # with `*` it would be wrong, and we need no cookie
    assert "set-cookie" not in answer.headers
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_may_be_read_by_any_page(gateway: ScriptedGateway, path: str) -> None:
    for method in ("GET", "HEAD", "POST", "DELETE"):
        assert_readable_by_a_page(await gateway.client.request(method, path, headers=ORIGIN))


async def test_answers_and_failures_of_prompts_may_be_read(gateway: ScriptedGateway) -> None:
    for stream in (False, True):
        assert_readable_by_a_page(await gateway.post(stream=stream))
    gateway.follow([response(b"", status=b"500 X")])
    failed = await gateway.post()
    assert failed.status_code == 502
    assert_readable_by_a_page(failed)


async def test_refusals_for_a_missing_key_may_be_read(gateway: ScriptedGateway) -> None:
    await gateway.new_key()
    refused = await gateway.client.post("/v1/chat/completions", json=chat(), headers=ORIGIN | bearer("wrong"))
    assert refused.status_code == 401
    assert_readable_by_a_page(refused)


@pytest.mark.parametrize("path", PATHS)
async def test_a_preflight_allows_what_the_sdks_send(gateway: ScriptedGateway, path: str) -> None:
    await gateway.new_key()  # a preflight never carries one
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-api-key,x-stainless-lang",
    }
    answer = await gateway.client.options(path, headers=ORIGIN | asked)
    assert answer.status_code == 204
    assert answer.content == b""
    assert_readable_by_a_page(answer)
    assert {"GET", "POST"} <= set(answer.headers["access-control-allow-methods"].replace(" ", "").split(","))
    allowed = answer.headers["access-control-allow-headers"].lower().replace(" ", "").split(",")
    assert {"*", "authorization"} <= set(allowed)  # `*` does not cover Authorization
    assert int(answer.headers["access-control-max-age"]) > 0


async def test_a_preflight_reaches_no_engine(gateway: ScriptedGateway) -> None:
    await gateway.client.request("OPTIONS", "/v1/chat/completions", json=chat())
    assert gateway.engine.accepted == 0
