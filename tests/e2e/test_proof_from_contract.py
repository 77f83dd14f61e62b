"""A second verifier, written from wire contract 5, 6 and 9 alone, against the real program and its embedded model.

It imports nothing of the product, so a mistake that server and client share shows here.
"""

import ast
import base64
import datetime
import hashlib
import json
import os
import secrets
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dcap_qvl
import httpx2
import pytest
from coincurve import PublicKey
from Crypto.Hash import keccak
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from running import CONFIDE, Running, home_with_weights, running
from tls_files import self_signed

pytestmark = pytest.mark.engine

ALGOS = ["ecdsa", "ed25519"]
PROMPT = "Schreib „zwei“ auf Japanisch: 二 🙂\u2028 und\u00a0Schluss"
GROUP_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

# Wire contract 6.3: in a version 4 quote the TD report starts at byte 48.
MR_CONFIG_ID, REPORT_DATA, DEBUG_BYTE = slice(232, 280), slice(568, 632), 168


@dataclass(frozen=True)
class Served:
    """The running service and the tokens of two clients."""

    running: Running
    key: str
    other_key: str

    @property
    def url(self) -> str:
        return self.running.url

    @property
    def mine(self) -> dict[str, str]:
        return bearer(self.key)


@dataclass(frozen=True)
class Exchange:
    """The two bodies as they were on the wire, and the id in the answer."""

    sent: bytes
    received: bytes
    id: str


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def create_key(home: Path, name: str) -> str:
    command = [str(CONFIDE), "keys", "create", name]
    environ = {**os.environ, "CONFIDE_HOME": str(home)}
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, engine_home: Path) -> Iterator[Served]:
    home = home_with_weights(tmp_path_factory.mktemp("contract"), engine_home)
    key, other_key = create_key(home, "one"), create_key(home, "other")
    with running(home) as started:
        yield Served(started, key, other_key)


def only_model(url: str, verify: ssl.SSLContext | bool = True) -> str:
    model: str = httpx2.get(f"{url}/v1/models", verify=verify).json()["data"][0]["id"]
    return model


def body(url: str, *, stream: bool, prompt: str = PROMPT, verify: ssl.SSLContext | bool = True) -> bytes:
    """A request as a client may write it: spaces, an unknown member, text as escapes."""
    members = {
        "model": only_model(url, verify),
        "messages": [{"role": "user", "content": prompt}],
        "stream": stream,
        "max_tokens": 6,
        "x-unknown": 1.50,
    }
    return json.dumps(members, indent=1).encode()


def exchange(
    url: str, sent: bytes, headers: dict[str, str] | None = None, *, verify: ssl.SSLContext | bool = True
) -> Exchange:
    """Post `sent`; keep every byte of the answer as it came."""
    with (
        httpx2.Client(verify=verify, timeout=60) as client,
        client.stream("POST", f"{url}/v1/chat/completions", content=sent, headers=headers) as response,
    ):
        assert response.status_code == 200
        received = b"".join(response.iter_raw())
    return Exchange(sent, received, id_in(received))


def id_in(received: bytes) -> str:
    first = received.split(b"\n\n")[0].removeprefix(b"data: ")
    answer_id: str = json.loads(first)["id"]
    return answer_id


def get_signature(url: str, answer_id: str, algo: str, headers: dict[str, str] | None = None) -> httpx2.Response:
    return httpx2.get(f"{url}/v1/signature/{answer_id}", params={"signing_algo": algo}, headers=headers)


def get_report(url: str, query: dict[str, str], verify: ssl.SSLContext | bool = True) -> httpx2.Response:
    return httpx2.get(f"{url}/v1/attestation/report", params=query, verify=verify)


def keccak256(data: bytes) -> bytes:
    return keccak.new(digest_bits=256, data=data).digest()


def check_signature(document: dict[str, Any], algo: str) -> bytes:
    """Wire contract 5.4, 5.5: return the identity that signed `text`, 20 or 32 bytes."""
    text: bytes = document["text"].encode()
    assert document["signing_algo"] == algo
    if algo == "ed25519":
        identity = bytes.fromhex(document["signing_address"])
        Ed25519PublicKey.from_public_bytes(identity).verify(bytes.fromhex(document["signature"]), text)
        return identity
    assert document["signature"].startswith("0x")
    signature = bytes.fromhex(document["signature"][2:])
    assert len(signature) == 65
    assert signature[64] in (27, 28)
    assert int.from_bytes(signature[32:64], "big") <= GROUP_ORDER // 2
    digest = keccak256(b"\x19Ethereum Signed Message:\n" + str(len(text)).encode() + text)
    recoverable = signature[:64] + bytes([signature[64] - 27])
    key = PublicKey.from_signature_and_message(recoverable, digest, hasher=None)
    address = keccak256(key.format(compressed=False)[1:])[-20:]
    assert document["signing_address"].lower() == "0x" + address.hex()
    return address


