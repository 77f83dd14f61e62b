"""Every row of the table "Every exit with an engine or a service behind" in docs/receipts.md, driven and held against
what the row says. A row without a case fails, and so does a case without its row.
"""

import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from attested_service import serving
from confide.protocol.canonical import digest_of
from confide.protocol.receipt import FORWARDED, RECEIVED, RETURNED
from confide.upstream.health import FAILURES_MOST
from gateway.test_attested_upstreams import aci, aggregating, broken_report
from relay_app import (
    DONE,
    RelayGateway,
    answered,
    body,
    completion,
    delta,
    local,
    model,
    serving_upstreams,
    streamed,
    upstream,
)
from scripted import CLOSE, HANG, Script, ScriptedUpstream, chunk, sse_head

PAGE = Path(__file__).parent.parent.parent / "docs" / "receipts.md"
SESSION = "95" * 32
HI = answered(completion())
DOWN = answered(b"{}", status=b"500 Oops")
BAD = b'{"error":{"message":"must be a number","type":"invalid_request_error","code":null,"param":"seed"}}'


class Row(NamedTuple):
    exit: str
    client: str
    outcome: str
    forwarded: str
    more: str


class Exit(NamedTuple):
    gateway: RelayGateway
    sent: bytes
    answer: httpx2.Response


