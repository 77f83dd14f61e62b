"""Answers of a provisioning service, taken apart: the exact signed text, chains from headers, two forms of CRL."""

import json
from urllib.parse import quote as url_encoded

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.collateral.cache import MemoryCache
from confide.collateral.fetch import Answer, Fetcher
from confide.collateral.pcs import TCB_CHAIN, Pcs, TdxCollateralSource, chain, der_hex, signed_text
from confide.collateral.supply import Malformed
from confide.evidence.policy import Anchors, TdxPolicy
from confide.evidence.quote import parse_quote
from confide.evidence.result import Verdict
from confide.evidence.tdx import verify_tdx
from shared_data import TEE

TDX = TEE / "tdx"
stored = pytest.mark.skipif(not TDX.is_dir(), reason="the stored TEE samples are not beside this repository")

SIGNATURE = "ab" * 64
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@stored
@pytest.mark.parametrize(
    ("file", "member", "begins"),
    [
        ("go-tdx-guest_sample_tcbinfo_response_v5", "tcbInfo", '{"id":"TDX","version":3,"issueDate":"2026-02-01T'),
        ("go-tdx-guest_sample_qeIdentity_response", "enclaveIdentity", '{"id":"TD_QE","version":2,"issueDate":"2023-'),
    ],
)
def test_the_bodies_that_intel_sends_give_the_text_that_intel_signed(file: str, member: str, begins: str) -> None:
    body = (TDX / file).read_bytes()
    text, signature = signed_text(body, member)
    assert text.startswith(begins)
    assert body == f'{{"{member}":{text},"signature":"{signature}"}}'.encode()


@stored
def test_stored_collateral_served_as_intel_does_verifies_a_real_quote() -> None:
    members = json.loads((TDX / "dcap-qvl_tdx_quote_collateral.json").read_text())
    quote, now = parse_quote((TDX / "dcap-qvl_tdx_quote").read_bytes()), 1751624191
    tcb = f'{{"tcbInfo":{members["tcb_info"]},"signature":"{members["tcb_info_signature"]}"}}'
    identity = f'{{"enclaveIdentity":{members["qe_identity"]},"signature":"{members["qe_identity_signature"]}"}}'
    tcb_chain = url_encoded(members["tcb_info_issuer_chain"])
    answers = {
        "/sgx/certification/v4/pckcrl": (
            bytes.fromhex(members["pck_crl"]),
            {"SGX-PCK-CRL-Issuer-Chain": url_encoded(members["pck_crl_issuer_chain"])},
        ),
        "/tdx/certification/v4/tcb": (tcb.encode(), {"SGX-TCB-Info-Issuer-Chain": tcb_chain}),
        "/tdx/certification/v4/qe/identity": (identity.encode(), {"SGX-Enclave-Identity-Issuer-Chain": tcb_chain}),
        "/IntelSGXRootCA.der": (bytes.fromhex(members["root_ca_crl"]), {}),
    }
    seen: list[httpx2.URL] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.url)
        body, headers = answers[request.url.path]
        return httpx2.Response(200, content=body, headers=headers)

    with httpx2.Client(transport=httpx2.MockTransport(answer)) as http:
        source = TdxCollateralSource(Fetcher(http), MemoryCache(), pcs=Pcs.at())
        collateral = source.collateral(quote, now=now)
    assert collateral.members.items() <= members.items()
    assert {url.host for url in seen} == {"api.trustedservices.intel.com", "certificates.trustedservices.intel.com"}
    assert seen[1].params["fmspc"] == "B0C06F000000"
    result = verify_tdx(
        quote.trimmed, collateral=collateral.text, anchors=Anchors.of("intel"), policy=TdxPolicy(), now=now
    )
    assert result.verdict is Verdict.VERIFIED
    assert result.facts["tdx.collateral_expires_at"] == collateral.validity()[1]


INNER = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)
SPACE = st.text(alphabet=" \t\r\n", max_size=2)


@given(
    inner=st.dictionaries(st.text(max_size=8), INNER, max_size=4),
    before=st.dictionaries(
        st.text(max_size=8).filter(lambda name: name not in ("tcbInfo", "signature")), INNER, max_size=2
    ),
    space=st.lists(SPACE, min_size=6, max_size=6),
    indent=st.sampled_from((None, 1)),
)
def test_the_inner_text_is_cut_out_whatever_stands_around_it(
    inner: dict[str, object], before: dict[str, object], space: list[str], indent: int | None
) -> None:
    text = json.dumps(inner, indent=indent, ensure_ascii=False)
    others = "".join(f"{json.dumps(name)}:{json.dumps(value)}," for name, value in before.items())
    a, b, c, d, e, f = space
    body = f'{a}{{{b}{others}"tcbInfo"{c}:{d}{text}{e},"signature":"{SIGNATURE}"{f}}}'
    try:
        raw = body.encode()
    except UnicodeEncodeError:  # a lone surrogate is no text that can be sent
        return
    assert signed_text(raw, "tcbInfo") == (text, SIGNATURE)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not JSON"),
        (b'{"signature":"00"}', "not JSON"),
        (b'{"tcbInfo":[],"signature":"00"}', "no object tcbInfo"),
        (b'{"a":{"tcbInfo":{}},"signature":"00"}', "not JSON"),
        (b'{"tcbInfo":{},"tcbInfo":{"a":1},"signature":"00"}', "no object tcbInfo"),
        (b'{"tcbInfo":{}}', "signature over tcbInfo"),
        (b'{"tcbInfo":{},"signature":"00"}', "signature over tcbInfo"),
        (b'{"tcbInfo":{},"signature":5}', "signature over tcbInfo"),
    ],
    ids=range(11),
)
def test_another_body_is_refused_in_words(body: bytes, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        signed_text(body, "tcbInfo")


@given(st.binary(max_size=200))
def test_random_bodies_are_refused_and_nothing_else_happens(body: bytes) -> None:
    with pytest.raises(Malformed):
        signed_text(body, "tcbInfo")
    try:
        assert bytes.fromhex(der_hex(body))
    except Malformed:
        assert body[:1] != b"\x30"


@pytest.mark.parametrize(
    "body", [b"\x30\x03\x02\x01\x01", b"3003020101", b"3003020101\n", b'"3003020101"', b"300302010" + b"1"]
)
def test_a_crl_comes_as_der_or_as_hex(body: bytes) -> None:
    assert der_hex(body) == "3003020101"


@pytest.mark.parametrize("body", [b"", b"300", b"<html>", b"zz"])
def test_a_crl_in_another_form_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed, match="neither DER nor hex"):
        der_hex(body)


def answer(**headers: str) -> Answer:
    return Answer("https://x", httpx2.Headers({name.replace("_", "-"): value for name, value in headers.items()}), b"")


def test_a_chain_is_url_encoded_in_either_header() -> None:
    assert chain(answer(tcb_info_issuer_chain=url_encoded(PEM)), TCB_CHAIN) == PEM
    assert chain(answer(sgx_tcb_info_issuer_chain=url_encoded(PEM)), TCB_CHAIN) == PEM


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "there is no header TCB-Info-Issuer-Chain"),
        ({"tcb_info_issuer_chain": "nothing"}, "holds no certificate"),
        ({"tcb_info_issuer_chain": "A" * 40_000}, "40000 characters"),
    ],
)
def test_a_chain_that_is_none_is_refused(headers: dict[str, str], message: str) -> None:
    with pytest.raises(Malformed, match=message):
        chain(answer(**headers), TCB_CHAIN)