def check_hashes(document: dict[str, Any], found: Exchange) -> None:
    """Wire contract 9.2, step 2: the last two parts of the text."""
    request, response = document["text"].split(":")[-2:]
    assert request == hashlib.sha256(found.sent).hexdigest()
    assert response == hashlib.sha256(found.received).hexdigest()


def pick(report: dict[str, Any], address: str) -> dict[str, Any]:
    """Wire contract 6.2: which of the objects to use."""
    objects = [*report.get("model_attestations", []), *report.get("all_attestations", [])]
    objects += [report["gateway_attestation"]] if "gateway_attestation" in report else []
    return next(each for each in [*objects, report] if each["signing_address"].lower() == address.lower())


def verified_quote(entry: dict[str, Any], home: Path) -> bytes:
    """Wire contract 9.1, steps 2 and 3, under the root that the simulator wrote down."""
    try:
        quote = bytes.fromhex(entry["intel_quote"])
    except ValueError:
        quote = base64.b64decode(entry["intel_quote"])
    root = x509.load_pem_x509_certificate((home / "simulator" / "root.pem").read_bytes())
    collateral = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(entry["collateral"]))
    now = int(datetime.datetime.now(datetime.UTC).timestamp())
    report = dcap_qvl.verify_with_root_ca(quote, collateral, root.public_bytes(Encoding.DER), now)
    assert report.status == "UpToDate"
    assert quote[:2] == b"\x04\x00"
    assert quote[DEBUG_BYTE] == 0
    return quote


def check_attestation(
    report: dict[str, Any], address: str, identity: bytes, nonce: bytes, home: Path, spki: bytes | None = None
) -> dict[str, Any]:
    """Wire contract 9.1, steps 2 to 7; returns the object that was used."""
    entry = pick(report, address)
    quote = verified_quote(entry, home)
    first = hashlib.sha256(identity + spki).digest() if spki else identity.ljust(32, b"\0")
    assert quote[REPORT_DATA] == first + nonce
    assert entry["report_data"] == (first + nonce).hex()
    assert entry["request_nonce"] == nonce.hex()
    payload = json.loads(entry["nvidia_payload"])
    assert (payload["nonce"], payload["evidence_list"]) == (nonce.hex(), [])
    tcb_info = entry["info"]["tcb_info"]
    tcb_info = json.loads(tcb_info) if isinstance(tcb_info, str) else tcb_info
    compose_hash = hashlib.sha256(tcb_info["app_compose"].encode()).digest()
    assert quote[MR_CONFIG_ID] == b"\x01" + compose_hash + bytes(15)
    return entry


def check_proof(url: str, found: Exchange, algo: str, home: Path, headers: dict[str, str] | None = None) -> None:
    """Wire contract 9.2 as a whole."""
    document = get_signature(url, found.id, algo, headers).json()
    check_hashes(document, found)
    identity = check_signature(document, algo)
    nonce = secrets.token_bytes(32)
    address = document["signing_address"]
    query = {"nonce": nonce.hex(), "signing_address": address, "signing_algo": algo, "model": only_model(url)}
    entry = check_attestation(get_report(url, query).json(), address, identity, nonce, home)
    assert entry["signing_algo"] == algo
    assert entry["version"] == 1


