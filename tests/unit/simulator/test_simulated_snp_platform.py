"""The simulated SNP platform seen from outside: what it hands out, read with other tools than its own."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from confide.errors import ConfigError
from confide.simulator.snp import SimulatedSnpPlatform, host_data
from confide.simulator.snp_certificates import is_prime, rsa_key

NOW = 1_800_000_000
SEED = bytes(range(32))
REPORT_DATA = bytes(range(64))


@pytest.fixture(scope="module")
def platform() -> SimulatedSnpPlatform:
    return SimulatedSnpPlatform(SEED, now=NOW)


def certificates(platform: SimulatedSnpPlatform) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates((platform.vcek_pem + platform.chain_pem).encode())


def test_another_process_gets_the_same_bytes_from_the_same_seed(platform: SimulatedSnpPlatform) -> None:
    program = (
        "from confide.simulator.snp import SimulatedSnpPlatform as P;"
        f"p = P(bytes(range(32)), now={NOW + 1_000_000});"
        "print(p.root_der.hex(), p.vcek_der.hex(), p.report(bytes(range(64))).hex(), p.crl(1800000000).hex())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    ours = [platform.root_der, platform.vcek_der, platform.report(REPORT_DATA), platform.crl(NOW)]
    assert done.stdout.split() == [each.hex() for each in ours]


def test_the_root_never_changes_because_people_pin_it(platform: SimulatedSnpPlatform) -> None:
    assert platform.root_sha256_hex == "96923ea753cf8fee24a59e9a7e598250961f6aa3784beb558e388619021f54cd"
    assert sha256(platform.root_der).hexdigest() == platform.root_sha256_hex
    root = x509.load_pem_x509_certificate(platform.root_pem.encode())
    assert root == x509.load_der_x509_certificate(platform.root_der)
    assert (root.not_valid_before_utc, root.not_valid_after_utc) == (
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2045, 12, 27, tzinfo=UTC),
    )


def test_knobs_do_not_change_the_root_and_another_seed_or_product_does(platform: SimulatedSnpPlatform) -> None:
    turned = SimulatedSnpPlatform(
        SEED, now=NOW, version=5, vmpl=3, debug=True, vlek=True, expired=True, revoked=True, tcb_behind=True
    )
    assert turned.root_der == platform.root_der
    assert SimulatedSnpPlatform(bytes(32), now=NOW).root_der != platform.root_der
    assert SimulatedSnpPlatform(SEED, now=NOW, product="turin").root_der != platform.root_der


@pytest.mark.parametrize("vlek", [False, True])
def test_every_certificate_says_that_it_is_simulated(vlek: bool) -> None:
    for certificate in certificates(SimulatedSnpPlatform(SEED, now=NOW, vlek=vlek)):
        for name in (certificate.subject, certificate.issuer):
            assert "O=Simulated TEE (not AMD)" in name.rfc4514_string()
            assert "CN=Simulated " in name.rfc4514_string()


def test_the_keys_have_4096_bits_and_are_not_made_twice(platform: SimulatedSnpPlatform) -> None:
    for certificate in certificates(platform)[1:]:
        key = certificate.public_key()
        assert isinstance(key, RSAPublicKey)
        assert (key.key_size, key.public_numbers().e) == (4096, 65537)
    assert rsa_key(SEED, "Simulated ARK-Milan") is rsa_key(SEED, "Simulated ARK-Milan")


def test_primes_are_told_from_what_looks_like_them() -> None:
    assert is_prime(2**521 - 1)
    assert not is_prime((2**127 - 1) * (2**521 - 1))
    assert not is_prime(2003 * 2011)
    assert not is_prime(3215031751)  # passes for the witnesses 2, 3, 5 and 7


def test_the_revocation_list_is_good_from_now_for_thirty_days(platform: SimulatedSnpPlatform) -> None:
    issued = datetime.fromtimestamp(NOW, UTC)
    crl = x509.load_der_x509_crl(platform.crl(NOW))
    assert (crl.last_update_utc, crl.next_update_utc, len(crl)) == (issued, issued + timedelta(days=30), 0)
    revoking = SimulatedSnpPlatform(SEED, now=NOW, revoked=True)
    ask = certificates(revoking)[1]
    listed = x509.load_der_x509_crl(revoking.crl(NOW)).get_revoked_certificate_by_serial_number(ask.serial_number)
    assert listed is not None


def test_a_report_holds_what_was_asked_for_where_the_layout_says(platform: SimulatedSnpPlatform) -> None:
    report = platform.report(REPORT_DATA, host_data(b"{}"))
    assert len(report) == 1184
    assert report[0x050:0x090] == REPORT_DATA
    assert report[0x0C0:0x0E0] == sha256(b"dstack-mr-config-v3:\x00{}").digest()
    assert report[0x000:0x004] == b"\x03\x00\x00\x00"
    assert report[0x188:0x18B] == bytes((0x19, 1, 1))


def test_reports_differ_only_where_they_were_asked_to(platform: SimulatedSnpPlatform) -> None:
    first, second = platform.report(REPORT_DATA), platform.report(bytes(64))
    assert first[:0x050] == second[:0x050]
    assert first[0x090:0x2A0] == second[0x090:0x2A0]
    assert first == platform.report(REPORT_DATA)


@pytest.mark.parametrize(("report_data", "host"), [(b"", bytes(32)), (bytes(63), bytes(32)), (bytes(64), bytes(31))])
def test_data_of_another_length_is_refused(platform: SimulatedSnpPlatform, report_data: bytes, host: bytes) -> None:
    with pytest.raises(ValueError, match=r"(64 bytes of report|32 bytes of host) data expected, got \d+"):
        platform.report(report_data, host)


@pytest.mark.parametrize(
    ("seed", "knobs", "message"),
    [
        (bytes(31), {}, "31 bytes, expected 32"),
        (SEED, {"version": 1}, "report version 1, expected one of 2, 3, 4, 5"),
        (SEED, {"product": "Milan"}, "unknown product 'Milan', expected one of milan, genoa, turin"),
    ],
)
def test_what_cannot_be_simulated_is_refused(seed: bytes, knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulatedSnpPlatform(seed, now=NOW, **knobs)  # type: ignore[arg-type]  # one mistake at a time


@pytest.mark.parametrize("now", [0, 1_767_225_599, 2_397_945_600, 10**12])
def test_a_clock_outside_the_roots_life_is_refused_with_a_remedy(platform: SimulatedSnpPlatform, now: int) -> None:
    with pytest.raises(ConfigError, match="valid from 2026-01-01 to 2045-12-27") as refused:
        SimulatedSnpPlatform(SEED, now=now)
    assert refused.value.remedy
    with pytest.raises(ConfigError):
        platform.crl(now)
