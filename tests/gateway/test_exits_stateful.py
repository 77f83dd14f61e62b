"""32 clients at once against one running service, each doing as it likes, until the service drains.

Whatever they do: every prompt that the service took on has one log line, and one receipt or one stated reason why there
is none; every receipt proves the bytes that were sent and those that were handed to the socket; nothing is left over.
"""

import asyncio
import contextlib
import hashlib
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from confide.config import Config, Engine, Limits, Model, Server
from confide.gateway.pipeline import PromptRoute
from confide.gateway.wire import Receive, Scope, Send
from confide.protocol.canonical import digest_of
from confide.protocol.receipt import FORWARDED, RECEIVED, RETURNED, Receipt, parse_receipt
from confide.protocol.sse import DONE
from confide.upstream.channel import Timeouts
from gateway_app import (
    MODEL,
    ScriptedGateway,
    answering,
    bearer,
    chat,
    event,
    finish,
    raw_post,
    serving_scripted,
    token,
)
from outside import Address, Response, Verifier, Visitor, sockets_recorded, visiting
from scripted import CLOSE, HANG, LAST_CHUNK, REPEAT, TURN, Script, SeenRequest, response, sse_head

CLIENTS = 32
SLOTS = 4
QUEUE = 12
SESSION = "95" * 32
OUTCOMES = {"complete", "truncated", "client_closed", "refused", "failed"}
BUFFER = 8 * 1024  # of the kernel and of ours, each way: a client that does not read is felt at once

T = TypeVar("T")


def words(count: int, size: int = 1) -> list[str]:
    """What the engine writes: from any piece of it one can tell where it belongs."""
    return [f"{number}," * size for number in range(count)]


def script_of(request: SeenRequest) -> Script:
    """The engine does as the prompt says."""
    asked = json.loads(json.loads(request.body)["messages"][0]["content"])
    kind, texts = asked["engine"], words(asked["words"], asked["size"])
    written: list[Any] = [sse_head()]
    for text in texts:
        written += [token(text), TURN]
    match kind:
        case "whole":
            return [*written, finish(), LAST_CHUNK]
        case "cut":
            return [*written, CLOSE]
        case "error":
            return [*written, event({"error": {"code": 500, "message": "CANARY"}}), LAST_CHUNK]
        case "silent":
            return [*written, HANG]
        case "endless":
            return [*written, REPEAT, token("x" * 2000)]
        case "too long":
            return [response(b'{"error":{"code":400,"type":"exceed_context_size_error"}}', status=b"400 Bad Request")]
        case _:
            return [CLOSE]


engines = st.sampled_from(["whole", "whole", "whole", "cut", "error", "silent", "dead", "too long"])
readers = st.sampled_from(["all", "all", "none", "a byte", "some", "half", "nothing more", "slowly"])
leaving = st.sampled_from(["none", "a byte", "some", "nothing more", "half"])
clients = st.integers(0, CLIENTS - 1)
NONSENSE = {
    "no JSON": b"{",
    "no object": b"[]",
    "unknown model": json.dumps(chat() | {"model": "other"}).encode(),
    "wrong member": json.dumps(chat(temperature="hot")).encode(),
    "n": json.dumps(chat(n=99)).encode(),
    "too large": json.dumps(chat("x" * 20_000)).encode(),
    "constraint": json.dumps(chat(provider={"aci_new": 1})).encode(),
}


@dataclass
class Visit:
    """What one client did on one connection. `sent`: the bodies, in order; `port`: its own."""

    sent: list[bytes]
    reader: str
    key: str
    address: Address = ("", 0)
    read: list[Response] = field(default_factory=list)