def test_this_verifier_imports_nothing_of_the_product() -> None:
    own = {"confide"}
    for module in (Path(__file__), *(Path(sys.modules[name].__file__ or "") for name in ("running", "tls_files"))):
        for node in ast.walk(ast.parse(module.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert own.isdisjoint(name.split(".")[0] for name in names)


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
def test_an_answer_to_non_ascii_text_is_proved(service: Served, stream: bool, algo: str) -> None:
    found = exchange(service.url, body(service.url, stream=stream), service.mine)
    assert found.received.endswith(b"data: [DONE]\n\n") is stream
    assert b"\r" not in found.received
    check_proof(service.url, found, algo, service.running.home, service.mine)


def test_raw_utf8_in_the_request_is_hashed_as_it_was_sent(service: Served) -> None:
    members = {"model": only_model(service.url), "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 2}
    sent = json.dumps(members, ensure_ascii=False).encode()
    found = exchange(service.url, sent, service.mine)
    check_proof(service.url, found, "ecdsa", service.running.home, service.mine)


def test_a_forged_request_hash_header_has_no_influence(service: Served) -> None:
    forged = {"X-Request-Hash": hashlib.sha256(b"another request").hexdigest()}
    found = exchange(service.url, body(service.url, stream=False), {**service.mine, **forged})
    check_hashes(get_signature(service.url, found.id, "ecdsa", service.mine).json(), found)


def test_a_proof_is_for_the_client_that_asked(service: Served) -> None:
    found = exchange(service.url, body(service.url, stream=False), service.mine)
    without = get_signature(service.url, found.id, "ecdsa")
    assert (without.status_code, without.json()["error"]["type"]) == (401, "unauthorized")
    others = get_signature(service.url, found.id, "ecdsa", bearer(service.other_key))
    unknown = get_signature(service.url, "chatcmpl-" + "0" * 32, "ecdsa", service.mine)
    assert (others.status_code, others.content) == (unknown.status_code, unknown.content)
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found")
    assert unknown.json()["error"]["message"] == "Chat id not found or expired"
    check_hashes(get_signature(service.url, found.id, "ecdsa", service.mine).json(), found)


def test_an_unknown_algorithm_is_refused_by_name(service: Served) -> None:
    for refused in (
        get_signature(service.url, "chatcmpl-" + "0" * 32, "rsa", service.mine),
        get_report(service.url, {"signing_algo": "rsa"}),
    ):
        assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_signing_algo")


@pytest.mark.parametrize("algo", ALGOS)
def test_the_report_is_filtered_by_signing_address(service: Served, algo: str) -> None:
    address = get_report(service.url, {"signing_algo": algo}).json()["signing_address"]
    nonce = secrets.token_bytes(32)
    upper = address.upper().replace("0X", "0x")
    query = {"signing_address": upper, "signing_algo": algo, "nonce": nonce.hex()}
    report = get_report(service.url, query).json()
    identity = bytes.fromhex(address.removeprefix("0x"))
    assert len(identity) == {"ecdsa": 20, "ed25519": 32}[algo]
    check_attestation(report, address, identity, nonce, service.running.home)
    assert {each["signing_address"] for each in report["all_attestations"]} == {address}


@pytest.mark.parametrize("address", ["0x" + "00" * 20, "11" * 32, "nonsense"])
def test_an_address_that_is_not_ours_is_not_found(service: Served, address: str) -> None:
    refused = get_report(service.url, {"signing_address": address})
    assert (refused.status_code, refused.json()["error"]["type"]) == (404, "not_found")
    assert refused.json()["error"]["message"] == "Signing address not found on this server"


def test_a_nonce_in_upper_case_is_the_same_nonce(service: Served) -> None:
    nonce = bytes(range(160, 192))
    report = get_report(service.url, {"nonce": nonce.hex().upper()}).json()
    identity = bytes.fromhex(report["signing_address"].removeprefix("0x"))
    check_attestation(report, report["signing_address"], identity, nonce, service.running.home)


@pytest.mark.parametrize("query", [{}, {"nonce": ""}], ids=["absent", "empty"])
def test_the_server_draws_a_nonce_when_none_is_given(service: Served, query: dict[str, str]) -> None:
    drawn = set()
    for _ in range(2):
        report = get_report(service.url, query).json()
        nonce = bytes.fromhex(report["request_nonce"])
        assert len(nonce) == 32
        identity = bytes.fromhex(report["signing_address"].removeprefix("0x"))
        check_attestation(report, report["signing_address"], identity, nonce, service.running.home)
        drawn.add(nonce)
    assert len(drawn) == 2


@pytest.mark.parametrize(
    "nonce", ["ab", "0" * 63, "0" * 65, "0x" + "0" * 64, "0x" + "0" * 62, "g" * 64, "hello", "0" * 63 + "\n", "٣" * 64]
)
def test_anything_else_is_no_nonce(service: Served, nonce: str) -> None:
    refused = get_report(service.url, {"nonce": nonce})
    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "invalid_request_error"
    assert refused.json()["error"]["param"] == "nonce"


@pytest.mark.parametrize("query", [{"version": "2"}, {"include_tls_fingerprint": "true"}, {"version": "3"}])
def test_a_service_without_certificate_cannot_bind_one(service: Served, query: dict[str, str]) -> None:
    refused = get_report(service.url, query)
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")


def test_version_2_binds_the_tls_key_and_a_proof_survives_a_restart(tmp_path: Path, engine_home: Path) -> None:
    home = home_with_weights(tmp_path, engine_home)
    files = self_signed(tmp_path)
    with running(home) as plain:
        found = exchange(plain.url, body(plain.url, stream=True))
        before = get_signature(plain.url, found.id, "ecdsa").json()
        assert plain.terminate() == 0
    config = f'[server]\ntls_cert = "{files.cert}"\ntls_key = "{files.key}"\n'
    trusting = ssl.create_default_context(cafile=str(files.cert))
    with running(home, config=config) as bound, httpx2.Client(verify=trusting, base_url=bound.url) as client:
        assert bound.url.startswith("https://")
        after = client.get(f"/v1/signature/{found.id}").json()
        assert (after["text"], after["signing_address"]) == (before["text"], before["signing_address"])
        check_hashes(after, found)
        for algo in ALGOS:
            for query in ({"version": "2"}, {"include_tls_fingerprint": "true"}):
                nonce = secrets.token_bytes(32)
                report = get_report(bound.url, {"nonce": nonce.hex(), "signing_algo": algo, **query}, trusting).json()
                identity = bytes.fromhex(report["signing_address"].removeprefix("0x"))
                entry = check_attestation(report, report["signing_address"], identity, nonce, home, files.spki_sha256)
                assert (entry["version"], entry["tls_cert_fingerprint"]) == (2, files.spki_sha256.hex())
        check_signature(after, "ecdsa")
