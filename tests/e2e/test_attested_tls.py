"""TLS that ends in the workload: the key that a client meets on the wire is the one in the attested keyset (7.1, 9.3).

Played with the standard library and the report alone, by a client that trusts no authority until it says so.
"""

import hashlib
import json
import socket
import ssl
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from running import CONFIDE, home_with_weights, running
from tls_files import issued

pytestmark = pytest.mark.engine

ATTESTED = '[server]\ntls = "attested"\n'
HELLO = {"model": "confide/smollm2-135m", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 5}


@pytest.fixture
def home(engine_home: Path, tmp_path: Path) -> Path:
    return home_with_weights(tmp_path, engine_home)


def certificate_seen(url: str) -> x509.Certificate:
    """What the service shows to whoever connects."""
    trusting_nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting_nobody.check_hostname, trusting_nobody.verify_mode = False, ssl.CERT_NONE
    address = ("127.0.0.1", urlsplit(url).port)
    with socket.create_connection(address) as plain, trusting_nobody.wrap_socket(plain) as connection:
        der = connection.getpeercert(binary_form=True)
        assert der is not None
        assert connection.version() in ("TLSv1.2", "TLSv1.3")
    return x509.load_der_x509_certificate(der)


def spki_sha256(certificate: x509.Certificate) -> str:
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def trusting(pem: bytes) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=pem.decode())


def csr(home: Path, *names: str) -> bytes:
    """The request that the operator takes to an authority."""
    command = [str(CONFIDE), "tls", "csr", *(part for name in names for part in ("--name", name))]
    return subprocess.run(command, capture_output=True, check=True, env={"CONFIDE_HOME": str(home)}).stdout


def listed_keys(report: httpx2.Response) -> list[dict[str, str]]:
    assert report.status_code == 200, report.text
    keys: list[dict[str, str]] = report.json()["attestation"]["workload_keyset"]["tls_public_keys"]
    return keys


def test_the_key_on_the_wire_is_the_one_in_the_keyset(home: Path) -> None:
    with running(home, config=ATTESTED) as service:
        assert service.url.startswith("https://127.0.0.1:")
        certificate = certificate_seen(service.url)
        pinned = trusting(certificate.public_bytes(Encoding.PEM))  # it names 127.0.0.1, and needs no authority
        with httpx2.Client(verify=pinned, base_url=service.url, timeout=60) as client:
            assert listed_keys(client.get("/v1/aci/attestation")) == [{"spki_sha256": spki_sha256(certificate)}]
            answer = client.post("/v1/chat/completions", json=HELLO)
            assert answer.status_code == 200
            receipt = client.get(f"/v1/aci/receipts/{answer.headers['x-receipt-id']}").json()
            returned = {event["type"]: event.get("body_hash") for event in receipt["event_log"]}["response.returned"]
            assert returned == f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
            legacy = client.get("/v1/attestation/report", params={"version": "2"}).json()
            assert legacy["tls_cert_fingerprint"] == spki_sha256(certificate)
        assert service.terminate() == 0


def test_the_key_stays_through_a_restart(home: Path) -> None:
    seen = set()
    for _ in range(2):
        with running(home, config=ATTESTED) as service:
            seen.add(spki_sha256(certificate_seen(service.url)))
            assert service.terminate() == 0
    assert len(seen) == 1


def test_a_chain_that_an_authority_issued_for_the_key_is_served(home: Path, tmp_path: Path) -> None:
    chain = issued(csr(home, "api.example.com", "127.0.0.1"))
    (tmp_path / "chain.pem").write_bytes(chain.pem)
    config = f'{ATTESTED}domain = "api.example.com"\ntls_cert = "{tmp_path / "chain.pem"}"\n'
    with running(home, config=config) as service:
        certificate = certificate_seen(service.url)
        assert certificate.public_bytes(Encoding.PEM) == chain.leaf_pem
        listed = {"spki_sha256": spki_sha256(certificate), "domain": "api.example.com"}
        with httpx2.Client(verify=trusting(chain.root_pem), base_url=service.url, timeout=60) as client:
            report = client.get("/v1/aci/attestation", headers={"Host": "api.example.com"})
            assert listed_keys(report) == [listed]
            assert report.json()["attestation"]["evidence"]["downstream_tls_binding"] == listed
            assert client.get("/v1/aci/attestation").status_code == 404  # this host is not the listed one
        assert service.terminate() == 0


def test_no_private_key_is_left_on_the_disk_or_in_the_output(home: Path) -> None:
    with running(home, config=ATTESTED) as service:
        certificate_seen(service.url)
        assert "PRIVATE KEY" not in service.output()
        files = [path for path in home.rglob("*") if path.is_file() and "models" not in path.parts]
        assert files
        assert not [path for path in files if b"PRIVATE KEY" in path.read_bytes()]
        assert service.terminate() == 0


def test_a_keyset_that_is_past_can_be_asked_for_after_a_restart(home: Path) -> None:
    """A kill loses nothing that a receipt needs: its keyset's report was stored before."""
    with running(home, config="[attester]\nkeyset_lifetime_s = 10\n") as service:
        answer = httpx2.post(f"{service.url}/v1/chat/completions", json=HELLO, timeout=60)
        digest = answer.headers["x-aci-keyset-digest"]
        assert httpx2.get(f"{service.url}/v1/aci/keysets/{digest}").status_code == 200
        service.kill()
    with running(home, config="[attester]\nkeyset_lifetime_s = 20\n") as again:  # its keysets are others
        receipt = httpx2.get(f"{again.url}/v1/aci/receipts/{answer.headers['x-receipt-id']}").json()
        assert receipt["workload_keyset_digest"] == digest != httpx2.get(again.url).json()["workload_keyset_digest"]
        kept = json.loads(httpx2.get(f"{again.url}/v1/aci/keysets/{digest}").content)
        keys = kept["attestation"]["workload_keyset"]["receipt_signing_keys"]
        assert receipt["key_id"] in [key["key_id"] for key in keys]
        assert again.terminate() == 0
