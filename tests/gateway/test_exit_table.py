"""Every row of the table "Every exit" in docs/receipts.md, driven on a real socket and held against what the row says.

What is expected is read from the page. A row without a case fails, and so does a case without its row.
"""

import asyncio
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from confide.config import Config, Limits, Model, Server
from confide.protocol.canonical import digest_of
from confide.protocol.receipt import FORWARDED, RECEIVED, RETURNED
from confide.protocol.sse import DONE
from confide.upstream.channel import Exchange
from confide.upstream.kinds.chunks import ChunkEncoder
from e2e.test_kill import check_receipt, fresh_report, killed_at_the_last_byte
from gateway.test_client_gone import commits_held, the_one_in_flight, until
from gateway.test_drain import OVER, WINDOW_S, draining
from gateway.test_exits import (
    FAILURES_AFTER_A_TOKEN,
    FAILURES_BEFORE_A_TOKEN,
    SHORT,
    Failure,
    assert_ends_with_error,
    broken,
)
from gateway.test_queue import busy
from gateway.test_store_failure import full_disk
from gateway_app import (
    MODEL,
    ScriptedGateway,
    answering,
    bearer,
    chat,
    raw_post,
    serving_scripted,
    token,
)
from outside import Response, Sockets, Verifier, Visitor, sockets_recorded, visiting
from running import home_with_weights, running
from scripted import CLOSE, HANG, REPEAT, Script, response, sse_head

PAGE = Path(__file__).parent.parent.parent / "docs" / "receipts.md"
PROMPT = "the prompt of this exit"
SESSION = "95" * 32
SLOTS = 4
KILL = "`kill -9`"


@dataclass(frozen=True)
class Row:
    """A row of the page, its cells as they stand there."""

    exit: str
    client: str
    outcome: str
    receipt: str

    @property
    def statuses(self) -> set[int]:
        return {int(number) for number in re.findall(r"\b[2-5]\d\d\b", self.client)}

    @property
    def outcomes(self) -> set[str]:
        """The one of its own cell, and those that the cell on the receipt names for some of its cases."""
        named = re.findall(r"`(complete|truncated|client_closed|refused|failed)`", self.outcome + self.receipt)
        return set(named)


