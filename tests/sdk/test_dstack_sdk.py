"""dstack's own client talks to our simulated guest agent, and finds in its answers what it finds on a real machine.

It runs in an environment of its own (`requirements/conformance.in`): it needs another major release of pycryptodome
than the service, and drags a package named asyncio.
"""

import json
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest
from coincurve import PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.evidence.custody import check_chain
from confide.evidence.quote import parse_quote
from confide.simulator.guest_agent import SimulatedGuestAgent, serving
from confide.simulator.kms import SimulatedKms
from confide.simulator.measurements import APP_COMPOSE, APP_ID, COMPOSE_HASH, LogStyle
from confide.simulator.tdx import SimulatedTdxPlatform

pytestmark = pytest.mark.long

NOW = 1_800_000_000
SEED = bytes(range(32))
REQUIREMENTS = Path(__file__).parents[2] / "requirements" / "conformance.txt"

PROGRAM = """\
import asyncio, hashlib, json, sys
from dstack_sdk import AsyncDstackClient, DstackClient

client = DstackClient(sys.argv[1])
quote = client.get_quote(bytes(range(64)))
info = client.info()
keys = {algorithm: client.get_key("a/path", "why", algorithm) for algorithm in ("secp256k1", "ed25519")}
try:
    client.get_quote(b"r" * 65)
    refused = False
except Exception:
    refused = True
json.dump(
    {
        "quote": quote.quote,
        "rtmrs": list(quote.replay_rtmrs().values()),
        "info": {"app_id": info.app_id, "compose_hash": info.compose_hash, "rtmr3": info.tcb_info.rtmr3},
        "compose_sha256": hashlib.sha256(info.tcb_info.app_compose.encode()).hexdigest(),
        "keys": {name: {"key": key.key, "chain": key.signature_chain} for name, key in keys.items()},
        "version": client.version().version,
        "reachable": client.is_reachable(),
        "refused": refused,
        "later": asyncio.run(AsyncDstackClient(sys.argv[1]).get_quote(b"r" * 32)).report_data,
    },
    sys.stdout,
)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the client."""
    directory = tmp_path_factory.mktemp("dstack-sdk")
    venv.create(directory, with_pip=True)
    interpreter = directory / "bin" / "python"
    locked = ["--require-hashes", "--only-binary", ":all:", "-r", str(REQUIREMENTS)]
    command = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *locked]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"dstack-sdk cannot be installed here: {installed.stderr.strip()[-200:]}")
    return interpreter


@pytest.fixture(scope="module", params=[1, 2], ids=["log form 1", "log form 2"])
def found(request: pytest.FixtureRequest, python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the client found."""
    platform = SimulatedTdxPlatform(SEED, now=NOW, log=LogStyle(version=request.param, application_event=True))
    agent = SimulatedGuestAgent(platform, SimulatedKms(SEED))
    with serving(agent.app, tmp_path_factory.mktemp("agent") / "dstack.sock") as socket:
        done = subprocess.run(
            [str(python), "-c", PROGRAM, str(socket)], capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_client_replays_the_registers_of_the_quote(found: dict[str, Any]) -> None:
    quote = parse_quote(bytes.fromhex(found["quote"]))
    assert quote.report_data == bytes(range(64))
    assert found["rtmrs"] == [each.hex() for each in (quote.rtmr0, quote.rtmr1, quote.rtmr2, quote.rtmr3)]
    assert found["info"]["rtmr3"] == quote.rtmr3.hex()


def test_the_client_finds_the_application(found: dict[str, Any]) -> None:
    assert found["info"]["app_id"] == APP_ID.hex()
    assert found["info"]["compose_hash"] == found["compose_sha256"] == COMPOSE_HASH.hex()
    assert json.loads(APP_COMPOSE)


def test_the_client_gets_keys_with_a_chain_to_the_root(found: dict[str, Any]) -> None:
    roots = {SimulatedKms(SEED).root_public_key}
    secrets = {name: bytes.fromhex(key["key"]) for name, key in found["keys"].items()}
    public = {
        "secp256k1": PublicKey.from_secret(secrets["secp256k1"]).format(),
        "ed25519": Ed25519PrivateKey.from_private_bytes(secrets["ed25519"]).public_key().public_bytes_raw(),
    }
    for name, key in public.items():
        check_chain("why", key, tuple(found["keys"][name]["chain"]), APP_ID, roots)


def test_the_client_understands_refusals_and_the_rest(found: dict[str, Any]) -> None:
    assert found["refused"]
    assert found["reachable"]
    assert "simulated" in found["version"]
    assert found["later"] == (b"r" * 32 + bytes(32)).hex()