def table() -> list[Row]:
    section = PAGE.read_text().partition("## Every exit with an engine or a service behind\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [Row(*(cell.strip() for cell in line.strip("|").split("|"))) for line in lines[2:]]


Drive = Callable[[Path], AbstractAsyncContextManager[Exit]]
CASES: list[tuple[str, Drive]] = []


def case(exit: str) -> Callable[[Callable[[Path], AsyncIterator[Exit]]], None]:
    def register(drive: Callable[[Path], AsyncIterator[Exit]]) -> None:
        CASES.append((exit, asynccontextmanager(drive)))

    return register


async def asked(gateway: RelayGateway, sent: bytes | None = None) -> Exit:
    sent = body() if sent is None else sent
    return Exit(gateway, sent, await gateway.post(sent))


def scripted(exit: str, *scripts: Script, stream: bool = False, before: int = 0, **keys: object) -> None:
    """One engine for each script, asked in order; the prompt of this exit comes after `before` others."""

    @case(exit)
    async def drive(home: Path) -> AsyncIterator[Exit]:
        async with AsyncExitStack() as closing:
            engines = [await closing.enter_async_context(ScriptedUpstream(script)) for script in scripts]
            names = [f"engine-{index}" for index in range(len(engines))]
            text = "".join(local(each.port, name, **keys) for each, name in zip(engines, names, strict=True))
            gateway = await closing.enter_async_context(serving_upstreams(home, text + model(str(names))))
            for _ in range(before):
                await gateway.post()
            yield await asked(gateway, body(stream=stream))


scripted("an engine inside the workload answers", HI)
scripted("an engine inside the workload answers", streamed(delta("Hi", finish="stop"), DONE), stream=True)
scripted("the next one answers", DOWN, HI)
scripted("none serves", DOWN, [CLOSE])
scripted("none serves", DOWN, DOWN, stream=True)
scripted("one asks for rest", answered(b"{}", b"Retry-After: 9", status=b"429 Busy"))
scripted("it takes too long", [HANG], first_byte_timeout_s=0.1)
scripted("it finds the request at fault", answered(BAD, status=b"400 No"))
scripted("it breaks off in mid-stream", [sse_head(), chunk(delta("Hi")), CLOSE], stream=True)
scripted("it takes too long in mid-stream", [sse_head(), chunk(delta("Hi")), HANG], stream=True, idle_timeout_s=0.1)
scripted("all are left alone after failures", DOWN, before=FAILURES_MOST)


@case("none can be connected to")
async def nobody_listens(home: Path) -> AsyncIterator[Exit]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with serving_upstreams(home, local(port) + model('"engine"')) as gateway:
        yield await asked(gateway)


@case("all connections are in use")
async def all_in_use(home: Path) -> AsyncIterator[Exit]:
    async with (
        ScriptedUpstream([sse_head(), chunk(delta("Hi")), HANG]) as engine,
        serving_upstreams(home, local(engine.port, max_connections=1) + model('"engine"')) as gateway,
        gateway.client.stream("POST", "/v1/chat/completions", content=body(stream=True)),
    ):
        yield await asked(gateway)


@case("a provider that proves nothing answers")
async def unproven(home: Path) -> AsyncIterator[Exit]:
    async with ScriptedUpstream(HI) as engine:
        text = upstream("other", "openai", f"http://127.0.0.1:{engine.port}/v1", allow_unverified=True, probe="none")
        async with serving_upstreams(home, text + model('"other"')) as gateway:
            yield await asked(gateway)


@case("a verified service is required of a provider that proves nothing")
async def required(home: Path) -> AsyncIterator[Exit]:
    async with ScriptedUpstream(HI) as engine:
        text = upstream("other", "openai", f"http://127.0.0.1:{engine.port}/v1", allow_unverified=True, probe="none")
        async with serving_upstreams(home, text + model('"other"')) as gateway:
            yield await asked(gateway, body(provider={"aci_verified": True}))
            assert engine.requests == []


@case("a verified service answers")
async def verified(home: Path) -> AsyncIterator[Exit]:
    with serving(home / "other", tls=True) as service:
        async with aggregating(home, aci(service) + model('"second"')) as gateway:
            yield await asked(gateway)


@case("it cannot be verified")
async def not_verified(home: Path) -> AsyncIterator[Exit]:
    with serving(home / "other", tls=True) as service:
        service.alter["report"] = broken_report
        async with aggregating(home, aci(service) + model('"second"')) as gateway:
            yield await asked(gateway)
            assert service.prompts == []


@case("its session is none of those asked for")
async def not_pinned(home: Path) -> AsyncIterator[Exit]:
    with serving(home / "other", tls=True) as service:
        async with aggregating(home, aci(service) + model('"second"')) as gateway:
            yield await asked(gateway, body(provider={"aci_session_ids": [SESSION]}))
            assert service.prompts == []


def test_each_row_has_a_case_and_each_case_a_row() -> None:
    assert {row.exit for row in table()} == {exit for exit, _ in CASES}


@pytest.mark.parametrize(("exit", "drive"), CASES, ids=[f"{index} {exit}" for index, (exit, _) in enumerate(CASES)])
async def test_the_exit_is_what_its_row_says(exit: str, drive: Drive, tmp_path: Path) -> None:
    [row] = [row for row in table() if row.exit == exit]
    async with drive(tmp_path) as reached:
        gateway, sent, answer = reached
        is_stream_cut = row.client.startswith("error event")
        assert answer.status_code == (200 if is_stream_cut else int(row.client))
        if is_stream_cut:
            assert b'"error"' in answer.content
            assert answer.content.endswith(DONE)
        receipt = await gateway.receipt(answer)
        assert f"`{receipt.outcome}`" == row.outcome
        assert receipt.body_hash(RECEIVED) == digest_of(sent)
        assert receipt.body_hash(RETURNED) == digest_of(answer.content)
        assert (receipt.body_hash(FORWARDED) is not None) is (row.forwarded == "yes")
        events = [event for event in await gateway.events(answer) if event["type"].startswith("upstream.")]
        named = set(re.findall(r"`(upstream\.[a-z]+)`", row.more))
        assert {event["type"] for event in events} == named
        if "upstream.verified" in named:
            [event] = events
            assert (event["result"] == "failed") is ("failed" in row.more)
            assert ("session_id" in event) is ("session" in row.more)
        assert gateway.lines("request")[-1]["outcome"] == receipt.outcome
