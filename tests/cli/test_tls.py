"""`confide tls csr`: a request for the key that the service attests to, and for no other."""

import asyncio
import ipaddress
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner, Result

from confide.attester.simulated import SimulatedAttester
from confide.attester.tsm import TsmAttester
from confide.attester.tsm_report import TsmReader
from confide.cli.tls import app, require_lasting
from confide.errors import ConfigError
from confide.simulator.configfs import SimulatedConfigfs
from confide.simulator.tdx import SimulatedTdxPlatform
from confide.store import lock_state

CONFIDE = Path(sys.executable).parent / "confide"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path))
    monkeypatch.setenv("CONFIDE_ATTESTER_KIND", "simulated")
    monkeypatch.delenv("CONFIDE_CONFIG", raising=False)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["csr", *arguments])


def requested(result: Result) -> x509.CertificateSigningRequest:
    assert result.exit_code == 0, result.exception
    return x509.load_pem_x509_csr(result.stdout.encode())


def names_in(request: x509.CertificateSigningRequest) -> list[object]:
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [name.value for name in names]


def test_the_request_is_for_the_attested_key_of_this_state_directory(home: Path) -> None:
    request = requested(run("--name", "api.example.com"))
    attester = SimulatedAttester(home, lambda: 1_790_000_000)
    assert request.is_signature_valid
    spki = x509.load_pem_x509_certificate(attester.workload_keys.tls.self_signed((), 1_790_000_000)).public_key()
    der, info = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    assert request.public_key().public_bytes(der, info) == spki.public_bytes(der, info)


def test_all_names_are_in_it_and_the_first_is_the_common_name(home: Path) -> None:
    names = ["API.example.com", "*.example.com", "localhost", "192.0.2.1", "2001:DB8::1"]
    request = requested(run(*(argument for name in names for argument in ("--name", name))))
    assert [name.value for name in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["api.example.com"]
    addresses = [ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1")]
    assert names_in(request) == ["api.example.com", "*.example.com", "localhost", *addresses]


def test_the_request_stands_alone_on_standard_output_and_holds_no_private_key(home: Path) -> None:
    result = run("--name", "a.example")
    assert result.stdout.startswith("-----BEGIN CERTIFICATE REQUEST-----\n")
    assert result.stdout.endswith("-----END CERTIFICATE REQUEST-----\n")
    assert "PRIVATE" not in result.output
    assert "tls_cert" in result.stderr


def test_it_can_be_asked_for_while_a_server_runs(home: Path) -> None:
    first = requested(run("--name", "a.example"))
    with lock_state(home):
        assert requested(run("--name", "a.example")).public_key() == first.public_key()


@pytest.mark.parametrize(
    "name", ["", "a b", "https://a.example", "a.example:443", "*", "a_b.example", "é.example", "-"]
)
def test_what_is_no_host_is_refused(home: Path, name: str) -> None:
    result = run(f"--name={name}")
    assert isinstance(result.exception, ConfigError)
    assert "not a host name or an address" in result.exception.message
    assert result.exception.remedy


def test_without_a_name_the_command_says_what_is_missing(home: Path) -> None:
    environ = {**os.environ, "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run([CONFIDE, "tls", "csr"], capture_output=True, text=True, env=environ)
    assert done.returncode == 2
    assert "--name" in done.stderr
    assert done.stdout == ""


def test_a_key_that_ends_with_its_process_is_no_key_for_a_certificate() -> None:
    files = SimulatedConfigfs.tdx(SimulatedTdxPlatform(bytes(32), now=1_800_000_000))
    attester = asyncio.run(TsmAttester.open(TsmReader(files)))
    with pytest.raises(ConfigError, match="each start of the service makes its TLS key anew") as caught:
        require_lasting(attester)
    assert "clients pin the key" in str(caught.value.remedy)


def test_a_machine_that_cannot_attest_gets_no_request(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIDE_ATTESTER_KIND", "tsm")
    result = run("--name", "a.example")
    assert isinstance(result.exception, ConfigError)
    assert "tsm/report" in result.exception.message
    assert result.stdout == ""
