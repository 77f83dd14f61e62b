"""The line between a parent and its workers: messages arrive whole and in order, however the bytes were cut."""

import asyncio
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.config import Config, Model, Upstream
from confide.engine.slot_service import Acquire, Granted, Room
from confide.gateway.control import (
    Begin,
    Commit,
    Drain,
    HasFailed,
    HasOpened,
    Line,
    SessionStands,
    Stage,
    ToParent,
    ToWorker,
    WrongKey,
    encode,
)
from confide.gateway.service import Offered, Platform
from confide.upstream.sessions import AttestedSession

SESSION = AttestedSession(
    id="ab" * 32,
    upstream_name="second",
    document={"claims": {"tee_attested": {"status": "asserted"}}, "expires_at": 12, "n": True, "list": ["a", 1]},
    pins=frozenset({b"\x01" * 32, b"\x02" * 32}),
    established_at=1,
    usable_until=2,
    renew_at=3,
    expires_at=4,
)
UPSTREAM = Upstream(name="second", kind="aci", base_url="https://a.example/v1", trust_roots=("intel",))
MODEL = Model(id="m", upstream=("second",), aliases=("a", "b"))
TO_WORKER: list[ToWorker] = [
    Begin((UPSTREAM,), (MODEL, *Config().model)),
    SessionStands("second", SESSION),
    SessionStands("second", None, "not verified yet"),
    Granted("m", 2**40),
    Room("m", 3, 0),
    Stage(1, (), ()),
    Commit(),
    Drain(),
]
TO_PARENT: list[ToParent] = [
    HasOpened(Platform("tsm", "tdx", True, b"\x00" * 32), "ab.cd", (Offered("m", "d"),), "sha256:00", None),
    HasFailed("no", None),
    Acquire("m", 0),
    WrongKey("second", "ab" * 32),
]


def framed(messages: list[Any]) -> bytes:
    return b"".join(len(data).to_bytes(4, "big") + data for data in map(encode, messages))


@pytest.mark.parametrize(("kinds", "messages"), [(ToWorker, TO_WORKER), (ToParent, TO_PARENT)])
def test_messages_arrive_whole_at_every_split(kinds: object, messages: list[Any]) -> None:
    raw = framed(messages)
    for split in range(len(raw) + 1):
        received: list[Any] = []
        line = Line(kinds, received.append, lambda: None)
        line.data_received(raw[:split])
        line.data_received(raw[split:])
        assert received == messages


@given(st.lists(st.integers(1, 40)))
def test_messages_arrive_whole_in_any_pieces(sizes: list[int]) -> None:
    raw = framed(TO_WORKER)
    received: list[Any] = []
    line = Line(ToWorker, received.append, lambda: None)
    for size in sizes:
        line.data_received(raw[:size])
        raw = raw[size:]
    line.data_received(raw)
    assert received == TO_WORKER


async def test_a_line_carries_large_messages_both_ways_and_tells_of_its_end() -> None:
    ours, theirs = socket.socketpair()
    came: asyncio.Queue[Any] = asyncio.Queue()
    lost = asyncio.Event()
    one = await Line.open(ours, ToParent, came.put_nowait, lost.set)
    other = await Line.open(theirs, ToWorker, came.put_nowait, lambda: None)
    large = SessionStands("second", None, "x" * 3_000_000)
    one.send(large)
    assert await came.get() == large
    other.send(HasFailed("y" * 3_000_000, None))
    assert (await came.get()).message == "y" * 3_000_000
    other.abort()
    await lost.wait()
    one.send(Drain())  # to nobody


async def test_a_line_ends_though_the_other_end_takes_nothing() -> None:
    ours, theirs = socket.socketpair()
    lost = asyncio.Event()
    with theirs:
        line = await Line.open(ours, ToParent, print, lost.set)
        line.send(SessionStands("second", None, "x" * 3_000_000))
        line.abort()
        await lost.wait()
