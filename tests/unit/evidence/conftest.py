"""One honest simulated platform, its quote and its collateral."""

import json

import pytest

from confide.evidence.policy import Anchors
from confide.simulator.tdx import SimulatedTdxPlatform

NOW = 1_800_000_000


@pytest.fixture(scope="session")
def now() -> int:
    return NOW


@pytest.fixture(scope="session")
def platform() -> SimulatedTdxPlatform:
    return SimulatedTdxPlatform(b"\x11" * 32, now=NOW)


@pytest.fixture(scope="session")
def report_data() -> bytes:
    return bytes(range(64))


@pytest.fixture(scope="session")
def quote(platform: SimulatedTdxPlatform, report_data: bytes) -> bytes:
    return platform.quote(report_data)


@pytest.fixture(scope="session")
def collateral(platform: SimulatedTdxPlatform) -> str:
    return json.dumps(platform.collateral(NOW))


@pytest.fixture(scope="session")
def anchors(platform: SimulatedTdxPlatform) -> Anchors:
    return Anchors.default().with_simulated(platform.root_der)
