"""One honest platform, and the proof that its service gives."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aci_service import AciService, simulated
from confide.simulator.tdx import SimulatedTdxPlatform
from confide.verifier.policy import Policy
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


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the simulated platform, in a file."""
    path = tmp_path_factory.mktemp("root") / "root.pem"
    path.write_text(simulated().root_pem)
    return path


@pytest.fixture(scope="session")
def trusting(root: Path) -> Callable[..., Policy]:
    """A policy that trusts that root, with further arguments."""

    def policy(**arguments: Any) -> Policy:
        return Policy(**({"trust_roots": (root,)} | arguments))

    return policy


@pytest.fixture(scope="session")
def service() -> AciService:
    """An honest service that answers itself, with TLS."""
    return AciService()
