"""The client of dstack's guest agent, before an honest agent and before every kind of broken one."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from agent_socket import Switchboard, switchboard
from confide.attester import dstack_agent
from confide.attester.dstack_agent import AgentFailed, Endpoint, GuestAgent, find_agent
from confide.simulator.guest_agent import SimulatedGuestAgent, serving
from confide.simulator.kms import SimulatedKms
from confide.simulator.tdx import SimulatedTdxPlatform

NOW = 1_800_000_000
SEED = bytes(range(32))
PLATFORM = SimulatedTdxPlatform(SEED, now=NOW)
KMS = SimulatedKms(SEED)
REPORT_DATA = bytes(range(64))
METHODS: list[Callable[[GuestAgent], Awaitable[object]]] = [
    lambda agent: agent.quote(REPORT_DATA),
    lambda agent: agent.info(),
    lambda agent: agent.key("a/path", "why"),
    lambda agent: agent.version(),
]


def always(response: Response, *, after_s: float = 0) -> ASGIApp:
    """An agent that answers everything alike."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        await asyncio.sleep(after_s)
        await response(scope, receive, send)

    return app


def saying(document: object, status: int = 200) -> ASGIApp:
    return always(Response(json.dumps(document), status))


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Switchboard]:
    with switchboard(tmp_path_factory.mktemp("agent")) as board:
        yield board


def agent_at(board: Switchboard, app: ASGIApp, **deadlines: float) -> GuestAgent:
    """A client whose agent is this application."""
    board.connect(app)
    return GuestAgent(Endpoint(str(board.path)), **deadlines)


async def failure(agent: GuestAgent, method: Callable[[GuestAgent], Awaitable[object]]) -> AgentFailed:
    with pytest.raises(AgentFailed) as caught:
        await method(agent)
    return caught.value


@pytest.mark.parametrize("log_as_list", [False, True])
async def test_an_honest_agents_answers_are_read(board: Switchboard, log_as_list: bool) -> None:
    honest = SimulatedGuestAgent(PLATFORM, KMS, log_as_list=log_as_list)
    agent = agent_at(board, honest.app)
    quoted = await agent.quote(REPORT_DATA)
    assert quoted.quote == PLATFORM.quote(REPORT_DATA)
    assert quoted.report_data == REPORT_DATA
    assert json.loads(quoted.event_log) == json.loads(PLATFORM.event_log)
    assert (quoted.event_log == PLATFORM.event_log) is not log_as_list  # text stays as it came
    assert quoted.vm_config == PLATFORM.vm_config
    assert await agent.info() == PLATFORM.info
    released = await agent.key("a/path", "why")
    assert len(released.signature_chain) == 2
    assert (await agent.version()).version


def test_it_serves_from_one_event_loop_after_another(board: Switchboard) -> None:
    agent = agent_at(board, SimulatedGuestAgent(PLATFORM, KMS).app)
    for _ in range(2):
        assert asyncio.run(agent.info())


@pytest.mark.parametrize("length", [0, 63, 65])
async def test_report_data_is_64_bytes_always(tmp_path: Path, length: int) -> None:
    with pytest.raises(ValueError, match=f"got {length}"):
        await GuestAgent(Endpoint(str(tmp_path))).quote(b"r" * length)


@pytest.mark.parametrize("method", METHODS)
async def test_a_refusal_is_told_with_its_reason(board: Switchboard, method: Any) -> None:
    agent = agent_at(board, saying({"error": "not\nallowed\x1b"}, 400))
    error = await failure(agent, method)
    assert not error.temporary
    assert "status 400: not allowed?" in str(error)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"error":5}', b'{"error":""}', b"<html>"])
