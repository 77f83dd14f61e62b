"""The simulated TDX platform seen from outside: what it hands out, read with other tools than its own."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from hashlib import sha256, sha384

import dcap_qvl
import pytest
from cryptography import x509

from confide.errors import ConfigError
from confide.simulator.tdx import SimulatedTdxPlatform

NOW = 1_800_000_000
SEED = bytes(range(32))
REPORT_DATA = bytes(range(64))
RUNTIME_EVENT = 0x08000001


@pytest.fixture(scope="module")
def platform() -> SimulatedTdxPlatform:
    return SimulatedTdxPlatform(SEED, now=NOW)


def test_another_process_gets_the_same_root_from_the_same_seed(platform: SimulatedTdxPlatform) -> None:
    program = (
        "from confide.simulator.tdx import SimulatedTdxPlatform as P;"
        f"p = P(bytes(range(32)), now={NOW + 1_000_000}); print(p.root_der.hex(), p.quote(bytes(range(64))).hex())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [platform.root_der.hex(), platform.quote(REPORT_DATA).hex()]


def test_the_root_never_changes_because_people_pin_it(platform: SimulatedTdxPlatform) -> None:
    assert platform.root_sha256_hex == "ac724f6827dd00fad95cd0eeb002eee703186f7d9f50cf60b987d75f108fa75b"
    assert sha256(platform.root_der).hexdigest() == platform.root_sha256_hex
    root = x509.load_pem_x509_certificate(platform.root_pem.encode())
    assert root == x509.load_der_x509_certificate(platform.root_der)
    assert (root.not_valid_before_utc, root.not_valid_after_utc) == (
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2045, 12, 27, tzinfo=UTC),
    )


def test_knobs_do_not_change_the_root(platform: SimulatedTdxPlatform) -> None:
    other = SimulatedTdxPlatform(SEED, now=NOW, debug=True, tcb_status="OutOfDate", revoked=True)
    assert other.root_der == platform.root_der


def test_another_seed_gives_another_root(platform: SimulatedTdxPlatform) -> None:
    assert SimulatedTdxPlatform(bytes(32), now=NOW).root_der != platform.root_der


def test_every_certificate_says_that_it_is_simulated(platform: SimulatedTdxPlatform) -> None:
    collateral = platform.collateral(NOW)
    pem = dcap_qvl.parse_quote(platform.quote(REPORT_DATA)).cert_chain_pem_bytes()
    assert pem is not None
    texts = [pem.rstrip(b"\0").decode(), platform.root_pem, str(platform.info["app_cert"])]
    texts += [text for member, text in collateral.items() if member.endswith("_chain")]
    certificates = [certificate for text in texts for certificate in x509.load_pem_x509_certificates(text.encode())]
    assert len(certificates) == 3 + 1 + 1 + 3 * 2
    for certificate in certificates:
        assert "O=Simulated TEE (not Intel)" in certificate.subject.rfc4514_string()
        assert "O=Simulated TEE (not Intel)" in certificate.issuer.rfc4514_string()


def test_the_pck_certificate_carries_the_simulated_fmspc(platform: SimulatedTdxPlatform) -> None:
    quote = dcap_qvl.parse_quote(platform.quote(REPORT_DATA))
    extension = quote.pck_extension()
    assert extension is not None
    assert (quote.fmspc(), quote.ca(), quote.quote_type()) == ("51D000000000", "platform", "TDX")
    assert extension.fmspc == bytes.fromhex("51d000000000")
    assert (extension.pce_svn, extension.sgx_type, len(extension.ppid)) == (11, 1, 16)


def test_a_quote_holds_the_report_data_and_the_measurements_of_info(platform: SimulatedTdxPlatform) -> None:
    report = dcap_qvl.parse_quote(platform.quote(REPORT_DATA)).report
    assert isinstance(report, dcap_qvl.TdReport10)
    tcb_info = json.loads(str(platform.info["tcb_info"]))
    assert report.report_data == REPORT_DATA
    assert report.mr_td.hex() == tcb_info["mrtd"]
    registers = [report.rt_mr0, report.rt_mr1, report.rt_mr2, report.rt_mr3]
    assert [register.hex() for register in registers] == [tcb_info[f"rtmr{index}"] for index in range(4)]
    assert len({report.mr_td, *registers}) == 5


def test_other_report_data_is_signed_by_another_attestation_key(platform: SimulatedTdxPlatform) -> None:
    attestation_key = slice(636 + 64, 636 + 128)
    assert platform.quote(REPORT_DATA)[attestation_key] != platform.quote(bytes(64))[attestation_key]


def test_the_event_log_replays_to_the_registers(platform: SimulatedTdxPlatform) -> None:
    registers = [bytes(48)] * 4
    for entry in json.loads(platform.event_log):
        digest = bytes.fromhex(entry["digest"])
        if entry["event_type"] == RUNTIME_EVENT:
            payload = bytes.fromhex(entry["event_payload"])
            name = entry["event"].encode()
            assert digest == sha384(RUNTIME_EVENT.to_bytes(4, "little") + b":" + name + b":" + payload).digest()
        registers[entry["imr"]] = sha384(registers[entry["imr"]] + digest).digest()
    report = dcap_qvl.parse_quote(platform.quote(REPORT_DATA)).report
    assert isinstance(report, dcap_qvl.TdReport10)
    assert registers == [report.rt_mr0, report.rt_mr1, report.rt_mr2, report.rt_mr3]


def test_the_event_log_tells_a_boot_in_dstack_order(platform: SimulatedTdxPlatform) -> None:
    log = json.loads(platform.event_log)
    assert [entry["imr"] for entry in log if entry["event_type"] != RUNTIME_EVENT] == [0, 1, 2]
    runtime = {entry["event"]: entry for entry in log if entry["event_type"] == RUNTIME_EVENT}
    assert list(runtime) == [
        "system-preparing",
        "app-id",
        "compose-hash",
        "instance-id",
        "boot-mr-done",
        "key-provider",
        "system-ready",
    ]
    # The same digest as in the logs of real dstack machines: the name and an empty payload are all there is to it.
    assert runtime["system-preparing"]["digest"].startswith("f9974020ef507068183313d0ca808e0d1ca9b2d1ad0c61f5")
    info = platform.info
    assert runtime["app-id"]["event_payload"] == info["app_id"]
    assert runtime["compose-hash"]["event_payload"] == info["compose_hash"]
    assert runtime["instance-id"]["event_payload"] == info["instance_id"]
    assert bytes.fromhex(runtime["key-provider"]["event_payload"]).decode() == info["key_provider_info"]


def test_info_has_every_member_of_dstack(platform: SimulatedTdxPlatform) -> None:
    assert set(platform.info) == {
        "app_id",
        "instance_id",
        "app_name",
        "device_id",
        "app_cert",
        "mr_aggregated",
        "os_image_hash",
        "key_provider_info",
        "compose_hash",
        "vm_config",
        "tcb_info",
    }
    tcb_info = json.loads(str(platform.info["tcb_info"]))
    assert tcb_info["event_log"] == json.loads(platform.event_log)
    assert tcb_info["app_compose"] == platform.app_compose
    assert platform.info["vm_config"] == platform.vm_config


def test_the_compose_document_is_measured_and_says_that_it_is_simulated(platform: SimulatedTdxPlatform) -> None:
    compose_hash = sha256(platform.app_compose.encode()).digest()
    report = dcap_qvl.parse_quote(platform.quote(REPORT_DATA)).report
    assert isinstance(report, dcap_qvl.TdReport10)
    assert report.mr_config_id == b"\x01" + compose_hash + bytes(15)
    assert platform.info["compose_hash"] == compose_hash.hex()
    assert platform.info["app_id"] == compose_hash[:20].hex()
    document = json.loads(platform.app_compose)
    assert document["simulated"] is True
    assert "SIMULATED" in document["docker_compose_file"]
    assert json.loads(platform.vm_config)["simulated"] is True


def test_the_aggregate_covers_all_measurements(platform: SimulatedTdxPlatform) -> None:
    report = dcap_qvl.parse_quote(platform.quote(REPORT_DATA)).report
    assert isinstance(report, dcap_qvl.TdReport10)
    registers = report.rt_mr0 + report.rt_mr1 + report.rt_mr2 + report.rt_mr3
    owner = report.mr_config_id + report.mr_owner + report.mr_owner_config
    assert platform.info["mr_aggregated"] == sha256(report.mr_td + registers + owner).hexdigest()


def test_collateral_is_good_from_now_for_thirty_days(platform: SimulatedTdxPlatform) -> None:
    collateral = platform.collateral(NOW)
    issued = datetime.fromtimestamp(NOW, UTC)
    for member in ("tcb_info", "qe_identity"):
        document = json.loads(collateral[member])
        assert datetime.fromisoformat(document["issueDate"]) == issued
        assert datetime.fromisoformat(document["nextUpdate"]) == issued + timedelta(days=30)
    for member in ("root_ca_crl", "pck_crl"):
        crl = x509.load_der_x509_crl(bytes.fromhex(collateral[member]))
        assert (crl.last_update_utc, crl.next_update_utc) == (issued, issued + timedelta(days=30))
        assert len(crl) == 0


def test_a_revoked_platform_is_on_the_list_of_its_issuer() -> None:
    platform = SimulatedTdxPlatform(SEED, now=NOW, revoked=True)
    pem = dcap_qvl.parse_quote(platform.quote(REPORT_DATA)).cert_chain_pem_bytes()
    assert pem is not None
    pck, pck_ca, _ = x509.load_pem_x509_certificates(pem.rstrip(b"\0"))
    crl = x509.load_der_x509_crl(bytes.fromhex(platform.collateral(NOW)["pck_crl"]))
    assert crl.issuer == pck_ca.subject
    assert crl.get_revoked_certificate_by_serial_number(pck.serial_number) is not None


@pytest.mark.parametrize("length", [0, 32, 63, 65])
def test_report_data_of_another_length_is_refused(platform: SimulatedTdxPlatform, length: int) -> None:
    with pytest.raises(ValueError, match=f"64 bytes of report data expected, got {length}"):
        platform.quote(bytes(length))


def test_a_short_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="31 bytes, expected 32"):
        SimulatedTdxPlatform(bytes(31), now=NOW)


def test_an_unknown_tcb_status_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'uptodate', expected one of UpToDate, "):
        SimulatedTdxPlatform(SEED, now=NOW, tcb_status="uptodate")


@pytest.mark.parametrize("now", [0, 1_767_225_599, 2_397_945_600, 10**12])
def test_a_clock_outside_the_roots_life_is_refused_with_a_remedy(platform: SimulatedTdxPlatform, now: int) -> None:
    with pytest.raises(ConfigError, match="valid from 2026-01-01 to 2045-12-27") as refused:
        SimulatedTdxPlatform(SEED, now=now)
    assert refused.value.remedy
    with pytest.raises(ConfigError):
        platform.collateral(now)