class Service:
    """The running service, and everything that is known of it from outside."""

    def __init__(self, home: Path, comments_s: float | None) -> None:
        self.home = home
        self.config = Config(
            model=(Model(id=MODEL, upstream_model="scripted"),),
            server=Server(max_body_bytes=16 * 1024, keepalive_comment_s=comments_s),
            engine=Engine(slots=SLOTS),
            limits=Limits(queue=QUEUE, queue_timeout_s=0.25, client_stall_s=0.2),
        )
        self.visits: list[Visit] = []
        self.calls = 0
        self.over = asyncio.Event()
        self._closing = contextlib.AsyncExitStack()

    async def start(self) -> None:
        patching = self._closing.enter_context(pytest.MonkeyPatch.context())
        answer = PromptRoute.__call__

        async def counting(prompts: PromptRoute, scope: Scope, receive: Receive, send: Send) -> None:
            self.calls += 1
            await answer(prompts, scope, receive, send)

        patching.setattr(PromptRoute, "__call__", counting)
        self.sockets = self._closing.enter_context(sockets_recorded(send_buffer=BUFFER))
        self.gateway: ScriptedGateway = await self._closing.enter_async_context(
            serving_scripted(
                self.home, answering("Hi"), config=self.config, timeouts=Timeouts(first_byte_s=0.15, idle_s=0.15)
            )
        )
        self.gateway.engine.choose = script_of
        self.key = await self.gateway.new_key()
        stall_s = self.config.limits.client_stall_s
        self._stalls = asyncio.create_task(self.gateway.lifecycle.stop_stalled(stall_s))

    async def stop(self) -> None:
        self._stalls.cancel()
        await asyncio.gather(self._stalls, return_exceptions=True)
        await self._closing.aclose()

    async def visit(self, visit: Visit, pause: int) -> None:
        """Carry out one visit."""
        async with visiting(self.gateway.url, receive_buffer=BUFFER) as client:
            visit.address = client.address
            self.visits.append(visit)
            lines = [f"{name}: {value}".encode() for name, value in bearer(visit.key).items()]
            client.send(b"".join(raw_post(body, *lines) for body in visit.sent))
            for _ in range(pause):
                await asyncio.sleep(0)
            await self.read(client, visit)
            visit.read = client.responses

    async def read(self, client: Visitor, visit: Visit) -> None:
        count = len(visit.sent)

        def all_of_it(got: list[Response]) -> bool:
            return len(got) == count and got[-1].is_whole

        match visit.reader:
            case "none":
                client.leave()
            case "a byte":
                await client.read(1)
                client.leave()
            case "some":
                await client.read_until(lambda got: bool(got) and (len(got[0].body) > 300 or got[0].is_whole))
                client.leave()
            case "half":
                await client.read(100)
                await self.over.wait()  # and reads no more
            case "nothing more":
                await client.read(1)
                client.send_no_more()
                await client.read_until(all_of_it)
            case "slowly":
                while not all_of_it(client.responses) and not client.is_over:
                    await client.read(500)
                    await asyncio.sleep(0.001)  # this is how slow it is
            case _:
                await client.read_until(all_of_it)

    def lines(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.gateway.log_text().splitlines()]
        return [line for line in lines if line["event"] == "request"]