async def test_a_refusal_without_a_reason(board: Switchboard, body: bytes) -> None:
    agent = agent_at(board, always(Response(body, 500)))
    assert "status 500: without a reason" in str(await failure(agent, METHODS[1]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("location", "reason"), [("http://localhost/other", "status 302"), ("//:1", "ValueError")])
async def test_a_redirect_is_not_followed_wherever_it_leads(
    board: Switchboard, method: Any, location: str, reason: str
) -> None:
    agent = agent_at(board, always(Response(b"", 302, headers={"location": location})))
    assert reason in str(await failure(agent, method))


@pytest.mark.parametrize("method", METHODS)
async def test_a_slow_agent_is_not_waited_for(board: Switchboard, method: Any) -> None:
    app = always(Response("{}"), after_s=0.5)
    agent = agent_at(board, app, deadline_s=0.05, quote_deadline_s=0.05)
    error = await failure(agent, method)
    assert error.temporary
    assert "within 0.05 s" in str(error)


async def test_an_answer_is_bounded(board: Switchboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dstack_agent, "MAX_ANSWER_BYTES", 1000)
    agent = agent_at(board, saying({"filler": "x" * 900}))
    assert await agent.info()
    agent = agent_at(board, saying({"filler": "x" * 1000}))
    error = await failure(agent, METHODS[1])
    assert "more than 1000 bytes" in str(error)
    assert not error.temporary


async def test_a_packed_answer_is_not_unpacked(board: Switchboard) -> None:
    """However small it came, unpacked it could be of any size."""
    agent = agent_at(board, always(Response(b"\x1f\x8b", headers={"content-encoding": "gzip"})))
    assert "not JSON" in str(await failure(agent, METHODS[1]))


async def test_an_absent_agent_may_come_back(tmp_path: Path) -> None:
    error = await failure(GuestAgent(Endpoint(str(tmp_path / "missing.sock"))), METHODS[1])
    assert error.temporary
    assert "ConnectError" in str(error)


async def test_a_url_may_stand_for_a_socket() -> None:
    error = await failure(GuestAgent(Endpoint("http://127.0.0.1:9")), METHODS[1])
    assert error.temporary
    assert "ConnectError" in str(error)


QUOTE: dict[str, object] = {"quote": "00", "event_log": "[]"}
KEY: dict[str, object] = {"key": "01" * 32, "signature_chain": []}


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (METHODS[0], QUOTE | {"quote": "0"}),
        (METHODS[0], QUOTE | {"quote": None}),
        (METHODS[0], QUOTE | {"event_log": {}}),
        (METHODS[0], QUOTE | {"report_data": "x"}),
        (METHODS[0], {"quote": "00"}),
        (METHODS[0], []),
        (METHODS[1], []),
        *((METHODS[2], KEY | {"key": key}) for key in ("", "zz", "00" * 32, "ff" * 32)),
        (METHODS[2], KEY | {"signature_chain": "text"}),
        (METHODS[2], {}),
        (METHODS[3], {}),
    ],
)
async def test_an_answer_of_another_shape_is_refused(board: Switchboard, method: Any, answer: object) -> None:
    agent = agent_at(board, saying(answer))
    assert not (await failure(agent, method)).temporary


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"a":1,"a":2}', b"[" * 10000])
async def test_an_answer_that_is_no_json_is_refused(board: Switchboard, body: bytes) -> None:
    agent = agent_at(board, always(Response(body)))
    assert "Info: the answer" in str(await failure(agent, METHODS[1]))


async def test_a_key_does_not_show_itself(board: Switchboard) -> None:
    agent = agent_at(board, saying(KEY))
    released = await agent.key("a/path", "why")
    assert "01" * 32 not in repr(released)
    agent = agent_at(board, saying(KEY | {"key": "01" * 31}))
    assert "01" * 31 not in str(await failure(agent, METHODS[2]))


def test_the_socket_is_found_where_dstack_puts_it(tmp_path: Path) -> None:
    assert find_agent({}, tmp_path) is None
    (tmp_path / "run" / "dstack").mkdir(parents=True)
    (tmp_path / "run" / "dstack.sock").write_text("no socket")
    assert find_agent({}, tmp_path) is None
    with serving(saying({}), tmp_path / "run" / "dstack" / "dstack.sock") as path:
        assert find_agent({}, tmp_path) == Endpoint(str(path))


@pytest.mark.parametrize("named", ["http://localhost:8090", "/tmp/simulator.sock"])
def test_an_agent_that_the_environment_names_is_not_the_machines(tmp_path: Path, named: str) -> None:
    assert find_agent({"DSTACK_SIMULATOR_ENDPOINT": named}, tmp_path) == Endpoint(named, simulated=True)
    assert find_agent({"DSTACK_SIMULATOR_ENDPOINT": ""}, tmp_path) is None