def table() -> list[Row]:
    section = PAGE.read_text().partition("## Every exit\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert lines[0] == "| exit | the client has | outcome | receipt |"
    return [Row(*(cell.strip() for cell in line.strip("|").split("|"))) for line in lines[2:]]


async def nothing() -> None: ...


@dataclass
class Exit:
    """An exit that was reached. `response`: what the client had of it then, None when it was nothing.

    `before`: requests that ended before it. `release`: lets those end that only held slots, `after` of them.
    """

    gateway: ScriptedGateway
    sent: bytes
    response: Response | None
    handed: bytes
    before: int = 0
    after: int = 0
    release: Callable[[], Awaitable[object]] = nothing
    headers: dict[str, str] = field(default_factory=dict)


Drive = Callable[[Path, Sockets], AbstractAsyncContextManager[Exit]]


@dataclass(frozen=True)
class Case:
    """One way to the exit of a row. `status`: what its client gets, of the row's; None when it is no response."""

    exit: str
    name: str
    drive: Drive
    status: int | None = None
    outcome: str | None = None


CASES: list[Case] = []


def case(
    exit: str, name: str = "", *, status: int | None = None, outcome: str | None = None
) -> Callable[[Callable[..., AsyncIterator[Exit]]], Callable[..., AsyncIterator[Exit]]]:
    """A case, given by a function that drives the service there and yields the exit once. One of both kinds where it
    takes `stream`.
    """

    def register(drive: Callable[..., AsyncIterator[Exit]]) -> Callable[..., AsyncIterator[Exit]]:
        driving = contextlib.asynccontextmanager(drive)
        if "stream" not in drive.__annotations__:
            CASES.append(Case(exit, name, driving, status, outcome))
            return drive
        for stream in (False, True):

            def driving_one(home: Path, sockets: Sockets, stream: bool = stream) -> AbstractAsyncContextManager[Exit]:
                return driving(home, sockets, stream)

            kind = "streamed" if stream else "buffered"
            CASES.append(Case(exit, f"{name} {kind}".strip(), driving_one, status, outcome))
        return drive

    return register


def body_of(stream: bool = False, **members: object) -> bytes:
    return json.dumps(chat(PROMPT, stream=stream, **members)).encode()


def config_of(**limits: Any) -> Config:
    return Config(model=(Model(id=MODEL, upstream_model="scripted"),), limits=Limits(**limits))


async def asked(gateway: ScriptedGateway, sockets: Sockets, sent: bytes, **more: Any) -> Exit:
    """Ask, and read to the end."""
    headers = more.get("headers", {})
    lines = [f"{name}: {value}".encode() for name, value in headers.items()]
    async with visiting(gateway.url) as client:
        client.send(raw_post(sent, *lines))
        answer = await client.answer()
        return Exit(gateway, sent, answer, handed_to(sockets, client), **more)


def handed_to(sockets: Sockets, client: Visitor) -> bytes:
    """The body that the service has handed to the socket of this client, of its one response."""
    found = sockets.responses(client.address)
    assert len(found) <= 1
    return found[0].body if found else b""


async def left(gateway: ScriptedGateway, sockets: Sockets, sent: bytes, client: Visitor, **more: Any) -> Exit:
    """What there is once the service has noticed that this client is gone."""
    await gateway.outcome(1)
    response = client.responses[0] if client.responses else None
    return Exit(gateway, sent, response, handed_to(sockets, client), **more)


# Answers.


@case("answer, buffered", status=200)
async def whole_buffered(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    async with serving_scripted(home, answering("one", "two")) as gateway:
        yield await asked(gateway, sockets, body_of())


@case("answer, streamed", status=200)
async def whole_streamed(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    async with serving_scripted(home, answering("one", "two")) as gateway:
        yield await asked(gateway, sockets, body_of(stream=True))


# Refusals that are receipted.


@case("pinned sessions asked of a service that has none", status=412)
async def pinned(home: Path, sockets: Sockets, stream: bool) -> AsyncIterator[Exit]:
    async with serving_scripted(home, answering("Hi")) as gateway:
        yield await asked(gateway, sockets, body_of(stream, provider={"aci_session_ids": [SESSION]}))


@case("queue full", status=429)
async def queue_full(home: Path, sockets: Sockets, stream: bool) -> AsyncIterator[Exit]:
    async with busy(home, queue=1) as service:
        waiting = await service.wait_in_line("first")

        async def release() -> None:
            await service.release()
            await waiting

        yield await asked(service.gateway, sockets, body_of(stream), after=SLOTS + 1, release=release)


@case("no slot within the queue's time", status=503)
async def no_slot(home: Path, sockets: Sockets, stream: bool) -> AsyncIterator[Exit]:
    async with busy(home, queue_timeout_s=0.02) as service:
        yield await asked(service.gateway, sockets, body_of(stream), after=SLOTS, release=service.release)


@case("engine not ready", status=503)
async def not_ready(home: Path, sockets: Sockets, stream: bool) -> AsyncIterator[Exit]:
    async with serving_scripted(home, answering("Hi")) as gateway:
        gateway.switch.is_ready = False
        yield await asked(gateway, sockets, body_of(stream))


@case("engine not ready", "died while the request waited", status=503)
async def not_ready_any_more(home: Path, sockets: Sockets, stream: bool) -> AsyncIterator[Exit]:
    async with busy(home) as service, visiting(service.gateway.url) as client:
        client.send(raw_post(sent := body_of(stream)))
        await until(lambda: service.gateway.slots.waiting == 1)
        service.gateway.switch.is_ready = False
        await service.release()
        answer = await client.answer()
        yield Exit(service.gateway, sent, answer, handed_to(sockets, client), before=SLOTS)


# The engine fails.


def failing(exit: str, name: str, failure: Failure, status: int, stream: bool) -> None:
    @case(exit, name, status=status)
    async def fails(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
        async with serving_scripted(home, failure[0], timeouts=SHORT) as gateway:
            yield await asked(gateway, sockets, body_of(stream))


for name, failure in FAILURES_BEFORE_A_TOKEN.items():
    for stream in (False, True):
        kind = "streamed" if stream else "buffered"
        failing("engine fails or dies before the first byte", f"{name} {kind}", failure, failure[1], stream)
for name, failure in FAILURES_AFTER_A_TOKEN.items():
    failing("engine fails or dies before the first byte", f"{name} half-way, buffered", failure, failure[1], False)
    failing("engine fails or dies in mid-stream", name, failure, 200, True)


@case("the model cannot take the prompt, such as one too long", status=400)
async def too_long(home: Path, sockets: Sockets, stream: bool) -> AsyncIterator[Exit]:
    error = {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 5000, "n_ctx": 4096}
    script: Script = [response(json.dumps({"error": error}).encode(), status=b"400 Bad Request")]
    async with serving_scripted(home, script) as gateway:
        yield await asked(gateway, sockets, body_of(stream))


@case("a fault of ours before the first byte", status=500)
async def our_fault(home: Path, sockets: Sockets, stream: bool) -> AsyncIterator[Exit]:
    async with serving_scripted(home, answering("Hi")) as gateway:
        with pytest.MonkeyPatch.context() as patching:
            patching.setattr(Exchange, "read", broken)
            exit = await asked(gateway, sockets, body_of(stream))
        yield exit


@case("a fault of ours in mid-stream", status=200)
async def our_fault_in_mid_stream(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    script: Script = [sse_head(), token("one"), gate := asyncio.Event(), token("two"), HANG]
    async with serving_scripted(home, script) as gateway, visiting(gateway.url) as client:
        client.send(raw_post(sent := body_of(stream=True)))
        await client.read_until(lambda got: bool(got) and b'"one"' in got[0].body)
        with pytest.MonkeyPatch.context() as patching:
            patching.setattr(ChunkEncoder, "encode", broken)
            gate.set()
            yield Exit(gateway, sent, await client.answer(), handed_to(sockets, client))


# The client leaves.


@case("client leaves before inference began", "while it waits for a slot")
async def leaves_the_queue(home: Path, sockets: Sockets, stream: bool) -> AsyncIterator[Exit]:
    async with busy(home) as service, visiting(service.gateway.url) as client:
        client.send(raw_post(sent := body_of(stream)))
        await until(lambda: service.gateway.slots.waiting == 1)
        client.leave()
        yield await left(service.gateway, sockets, sent, client, after=SLOTS, release=service.release)


@case("client leaves before inference began", "while its body uploads")
async def leaves_the_upload(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    async with serving_scripted(home, answering("Hi")) as gateway, visiting(gateway.url) as client:
        client.send(raw_post(sent := body_of())[:-5])
        await until(lambda: gateway.lifecycle.in_flight == 1)
        client.leave()
        yield await left(gateway, sockets, sent, client)


@case("client leaves before the first byte")
async def leaves_before_a_byte(home: Path, sockets: Sockets, stream: bool) -> AsyncIterator[Exit]:
    async with serving_scripted(home, [sse_head(), HANG]) as gateway, visiting(gateway.url) as client:
        client.send(raw_post(sent := body_of(stream)))
        await gateway.engine.asked(1)
        client.leave()
        await gateway.engine.left(1)
        yield await left(gateway, sockets, sent, client)


@case("client leaves before the first byte", "while a buffered answer is committed")
async def leaves_the_commit(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    async with serving_scripted(home, answering("Hi")) as gateway, visiting(gateway.url) as client:
        with commits_held(home):
            client.send(raw_post(sent := body_of()))
            await gateway.engine.asked(1)
            entry = the_one_in_flight(gateway)
            await until(lambda: entry.is_sealed)
            client.leave()
            await until(lambda: entry.is_client_gone)
        yield await left(gateway, sockets, sent, client)


@case("client leaves in mid-stream")
async def leaves_in_mid_stream(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    script: Script = [sse_head(), token("one"), token("two"), HANG]
    async with serving_scripted(home, script) as gateway, visiting(gateway.url) as client:
        client.send(raw_post(sent := body_of(stream=True)))
        await client.read_until(lambda got: bool(got) and b'"two"' in got[0].body)
        client.leave()
        await gateway.engine.left(1)
        exit = await left(gateway, sockets, sent, client)
        assert exit.handed == client.responses[0].body  # this one had read all that there was
        yield exit


@case("client leaves in mid-stream", "by closing its sending side")
async def sends_no_more(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    async with serving_scripted(home, [sse_head(), token("one"), HANG]) as gateway, visiting(gateway.url) as client:
        client.send(raw_post(sent := body_of(stream=True)))
        await client.read_until(lambda got: bool(got) and b'"one"' in got[0].body)
        client.send_no_more()
        await gateway.engine.left(1)
        yield await left(gateway, sockets, sent, client)


@case("client leaves in mid-stream", "with much unread")
async def leaves_much_unread(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    script: Script = [sse_head(), REPEAT, token("x" * 4000)]
    async with serving_scripted(home, script) as gateway, visiting(gateway.url, receive_buffer=4096) as client:
        client.send(raw_post(sent := body_of(stream=True)))
        await client.read_until(lambda got: bool(got) and len(got[0].body) > 1000)
        await until(lambda: any(not connection.writable.is_set() for connection in gateway.engine.open))
        client.leave()
        await gateway.engine.left(1)
        yield await left(gateway, sockets, sent, client)


@contextlib.asynccontextmanager
async def watching_stalls(gateway: ScriptedGateway) -> AsyncIterator[None]:
    """As the program does."""
    watch = asyncio.create_task(gateway.lifecycle.stop_stalled(0.1))
    try:
        yield
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


@case("client stops reading", "while the model writes")
async def stops_reading(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    script: Script = [sse_head(), REPEAT, token("x" * 4000)]
    async with (
        serving_scripted(home, script) as gateway,
        watching_stalls(gateway),
        visiting(gateway.url, receive_buffer=4096) as client,
    ):
        client.send(raw_post(sent := body_of(stream=True)))
        await client.read_until(lambda got: bool(got) and len(got[0].body) > 1000)
        await gateway.engine.left(1)
        yield await left(gateway, sockets, sent, client)


@case("client stops reading", "when all but the end is written")
async def stops_reading_at_the_end(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    async with (
        serving_scripted(home, answering("x" * 400_000)) as gateway,
        watching_stalls(gateway),
        visiting(gateway.url, receive_buffer=4096) as client,
    ):
        client.send(raw_post(sent := body_of(stream=True)))
        await client.read_until(lambda got: bool(got) and len(got[0].body) > 1000)
        yield await left(gateway, sockets, sent, client)


@case("client stops reading", "when the drain has given it its time")
async def stops_reading_the_error(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    script: Script = [sse_head(), REPEAT, token("x" * 4000)]
    async with serving_scripted(home, script) as gateway, visiting(gateway.url, receive_buffer=4096) as client:
        client.send(raw_post(sent := body_of(stream=True)))
        await client.read_until(lambda got: bool(got) and len(got[0].body) > 1000)
        await until(lambda: any(not connection.writable.is_set() for connection in gateway.engine.open))
        await gateway.lifecycle.drain(OVER, grace_s=0.1)
        yield await left(gateway, sockets, sent, client)


# The service ends.


@case("drain window over, before the first byte", "inference had it", status=503, outcome="failed")
async def drained_before_a_byte(home: Path, sockets: Sockets, stream: bool) -> AsyncIterator[Exit]:
    async with serving_scripted(home, [sse_head(), HANG]) as gateway, visiting(gateway.url) as client:
        client.send(raw_post(sent := body_of(stream)))
        await gateway.engine.asked(1)
        await (await draining(gateway, OVER))
        yield Exit(gateway, sent, await client.answer(), handed_to(sockets, client))


@case("drain window over, before the first byte", "still in the queue", status=503, outcome="refused")
async def drained_in_the_queue(home: Path, sockets: Sockets, stream: bool) -> AsyncIterator[Exit]:
    async with busy(home) as service, visiting(service.gateway.url) as client:
        client.send(raw_post(sent := body_of(stream)))
        await until(lambda: service.gateway.slots.waiting == 1)
        await (await draining(service.gateway, OVER))
        for held in service.held:
            await held
        exit = Exit(service.gateway, sent, await client.answer(), handed_to(sockets, client), before=SLOTS)
        yield exit


@case("drain window over, in mid-stream", status=200)
async def drained_in_mid_stream(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    async with serving_scripted(home, [sse_head(), token("one"), HANG]) as gateway, visiting(gateway.url) as client:
        client.send(raw_post(sent := body_of(stream=True)))
        await client.read_until(lambda got: bool(got) and b'"one"' in got[0].body)
        await (await draining(gateway, OVER))
        yield Exit(gateway, sent, await client.answer(), handed_to(sockets, client))


@case("drain window over, in mid-stream", "a slow reader", status=200)
async def drained_slow_reader(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    script: Script = [sse_head(), REPEAT, token("x" * 4000)]
    async with serving_scripted(home, script) as gateway, visiting(gateway.url, receive_buffer=4096) as client:
        client.send(raw_post(sent := body_of(stream=True)))
        await until(lambda: any(not connection.writable.is_set() for connection in gateway.engine.open))
        drain = await draining(gateway, OVER)
        await gateway.engine.left(1)
        answer = await client.answer()
        await drain
        yield Exit(gateway, sent, answer, handed_to(sockets, client))


@case("drain window over while the body uploads", status=503)
async def drained_upload(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    async with serving_scripted(home, answering("Hi")) as gateway, visiting(gateway.url) as client:
        client.send(raw_post(sent := body_of())[:-5])
        await until(lambda: gateway.lifecycle.in_flight == 1)
        await (await draining(gateway, OVER))
        yield Exit(gateway, sent, await client.answer(), handed_to(sockets, client))


@case("torn down, as the store hung for longer than the drain", "with a whole answer", status=500)
async def torn_down(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    async with stuck(home, sockets, answering("Hi")) as exit:
        yield exit


@case("torn down, as the store hung for longer than the drain", "with an error", status=500)
async def torn_down_with_an_error(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    async with stuck(home, sockets, [CLOSE]) as exit:
        yield exit


@contextlib.asynccontextmanager
async def stuck(home: Path, sockets: Sockets, script: Script) -> AsyncIterator[Exit]:
    committing = asyncio.Event()

    async def commit(_: object) -> None:
        committing.set()
        await asyncio.get_running_loop().create_future()

    async with serving_scripted(home, script) as gateway, visiting(gateway.url) as client:
        with pytest.MonkeyPatch.context() as patching:
            patching.setattr(gateway.store, "commit", commit)
            client.send(raw_post(sent := body_of()))
            await committing.wait()
            await gateway.lifecycle.drain(OVER, grace_s=OVER)
            the_one_in_flight(gateway)._task.cancel()  # as the server does with what outlives its own shutdown
            yield Exit(gateway, sent, await client.answer(), handed_to(sockets, client))


@case("prompt while shutting down", status=503)
async def shutting_down(home: Path, sockets: Sockets, stream: bool) -> AsyncIterator[Exit]:
    async with busy(home) as service:
        drain = await draining(service.gateway, WINDOW_S)

        async def release() -> None:
            await service.release()
            await drain

        yield await asked(service.gateway, sockets, body_of(stream), after=SLOTS, release=release)


# What is no request that could be served.


def refusing(name: str, status: int, sent: bytes) -> None:
    @case("a rule broken, an unknown model, a body too large", name, status=status)
    async def refuses(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
        config = Config(model=config_of().model, server=Server(max_body_bytes=4096))
        async with serving_scripted(home, answering("Hi"), config=config) as gateway:
            yield await asked(gateway, sockets, sent)


refusing("no JSON", 400, b"{")
refusing("a wrong member", 400, body_of(stream=True, temperature="hot"))
refusing("a constraint that is not understood", 400, body_of(provider={"aci_new_constraint": 1}))
refusing("n", 400, body_of(n=99))
refusing("an unknown model", 404, json.dumps(chat(PROMPT) | {"model": "other"}).encode())
refusing("too large", 413, json.dumps(chat(PROMPT * 500)).encode())


@case("no valid key", status=401)
async def no_key(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    async with serving_scripted(home, answering("Hi")) as gateway:
        await gateway.new_key()
        yield await asked(gateway, sockets, body_of())


@case("no valid key", "another", status=401)
async def wrong_key(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    async with serving_scripted(home, answering("Hi")) as gateway:
        await gateway.new_key()
        yield await asked(gateway, sockets, body_of(), headers=bearer("cfd_nobodys"))


# The disk is full.


@contextlib.asynccontextmanager
async def unstored(home: Path, sockets: Sockets, stream: bool, script: Script) -> AsyncIterator[Exit]:
    async with serving_scripted(home, answering("Hi"), script) as gateway:
        assert (await gateway.post()).status_code == 200
        with full_disk(home):
            exit = await asked(gateway, sockets, body_of(stream), before=1)
            await gateway.outcome(2)
        yield exit


@case("store cannot keep the receipt, buffered", status=503)
async def unstored_buffered(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    async with unstored(home, sockets, False, answering("the answer")) as exit:
        assert exit.response is not None
        assert b"the answer" not in exit.response.body
        yield exit


@case("store cannot keep the receipt, streamed", status=200)
async def unstored_streamed(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    async with unstored(home, sockets, True, answering("one")) as exit:
        yield exit


@contextlib.asynccontextmanager
async def unstored_error(home: Path, sockets: Sockets, sent: bytes) -> AsyncIterator[Exit]:
    async with serving_scripted(home, answering("Hi"), [CLOSE]) as gateway:
        assert (await gateway.post()).status_code == 200
        with full_disk(home):
            exit = await asked(gateway, sockets, sent, before=1)
            await gateway.outcome(2)
        yield exit


@case("store cannot keep the receipt of an error", "of the engine", status=502, outcome="failed")
async def unstored_failure(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    async with unstored_error(home, sockets, body_of(stream=True)) as exit:
        yield exit


@case("store cannot keep the receipt of an error", "of pinned sessions", status=500, outcome="failed")
async def unstored_pin(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    async with unstored_error(home, sockets, body_of(provider={"aci_session_ids": [SESSION]})) as exit:
        yield exit


@case("store cannot keep the receipt of an error", "of a full queue", status=429, outcome="refused")
async def unstored_refusal(home: Path, sockets: Sockets) -> AsyncIterator[Exit]:
    async with busy(home, queue=0) as service:
        with full_disk(home):
            exit = await asked(service.gateway, sockets, body_of(), after=SLOTS, release=service.release)
        yield exit


# What each of them must hold to.


def of(row: Row) -> list[Case]:
    return [case for case in CASES if case.exit == row.exit]


def parameters() -> Iterator[object]:
    for row in table():
        if row.exit == KILL:
            continue  # a process has to die for it: below
        yield from (pytest.param(row, case, id=f"{row.exit}: {case.name or 'as it is'}") for case in of(row))


@pytest.mark.parametrize("row", table(), ids=lambda row: row.exit)
def test_each_row_of_the_page_has_cases_for_all_it_says(row: Row) -> None:
    if row.exit == KILL:
        return
    cases = of(row)
    assert cases, f"docs/receipts.md promises something of the exit {row.exit!r} that no case here shows"
    assert {case.status for case in cases if case.status} >= row.statuses
    assert {case.outcome for case in cases} >= (row.outcomes if len(row.outcomes) > 1 else {None})


def test_each_case_has_a_row_on_the_page() -> None:
    assert {case.exit for case in CASES} == {row.exit for row in table()} - {KILL}


@pytest.mark.parametrize(("row", "case"), list(parameters()))
async def test_exit(tmp_path: Path, row: Row, case: Case) -> None:
    with sockets_recorded(send_buffer=16 * 1024) as sockets:
        async with case.drive(tmp_path, sockets) as exit:
            gateway = exit.gateway
            outcome = case.outcome or row.outcome.strip("`")
            assert outcome in row.outcomes
            assert_client_has(row, case, exit)
            line = await the_line(exit)
            assert line["outcome"] == outcome
            if row.receipt.startswith("none"):
                stated = re.search(r"`(\w+)`", row.receipt)
                assert line["reason"] == (stated[1] if stated else line["reason"])
                assert line["reason"]
                await assert_no_receipt(exit, line)
            else:
                await assert_receipt(Verifier(gateway.url, tmp_path), row, exit, line, outcome)
            await exit.release()
            await assert_settled(exit)


def assert_client_has(row: Row, case: Case, exit: Exit) -> None:
    """The column "the client has"."""
    response = exit.response
    if row.client == "–":
        assert response is None
        return
    if row.client == "what had left":
        return
    assert response is not None
    if row.client == "a part":
        assert response.status == 200
        assert not response.is_whole
        assert DONE not in response.body
        return
    assert response.is_whole
    assert response.body == exit.handed
    assert response.status == case.status
    assert response.status in (row.statuses or {200}) or row.client.startswith("that error")
    if "error event" in row.client:
        assert_ends_with_error(response.body, *tail_of(response.body))
        assert response.body.count(DONE) == 1
    elif "`[DONE]`" in row.client:
        assert response.body.endswith(DONE)
        assert b'"error"' not in response.body
    elif "server's own" in row.client:
        assert response.body == b"Internal Server Error"
    elif response.status == 200:
        assert [choice["message"]["content"] for choice in json.loads(response.body)["choices"]] == ["onetwo"]
    else:
        assert set(json.loads(response.body)["error"]) == {"message", "type", "code", "param"}
        assert "[DONE]" not in response.body.decode()


def tail_of(body: bytes) -> tuple[str, int]:
    """Type and code of the last error event."""
    error = json.loads(body.split(b"\n\n")[-3].removeprefix(b"data: "))["error"]
    return error["type"], error["code"]


async def the_line(exit: Exit) -> dict[str, Any]:
    """The one log line of this request: by its receipt where it has one, else the last. Those that hold slots have none
    yet.
    """
    await exit.gateway.outcome(exit.before + 1)
    lines = request_lines(exit.gateway)
    assert len(lines) == exit.before + 1
    own = [line for line in lines if header_of(exit) in (line["receipt"], None)]
    assert len(own) <= 1 or header_of(exit) is None
    return (own or lines)[-1]


def request_lines(gateway: ScriptedGateway) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in gateway.log_text().splitlines()]
    return [line for line in lines if line["event"] == "request"]


def header_of(exit: Exit) -> str | None:
    return None if exit.response is None else exit.response.headers.get("x-receipt-id")


def chat_id_of(body: bytes) -> str | None:
    found = re.search(rb'"id":"(chatcmpl-[0-9a-f]{32})"', body)
    return found[1].decode() if found else None


async def assert_no_receipt(exit: Exit, line: dict[str, Any]) -> None:
    """None in the log, none under any id that the client or the log has, none over this request at all."""
    gateway = exit.gateway
    assert line["receipt"] is None
    assert exit.response is None or exit.response.status == 200 or header_of(exit) is None
    await gateway.new_key("whoever asks")
    known = {header_of(exit), chat_id_of(exit.handed), line["id"]} - {None}
    for each in known:
        for presented in ({}, bearer(await gateway.new_key())):
            answer = await gateway.client.get(f"/v1/aci/receipts/{each}", headers=presented)
            assert answer.status_code == 404
    assert hashlib.sha256(exit.sent).digest() not in await hashes_kept(gateway)


async def hashes_kept(gateway: ScriptedGateway) -> set[bytes]:
    """Of the request of every proof in the store."""
    found = await gateway.store._read(lambda db: db.execute("SELECT request_sha256 FROM proofs").fetchall())
    return {digest for (digest,) in found}


async def assert_receipt(verifier: Verifier, row: Row, exit: Exit, line: dict[str, Any], outcome: str) -> None:
    """The column "receipt", by the checks of a verifier that was shown nothing but what the service sends."""
    gateway, client = exit.gateway, exit.gateway.client
    keyset = await verifier.appraise(client)
    header, chat_id = header_of(exit), chat_id_of(exit.handed)
    assert header in (None, line["receipt"])
    assert header is not None or exit.response is None
    fetched = await client.get(f"/v1/aci/receipts/{line['receipt']}")
    assert fetched.status_code == 200
    returned = b"" if "over no bytes" in row.receipt else exit.handed
    receipt = verifier.proven(
        fetched.content,
        receipt_id=line["receipt"],
        sent=exit.sent,
        response_sha256=hashlib.sha256(returned).digest(),
        status=exit.response.status if exit.response else 200,
    )
    assert receipt.members.workload_keyset_digest == keyset
    assert receipt.body_hash(RECEIVED) == digest_of(exit.sent)
    assert receipt.body_hash(RETURNED) == digest_of(returned)
    if exit.response is not None:
        assert returned.startswith(exit.response.body)
    assert receipt.outcome == outcome
    is_forwarded = any(PROMPT.encode() in request.body for request in gateway.engine.requests)
    assert is_forwarded or outcome == "refused"
    assert not (is_forwarded and "did not run" in row.receipt)
    assert (receipt.body_hash(FORWARDED) is not None) is is_forwarded
    assert receipt.body_hash(FORWARDED) in (None, digest_of(exit.sent))
    by_chat_id = await client.get(f"/v1/aci/receipts/{line['id']}")
    if chat_id is not None:
        assert receipt.members.chat_id == chat_id == line["id"]
    # Nobody else was told that id. Where there is one under it all the same, it replaces one that was never seen.
    assert (by_chat_id.status_code, receipt.members.chat_id) in {(200, line["id"]), (404, None)}
    assert by_chat_id.status_code == 404 or by_chat_id.content == fetched.content


async def assert_settled(exit: Exit) -> None:
    """Nothing is held: no request, slot, place in the queue or connection to the engine; and each has its one line."""
    gateway = exit.gateway
    await gateway.outcome(exit.before + 1 + exit.after)
    await until(lambda: gateway.lifecycle.in_flight == 0)
    await until(lambda: gateway.slots.free == SLOTS)
    assert (gateway.slots.waiting, gateway.channel.live) == (0, 0)
    await gateway.engine.until_open(gateway.channel.idle)
    assert len(request_lines(gateway)) == exit.before + 1 + exit.after


@pytest.mark.engine
def test_exit_by_kill_leaves_what_a_client_saw_the_end_of(engine_home: Path, tmp_path: Path) -> None:
    [row] = [row for row in table() if row.exit == KILL]
    assert row.receipt == "of everything that a client saw the end of"
    home = home_with_weights(tmp_path, engine_home)
    answers = []
    for number in range(2):  # every other one streams
        with running(home) as service:
            answers.append(killed_at_the_last_byte(service, number))
    with running(home) as service:
        verifier = Verifier(service.url, home)
        digest = fresh_report(service, verifier)
        assert [check_receipt(service, verifier, answer) for answer in answers] == [digest] * 2