class ManyClients(RuleBasedStateMachine):
    """Rules are what a client may do next, or a moment of time. A client that is busy does it afterwards."""

    outcomes: ClassVar[Counter[str]] = Counter()
    visits_made: ClassVar[int] = 0

    @initialize(comments_s=st.sampled_from([None, 0.02]))
    def open(self, comments_s: float | None) -> None:
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.service = self.run(self.started(comments_s))
        self.busy: dict[int, asyncio.Task[None]] = {}
        self.number = 0

    async def started(self, comments_s: float | None) -> Service:
        service = Service(Path(self.directory.name), comments_s)
        await service.start()
        return service

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def act(self, client: int, visit: Visit, pause: int) -> None:
        before = self.busy.get(client)

        async def acting() -> None:
            if before is not None:
                await asyncio.wait([before])
            await self.service.visit(visit, pause)

        async def begin() -> None:
            self.busy[client] = asyncio.create_task(acting())
            await asyncio.sleep(0)

        self.run(begin())

    def prompt(self, engine: str, count: int, size: int, stream: bool, **members: object) -> bytes:
        """No two are the same, so that a receipt says whose it is."""
        self.number += 1
        asked = {"engine": engine, "words": count, "size": size, "number": self.number}
        return json.dumps(chat(json.dumps(asked), stream=stream, **members)).encode()

    @rule(
        client=clients,
        engine=engines,
        reader=readers,
        stream=st.sampled_from([True, True, False]),
        n=st.sampled_from([1, 1, 2]),
        count=st.integers(0, 12),
        size=st.sampled_from([1, 1, 200]),
        pause=st.integers(0, 12),
    )
    def ask(
        self, client: int, engine: str, reader: str, stream: bool, n: int, count: int, size: int, pause: int
    ) -> None:
        body = self.prompt(engine, count, size, stream, n=n)
        self.act(client, Visit([body], reader, self.service.key), pause)

    @rule(client=clients, reader=leaving, pause=st.integers(0, 12))
    def leave_what_has_no_end(self, client: int, reader: str, pause: int) -> None:
        self.act(client, Visit([self.prompt("endless", 3, 1, True)], reader, self.service.key), pause)

    @rule(client=clients, reader=readers, count=st.integers(2, 4), stream=st.booleans(), pause=st.integers(0, 12))
    def pipeline(self, client: int, reader: str, count: int, stream: bool, pause: int) -> None:
        bodies = [self.prompt("whole", number, 1, stream) for number in range(count)]
        self.act(client, Visit(bodies, reader, self.service.key), pause)

    @rule(client=clients, kind=st.sampled_from(sorted(NONSENSE)), reader=readers)
    def ask_nonsense(self, client: int, kind: str, reader: str) -> None:
        self.act(client, Visit([NONSENSE[kind]], reader, self.service.key), 0)

    @rule(client=clients, reader=readers, stream=st.booleans())
    def ask_without_the_key(self, client: int, reader: str, stream: bool) -> None:
        self.act(client, Visit([self.prompt("whole", 1, 1, stream)], reader, "cfd_nobodys"), 0)

    @rule(client=clients, reader=readers, stream=st.booleans(), is_pinned=st.booleans())
    def constrain(self, client: int, reader: str, stream: bool, is_pinned: bool) -> None:
        provider = {"aci_session_ids": [SESSION]} if is_pinned else {"aci_verified": True}
        body = self.prompt("whole", 2, 1, stream, provider=provider)
        self.act(client, Visit([body], reader, self.service.key), 0)

    @rule(turns=st.integers(1, 30))
    def a_moment_passes(self, turns: int) -> None:
        async def pass_by() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.run(pass_by())

    @rule()
    def somebody_is_done(self) -> None:
        async def until_one_is() -> None:
            if running := [task for task in self.busy.values() if not task.done()]:
                await asyncio.wait(running, timeout=0.3, return_when=asyncio.FIRST_COMPLETED)

        self.run(until_one_is())

    @invariant()
    def whoever_is_not_in_flight_has_its_line(self) -> None:
        if not hasattr(self, "service"):
            return
        gateway = self.service.gateway
        assert self.service.calls == len(self.service.lines()) + gateway.lifecycle.in_flight
        assert 0 <= gateway.slots.free <= SLOTS
        assert gateway.slots.waiting <= QUEUE
        assert gateway.channel.live <= SLOTS

    def teardown(self) -> None:
        if not hasattr(self, "service"):
            return
        try:
            self.run(self.end())
        finally:
            self.run(self.service.stop())
            self.runner.close()
            self.directory.cleanup()

    async def end(self) -> None:
        """The service drains while they are at it; then everything is looked at."""
        service = self.service
        async with asyncio.timeout(30):
            await service.gateway.lifecycle.drain(0.05, grace_s=1)
            service.over.set()
            await asyncio.gather(*self.busy.values())
            await self.until(lambda: service.gateway.lifecycle.in_flight == 0)
        gateway = service.gateway
        assert (gateway.slots.free, gateway.slots.waiting, gateway.channel.live) == (SLOTS, 0, 0)
        await gateway.engine.until_open(gateway.channel.idle)
        await check(service)
        ManyClients.outcomes.update(line["outcome"] for line in service.lines())
        ManyClients.visits_made += len(service.visits)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0)


async def check(service: Service) -> None:
    """Every line, every receipt and every visit against each other."""
    lines = service.lines()
    assert len(lines) == service.calls
    ids = [line["id"] for line in lines if line["id"] is not None]
    assert len(ids) == len(set(ids))
    assert all(line["receipt"] or line["reason"] for line in lines)
    assert {line["outcome"] for line in lines} <= OUTCOMES
    named = [line["receipt"] for line in lines if line["receipt"] is not None]
    assert len(named) == len(set(named))
    assert set(named) == await receipts_kept(service.gateway)
    raw = {line["receipt"]: await fetched(service, line["receipt"]) for line in lines if line["receipt"] is not None}
    of_request: dict[str | None, list[Receipt]] = defaultdict(list)
    for line in lines:
        if line["receipt"] is not None:
            receipt = parse_receipt(raw[line["receipt"]])
            assert receipt.outcome == line["outcome"]
            assert receipt.members.chat_id in (None, line["id"])
            of_request[receipt.body_hash(RECEIVED)].append(receipt)
    verifier = Verifier(service.gateway.url, service.home)
    await verifier.appraise(service.gateway.client)
    seen = 0
    for visit in service.visits:
        handed, offered = service.sockets.responses(visit.address), service.sockets.offered(visit.address)
        for index, sent in enumerate(visit.sent):
            own = of_request[digest_of(sent)]
            assert len(own) <= 1
            each = (nth(found, index) for found in (handed, offered, visit.read))
            check_exchange(verifier, raw, sent, own[0] if own else None, *each)
            seen += len(own)
    assert seen == len(named)  # there is none that is nobody's


