"""The ACI report says which keyset a quote is for; what it says of itself is checked before the quote is (7.2, 7.3)."""

import json
from typing import Any

import pytest

from aci_documents import NONCE, keyset, removed, replaced, report
from confide.protocol.canonical import DocumentError
from confide.protocol.report import Report, SourceProvenance, aci_report, binds, parse_report
from confide.protocol.statement import aci_report_data

EVIDENCE = ("attestation", "evidence")
OTHER_NONCE = "ff" * 32


def read(document: object) -> Report:
    return parse_report(json.dumps(document).encode())


def refused(document: object) -> str:
    with pytest.raises(DocumentError) as caught:
        read(document)
    return str(caught.value)


@pytest.mark.parametrize("nonce", [NONCE, None])
def test_what_we_write_is_read_back_and_binds_its_nonce_alone(nonce: str | None) -> None:
    ours = read(report(nonce))
    assert binds(ours, nonce) is None
    for other in {NONCE, OTHER_NONCE, None} - {nonce}:
        assert "report_data is not the hash of the statement" in str(binds(ours, other))
    assert ours.keyset == keyset()
    assert ours.claimed_digest == ours.keyset_digest == keyset().digest()
    assert ours.report_data == aci_report_data(keyset().digest(), nonce)[:32].hex()
    assert (ours.tee_type, ours.quote, ours.serving) == ("tdx", b"\x04\xab", "direct")
    assert ours.evidence.simulated
    assert ours.provenance == SourceProvenance(repo_url="https://git.example.com/a", repo_commit="ab" * 20)


def test_the_report_has_the_members_of_the_contract_and_no_other() -> None:
    document = report(e2ee_versions=("2",), serving="aggregator")
    assert set(document) == {"api_version", "workload_keyset_digest", "attestation", "service_capabilities"}
    attestation = document["attestation"]
    expected = {"tee_type", "workload_keyset", "report_data", "source_provenance", "evidence"}
    assert set(attestation) == expected
    assert set(attestation["source_provenance"]) == {"repo_url", "repo_commit", "image_digest", "image_provenance"}
    assert document["service_capabilities"] == {"supported_e2ee_versions": ["2"], "serving": "aggregator"}


def test_a_report_for_a_nonce_of_another_form_cannot_be_built() -> None:
    for nonce in ("", "AB" * 32, "ab" * 16, '","nonce":"'):
        with pytest.raises(ValueError, match="nonce"):
            aci_report(keyset=keyset(), nonce=nonce, tee_type="tdx", provenance=SourceProvenance(), evidence={})
        with pytest.raises(ValueError, match="nonce"):
            binds(read(report()), nonce)


@pytest.mark.parametrize(
    ("capabilities", "serving"),
    [
        ({"serving": "direct", "future": [1]}, "direct"),
        ({"serving": "aggregator"}, "aggregator"),
        ({"serving": "Direct"}, "aggregator"),
        ({"serving": "both"}, "aggregator"),
        ({}, "aggregator"),
        (..., "aggregator"),
    ],
)
def test_only_a_service_that_says_so_serves_itself(capabilities: object, serving: str) -> None:
    way = ("service_capabilities",)
    document = removed(report(), way) if capabilities is ... else replaced(report(), way, capabilities)
    assert read(document).serving == serving


def test_members_that_we_do_not_know_are_passed_over() -> None:
    document = replaced(report(), ("freshness",), {"fetched_at": 1.5})
    document = replaced(document, (*EVIDENCE, "mr_config"), [None])
    document = replaced(document, ("attestation", "source_provenance", "image_provenance"), {"statement": []})
    ours = read(document)
    assert binds(ours, NONCE) is None
    assert ours.provenance is not None
    assert ours.provenance.image_provenance == {"statement": []}


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("api_version",), "aci/2"),
        (("api_version",), None),
        (("workload_keyset_digest",), "sha256:" + "AB" * 32),
        (("workload_keyset_digest",), "ab" * 32),
        (("workload_keyset_digest",), "é"),
        (("attestation",), []),
        (("attestation", "tee_type"), 1),
        (("attestation", "report_data"), "AB" * 32),
        (("attestation", "report_data"), "ab" * 64),
        (("attestation", "report_data"), "é" * 64),
        (("attestation", "report_data"), None),
        (("attestation", "workload_keyset"), {}),
        (("attestation", "workload_keyset"), "{}"),
        (("attestation", "workload_keyset", "extra"), 0.5),
        ((*EVIDENCE, "quote"), None),
        ((*EVIDENCE, "quote"), "04 ab"),
        ((*EVIDENCE, "quote"), "04ab\n"),
        ((*EVIDENCE, "quote"), "0x04ab"),
        ((*EVIDENCE, "quote"), "04a"),
        ((*EVIDENCE, "quote"), "٠٤"),
        ((*EVIDENCE, "quote"), "BAA="),
        ((*EVIDENCE, "quote_report_data"), "ab" * 32),
        ((*EVIDENCE, "quote_report_data"), "ab" * 63 + "a "),
        ((*EVIDENCE, "event_log"), []),
        ((*EVIDENCE, "simulated"), 1),
        ((*EVIDENCE, "simulated"), "false"),
        ((*EVIDENCE, "collateral"), {"tcb_info": 1}),
        (("service_capabilities",), None),
        (("service_capabilities", "serving"), ["direct"]),
    ],
)
def test_a_member_of_another_form_is_refused(way: tuple[Any, ...], value: object) -> None:
    assert refused(replaced(report(), way, value))


