"""Simulated vendors that a test starts, and the machines that they speak for."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from confide.evidence.quote import TdxQuote, parse_quote
from confide.simulator.nras import SimulatedNras
from confide.simulator.pccs import SimulatedPccs
from confide.simulator.snp import SimulatedSnpPlatform
from confide.simulator.tdx import SimulatedTdxPlatform
from vendors import NOW, SEED, Vendors, serving


@pytest.fixture(scope="session")
def platform() -> SimulatedTdxPlatform:
    return SimulatedTdxPlatform(SEED, now=NOW)


@pytest.fixture(scope="session")
def quote(platform: SimulatedTdxPlatform) -> TdxQuote:
    return parse_quote(platform.quote(bytes(64)))


@pytest.fixture(scope="session")
def chip() -> SimulatedSnpPlatform:
    return SimulatedSnpPlatform(SEED, now=NOW, serial_zero=True)


@pytest.fixture
def start(platform: SimulatedTdxPlatform) -> Iterator[Callable[..., Vendors]]:
    """Start services with these knobs of `SimulatedPccs`; they stop with the test."""
    honest: dict[str, Any] = {"platform": platform, "now": NOW, "nras": SimulatedNras(SEED)}
    with ExitStack() as stack:
        yield lambda **knobs: stack.enter_context(serving(SimulatedPccs(**(honest | knobs))))


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a socket fails the test."""

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("socket.socket", refused)
    monkeypatch.setattr("socket.create_connection", refused)