def nth(found: list[Response], index: int) -> Response | None:
    return found[index] if index < len(found) else None


def check_exchange(
    verifier: Verifier,
    raw: dict[str, bytes],
    sent: bytes,
    receipt: Receipt | None,
    handed: Response | None,
    offered: Response | None,
    read: Response | None,
) -> None:
    """One request: what it left behind, what was handed to the socket for it, and what its client has read.

    `offered`: that and the part that the socket refused, as it found the client gone.
    """
    if read is not None:
        assert handed is not None
        assert handed.body.startswith(read.body)
        assert (handed.status, handed.headers.get("x-receipt-id")) == (read.status, read.headers.get("x-receipt-id"))
    announced = None if handed is None else handed.headers.get("x-receipt-id")
    if receipt is None:
        assert announced is None, "an id was given out and there is no receipt under it"
        assert handed is None or handed.status in (400, 401, 404, 413, 503)
        return
    assert announced in (None, receipt.members.receipt_id)
    body = b"" if handed is None else handed.body
    if receipt.outcome != "client_closed" and offered is not None and not (handed and handed.is_whole):
        body = offered.body  # the end was written, and only then refused
    assert receipt.body_hash(RETURNED) == digest_of(body)
    verifier.proven(
        raw[receipt.members.receipt_id],
        receipt_id=receipt.members.receipt_id,
        sent=sent,
        response_sha256=hashlib.sha256(body).digest(),
    )
    if read is not None and read.is_whole:
        assert read.body == body
        assert receipt.outcome != "client_closed"
    if receipt.outcome == "complete":
        assert handed is not None
        assert handed.status == 200
    if handed is not None and handed.status == 200:
        check_text(json.loads(sent), receipt, body)


def check_text(asked: dict[str, Any], receipt: Receipt, body: bytes) -> None:
    """What left is what the engine was to write, from its beginning; all of it where the receipt says complete."""
    prompt = json.loads(asked["messages"][0]["content"])
    whole = "".join(words(prompt["words"], prompt["size"]))
    texts = texts_of(body, stream=asked["stream"])
    assert receipt.body_hash(FORWARDED) is not None or not any(texts.values())
    for text in texts.values():
        written = text if len(text) <= len(whole) else text[: len(whole)] + "x" * (len(text) - len(whole))
        assert text == written
        assert whole.startswith(text) or (prompt["engine"] == "endless" and text.startswith(whole))
    if receipt.outcome == "complete":
        assert set(texts.values()) == {whole}
        assert body.endswith(DONE) or not asked["stream"]
    assert receipt.outcome == "complete" or b'"finish_reason":"length"' not in body


def texts_of(body: bytes, *, stream: bool) -> dict[int, str]:
    """The text of each choice, as far as it goes."""
    texts: dict[int, str] = defaultdict(str)
    if not stream:
        if body:
            texts.update((choice["index"], choice["message"]["content"]) for choice in json.loads(body)["choices"])
        return texts
    for part in body.split(b"\n\n"):
        if part.startswith(b"data: {"):
            for choice in json.loads(part.removeprefix(b"data: ")).get("choices", ()):
                texts[choice["index"]] += choice["delta"].get("content") or ""
    return texts


async def fetched(service: Service, receipt_id: str) -> bytes:
    answer = await service.gateway.client.get(f"/v1/aci/receipts/{receipt_id}", headers=bearer(service.key))
    assert answer.status_code == 200
    return answer.content


async def receipts_kept(gateway: ScriptedGateway) -> set[str]:
    found = await gateway.store._read(lambda db: db.execute("SELECT DISTINCT receipt_id FROM proofs").fetchall())
    return {receipt_id for (receipt_id,) in found}


@pytest.mark.parametrize(
    ("examples", "steps"),
    [(8, 80), pytest.param(100, 200, marks=[pytest.mark.long, pytest.mark.timeout(900)])],
)
def test_every_exit_of_many_clients_is_accounted_for(examples: int, steps: int) -> None:
    ManyClients.outcomes.clear()
    ManyClients.visits_made = 0
    # No shrinking: what happens depends on time, and a shorter run would be another one.
    run_state_machine_as_test(
        ManyClients,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"{ManyClients.visits_made} visits: {dict(ManyClients.outcomes)}")
    expected = OUTCOMES if examples > 50 else {"complete", "client_closed", "refused"}
    assert set(ManyClients.outcomes) >= expected  # else it has not been where it was sent
