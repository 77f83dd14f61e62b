"""The disk is full. Without a proof no answer is given for a whole one, and the service recovers with the space."""

import hashlib
import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from gateway_app import ScriptedGateway, answering, chat, serving_scripted, token
from scripted import CLOSE, HANG, Script, sse_head

PATH = "/v1/chat/completions"


@contextmanager
def full_disk(home: Path) -> Iterator[None]:
    """The kernel refuses to let the store's files grow, as it does on a full disk. Needs no privilege."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((home / "confide.db-wal").stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def ask(gateway: ScriptedGateway, **members: object) -> httpx2.Response:
    return await gateway.client.post(PATH, json=chat("Hello", **members))


async def assert_ended(gateway: ScriptedGateway, requests: int, *, has_receipt: bool, **fields: object) -> None:
    await gateway.outcome(requests)
    line = gateway.last_line()
    assert {name: line[name] for name in fields} == fields
    assert (line["receipt"] is not None) is has_receipt
    assert (gateway.slots.free, gateway.channel.live, gateway.lifecycle.in_flight) == (4, 0, 0)


async def has_signature(gateway: ScriptedGateway) -> bool:
    answer = await gateway.client.get(f"/v1/signature/{gateway.last_line()['id']}")
    return answer.status_code == 200


def error_in_tail(body: bytes) -> dict[str, object]:
    """The error event before `[DONE]`."""
    *_, error, done, _ = body.split(b"\n\n")
    assert done == b"data: [DONE]"
    document: dict[str, dict[str, object]] = json.loads(error.removeprefix(b"data: "))
    return document["error"]


async def assert_recovered(gateway: ScriptedGateway, requests: int) -> None:
    gateway.engine.scripts = (answering("Hi"),)
    for stream in (False, True):
        requests += 1
        assert (await ask(gateway, stream=stream)).content.count(b"Hi") == 1
        await assert_ended(gateway, requests, outcome="complete", reason=None, has_receipt=True)
        assert await has_signature(gateway)


@pytest.mark.parametrize("n", [1, 2])
async def test_a_buffered_answer_is_withheld(tmp_path: Path, n: int) -> None:
    async with serving_scripted(tmp_path, answering("the answer")) as gateway:
        await ask(gateway)
        with full_disk(tmp_path):
            answer = await ask(gateway, n=n)
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "service_unavailable"
        assert int(answer.headers["retry-after"]) > 0
        assert b"the answer" not in answer.content
        assert str(tmp_path).encode() not in answer.content
        await assert_ended(gateway, 2, outcome="failed", reason="store", has_receipt=False, status=503)
        assert not await has_signature(gateway)
        await assert_recovered(gateway, 2)


@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_does_not_end_as_if_it_were_whole(tmp_path: Path, n: int) -> None:
    async with serving_scripted(tmp_path, answering("one", "two")) as gateway:
        await ask(gateway)
        with full_disk(tmp_path):
            answer = await ask(gateway, stream=True, n=n)
        assert answer.content.count(b"two") == n
        assert error_in_tail(answer.content)["code"] == 503
        assert answer.content.count(b"[DONE]") == 1
        await assert_ended(gateway, 2, outcome="truncated", reason="store", has_receipt=False, status=200)
        assert not await has_signature(gateway)
        await assert_recovered(gateway, 2)


async def test_a_stream_that_broke_tells_so_also_without_a_proof(tmp_path: Path) -> None:
    scripts: list[Script] = [answering("Hi"), [sse_head(), token("one"), CLOSE]]
    async with serving_scripted(tmp_path, *scripts) as gateway:
        await ask(gateway)
        with full_disk(tmp_path):
            answer = await ask(gateway, stream=True)
        assert error_in_tail(answer.content)["code"] == 503
        await assert_ended(gateway, 2, outcome="truncated", reason="store", has_receipt=False)
        await assert_recovered(gateway, 2)


async def test_a_client_that_left_is_still_logged_as_one_that_left(tmp_path: Path) -> None:
    scripts: list[Script] = [answering("Hi"), [sse_head(), token("one"), HANG]]
    async with serving_scripted(tmp_path, *scripts) as gateway:
        await ask(gateway)
        with full_disk(tmp_path):
            async with gateway.client.stream("POST", PATH, json=chat("Hello", stream=True)) as answer:
                await anext(answer.aiter_raw())
            await gateway.engine.left(1)
            await assert_ended(gateway, 2, outcome="client_closed", reason="store", has_receipt=False)
        await assert_recovered(gateway, 2)


async def test_earlier_proofs_can_be_read_meanwhile(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        answer = await ask(gateway)
        with full_disk(tmp_path):
            signature = await gateway.client.get(f"/v1/signature/{answer.json()['id']}")
            assert signature.status_code == 200
            assert (await gateway.client.get("/health")).status_code == 200


async def test_a_proof_is_there_as_soon_as_the_client_sees_the_end(tmp_path: Path) -> None:
    async with (
        serving_scripted(tmp_path, answering("Hi")) as gateway,
        gateway.client.stream("POST", PATH, json=chat("Hello", stream=True)) as answer,
    ):
        body = b""
        async for part in answer.aiter_raw():
            body += part
            if b"[DONE]" in body:
                break
        chat_id = json.loads(body.split(b"\n\n")[0].removeprefix(b"data: "))["id"]
        proof = await gateway.store.proof(chat_id, now=int(time.time()))
        assert proof is not None
        assert proof.response_sha256 == hashlib.sha256(body).digest()
