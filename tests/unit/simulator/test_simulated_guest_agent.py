"""The simulated guest agent and its KMS, read with other tools than their own."""

import json
from collections.abc import Iterator
from hashlib import sha384
from pathlib import Path
from typing import Any

import dcap_qvl
import httpx2
import pytest
from coincurve import PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.protocol.signature import keccak256
from confide.simulator.guest_agent import SimulatedGuestAgent, serving
from confide.simulator.kms import SimulatedKms
from confide.simulator.measurements import APP_ID, LogStyle
from confide.simulator.tdx import SimulatedTdxPlatform

NOW = 1_800_000_000
SEED = bytes(range(32))
KMS = SimulatedKms(SEED)


def platform(**style: Any) -> SimulatedTdxPlatform:
    return SimulatedTdxPlatform(SEED, now=NOW, log=LogStyle(**style))


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    socket = tmp_path_factory.mktemp("agent") / "dstack.sock"
    with serving(SimulatedGuestAgent(platform(), KMS).app, socket):
        transport = httpx2.HTTPTransport(uds=str(socket), trust_env=False)
        with httpx2.Client(transport=transport, base_url="http://localhost") as client:
            yield client
    assert not socket.exists()


def recovered(message: bytes, signature: str) -> bytes:
    key: bytes = PublicKey.from_signature_and_message(
        bytes.fromhex(signature), keccak256(message), hasher=None
    ).format()
    return key


def test_a_quote_is_over_the_bytes_that_were_sent_with_zeros_on_the_right(agent: httpx2.Client) -> None:
    answer = agent.post("/GetQuote", json={"report_data": "ab" * 32}).json()
    assert answer["report_data"] == "ab" * 32 + "00" * 32
    quote = dcap_qvl.parse_quote(bytes.fromhex(answer["quote"]))
    assert quote.report.report_data.hex() == answer["report_data"]
    assert isinstance(json.loads(answer["event_log"]), list)
    assert answer["attestation"] == ""


def test_a_query_works_too(agent: httpx2.Client) -> None:
    assert agent.get("/GetQuote", params={"report_data": "ab"}).json()["report_data"].startswith("ab00")


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("GetQuote", b'{"report_data":"zz"}'),
        ("GetQuote", b'{"report_data":5}'),
        ("GetQuote", json.dumps({"report_data": "00" * 65}).encode()),
        ("GetQuote", b"[]"),
        ("GetQuote", b"{"),
        ("GetKey", b'{"algorithm":"rsa"}'),
    ],
)
def test_what_is_wrong_is_told_with_status_400(agent: httpx2.Client, method: str, body: bytes) -> None:
    answer = agent.post(f"/{method}", content=body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}


def test_info_is_the_guests(agent: httpx2.Client) -> None:
    info = agent.post("/Info", json={}).json()
    assert info["app_id"] == APP_ID.hex()
    provider = json.loads(info["key_provider_info"])
    assert provider["name"] == "kms"
    assert provider["id"] != KMS.root_public_key  # the CA of a KMS is another key than its root
    assert bytes.fromhex(provider["id"])[:2] == b"\x30\x59"  # a P-256 SubjectPublicKeyInfo


def test_its_version_is_no_release(agent: httpx2.Client) -> None:
    assert "simulated" in agent.post("/Version", json={}).json()["version"]


@pytest.mark.parametrize("algorithm", ["", "secp256k1", "k256", "ed25519"])
def test_a_key_has_a_chain_to_the_root(agent: httpx2.Client, algorithm: str) -> None:
    answer = agent.post("/GetKey", json={"path": "a/path", "purpose": "why", "algorithm": algorithm}).json()
    secret = bytes.fromhex(answer["key"])
    public = PublicKey.from_secret(secret).format()
    if algorithm == "ed25519":
        public = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    over_key, issued = answer["signature_chain"]
    app_key = recovered(f"why:{public.hex()}".encode(), over_key)
    assert recovered(b"dstack-kms-issued:" + APP_ID + app_key, issued).hex() == KMS.root_public_key


def test_a_path_has_one_secret_and_another_path_has_another() -> None:
    app = KMS.app_keys(APP_ID)
    assert app.release("a", "x")["key"] == app.release("a", "y", "ed25519")["key"]
    assert app.release("a", "x")["key"] != app.release("b", "x")["key"]
    assert app.release("a", "x")["key"] != KMS.app_keys(bytes(20)).release("a", "x")["key"]


def test_the_root_never_changes_because_people_pin_it() -> None:
    assert KMS.root_public_key == SimulatedKms(SEED).root_public_key
    assert KMS.root_public_key != SimulatedKms(bytes(32)).root_public_key
    with pytest.raises(ValueError, match="expected 32"):
        SimulatedKms(b"short")


def rtmr3(log: list[dict[str, Any]]) -> bytes:
    register = bytes(48)
    for event in log:
        if event["imr"] == 3:
            register = sha384(register + bytes.fromhex(event["digest"])).digest()
    return register


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("application_event", [False, True])
def test_each_style_of_log_replays(version: int, application_event: bool) -> None:
    guest = platform(version=version, application_event=application_event)
    log = json.loads(guest.event_log)
    assert dcap_qvl.parse_quote(guest.quote(bytes(64))).report.rt_mr3 == rtmr3(log)
    assert (log[-1]["event"] == "system-ready") is not application_event
    assert {event.get("version", 1) for event in log if event["imr"] == 3} == {version}


def test_digests_may_be_left_out_without_another_register() -> None:
    full, empty = platform(), platform(empty_digests=True)
    assert full.quote(bytes(64)) == empty.quote(bytes(64))
    assert {event["digest"] for event in json.loads(empty.event_log) if event["imr"] == 3} == {""}
    assert all(event["digest"] for event in json.loads(empty.event_log) if event["imr"] != 3)


def test_the_log_may_be_an_array() -> None:
    agent = SimulatedGuestAgent(platform(), KMS, log_as_list=True)
    log = agent.get_quote({"report_data": ""})["event_log"]
    assert log == json.loads(platform().event_log)


def test_a_socket_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    app = SimulatedGuestAgent(platform(), KMS).app
    with pytest.raises(FileNotFoundError), serving(app, tmp_path / "missing" / "dstack.sock"):
        pass
