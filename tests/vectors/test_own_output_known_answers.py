"""An attester reads its report data back from the right place: on real quotes and reports, as the parsers see them."""

import pytest

from confide.attester.own_output import snp_report_data, tdx_report_data
from confide.evidence.quote import QuoteError, parse_quote
from confide.evidence.snp_report import parse_snp_report
from shared_data import TEE

QUOTES = ("dcap-qvl_tdx_quote", "near-gas-test_quote.hex", "go-tdx-guest_quote_v5_sample.dat")


def stored(name: str) -> bytes:
    path = TEE / name
    if not path.exists():
        pytest.skip(f"{name} is not beside this checkout")
    raw = path.read_bytes()
    return bytes.fromhex(raw.decode()) if name.endswith(".hex") else raw


@pytest.mark.parametrize("name", QUOTES)
def test_a_real_quote_holds_its_report_data_where_it_is_looked_for(name: str) -> None:
    quote = stored(f"tdx/{name}")
    assert tdx_report_data(quote) == parse_quote(quote).report_data
    assert snp_report_data(quote) is None


def test_a_real_snp_report_holds_its_report_data_where_it_is_looked_for() -> None:
    report = stored("snp/go-sev-guest_attestation.bin")[:1184]
    assert snp_report_data(report) == parse_snp_report(report).report_data
    assert tdx_report_data(report) is None


def test_a_quote_of_an_enclave_is_none_of_a_guest() -> None:
    quote = stored("sgx/dcap-qvl_sgx_quote")
    assert tdx_report_data(quote) is None
    with pytest.raises(QuoteError):
        parse_quote(quote)
