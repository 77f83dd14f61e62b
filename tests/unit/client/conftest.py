"""One honest platform, and the proof that its service gives."""

from collections.abc import Callable
from functools import partial

import pytest

from confide.simulator.tdx import SimulatedTdxPlatform
from proof_builders import NOW, SEED, Proof, build_proof


@pytest.fixture(scope="session")
def platform() -> SimulatedTdxPlatform:
    return SimulatedTdxPlatform(SEED, now=NOW)


@pytest.fixture(scope="session")
def honest(platform: SimulatedTdxPlatform) -> Callable[..., Proof]:
    """Build an honest proof: for an algorithm, and with `spki=` over TLS."""
    return partial(build_proof, platform)


@pytest.fixture
def proof(honest: Callable[..., Proof]) -> Proof:
    """The honest proof by ECDSA, over plain HTTP."""
    return honest()