@pytest.mark.parametrize(
    "way",
    [
        ("api_version",),
        ("workload_keyset_digest",),
        ("attestation",),
        ("attestation", "tee_type"),
        ("attestation", "workload_keyset"),
        ("attestation", "report_data"),
        EVIDENCE,
        (*EVIDENCE, "quote"),
    ],
)
def test_a_member_that_is_not_there_is_refused(way: tuple[Any, ...]) -> None:
    assert str(way[-1]) in refused(removed(report(), way))


def test_a_report_that_names_another_digest_does_not_bind() -> None:
    document = replaced(report(), ("workload_keyset_digest",), "sha256:" + "00" * 32)
    fault = binds(read(document), NONCE)
    assert fault is not None
    assert fault.startswith(f"got workload_keyset_digest sha256:{'00' * 32}, expected {keyset().digest()}: ")


def test_a_report_over_another_keyset_does_not_bind() -> None:
    document = replaced(report(), ("attestation", "workload_keyset", "not_after"), 1_900_000_000)
    assert "names another digest" in str(binds(read(document), NONCE))
    moved = replaced(document, ("workload_keyset_digest",), keyset(not_after=1_900_000_000).digest())
    assert "report_data is not" in str(binds(read(moved), NONCE))


def test_quote_report_data_is_the_hash_and_32_zero_bytes() -> None:
    way = (*EVIDENCE, "quote_report_data")
    slot = aci_report_data(keyset().digest(), NONCE).hex()
    assert binds(read(replaced(report(), way, slot)), NONCE) is None
    assert binds(read(removed(report(), way)), NONCE) is None
    for other in ("00" * 64, slot[:-1] + "1", aci_report_data(keyset().digest(), None).hex()):
        assert "quote_report_data is not" in str(binds(read(replaced(report(), way, other)), NONCE))


def test_what_the_development_build_leaves_out_is_not_acceptable_provenance() -> None:
    assert read(removed(report(), ("attestation", "source_provenance"))).provenance is None


@pytest.mark.parametrize(
    ("members", "acceptable"),
    [
        ({"repo_url": "https://a", "repo_commit": "ab" * 20}, True),
        ({"repo_url": "https://a", "repo_commit": "ab" * 32}, True),
        ({"image_digest": "sha256:" + "ab" * 32}, True),
        ({"repo_url": "https://a", "repo_commit": "main", "image_digest": "sha256:" + "ab" * 32}, True),
        ({}, False),
        ({"repo_url": "https://a"}, False),
        ({"repo_commit": "ab" * 20}, False),
        ({"repo_url": "", "repo_commit": "ab" * 20}, False),
        ({"repo_url": "https://a", "repo_commit": "abcdef0"}, False),
        ({"repo_url": "https://a", "repo_commit": "AB" * 20}, False),
        ({"repo_url": "https://a", "repo_commit": "ab" * 20 + "\n"}, False),
        ({"image_digest": "ab" * 32}, False),
        ({"image_digest": "latest"}, False),
        ({"image_provenance": "https://a"}, False),
    ],
)
def test_provenance_names_a_full_commit_or_an_image(members: dict[str, str], *, acceptable: bool) -> None:
    assert SourceProvenance(**members).is_acceptable is acceptable


def test_an_snp_report_stands_in_place_of_a_quote() -> None:
    evidence = ("attestation", "evidence")
    without = removed(report(), (*evidence, "quote"))
    assert read(replaced(without, (*evidence, "snp_report"), "00ff")).quote == b"\x00\xff"
    with pytest.raises(DocumentError, match="snp_report is not hex"):
        read(replaced(without, (*evidence, "snp_report"), "xy"))
    with pytest.raises(DocumentError, match="neither a quote nor an snp_report"):
        read(without)
