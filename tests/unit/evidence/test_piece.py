"""One piece of evidence is recognised in whatever form it was kept, and verified as what it is."""

import base64
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from confide.evidence.piece import (
    MAX_PIECE_BYTES,
    Piece,
    PieceError,
    certificates_of,
    claimed_nonce,
    describe,
    list_of,
    named,
    recognise,
    root_der,
    verify_piece,
)
from confide.evidence.policy import Anchors, GpuPolicy, SnpPolicy, TdxPolicy
from confide.evidence.result import Status, Verdict, Verification
from confide.evidence.snp_chain import split_certificates
from confide.simulator.gpu import gpu_payload
from confide.simulator.tdx import SimulatedTdxPlatform
from gpu_builders import NONCE, gpus, pinned
from snp_builders import NOW, platform

DATA = bytes(range(64))


@pytest.fixture(scope="module")
def tdx() -> SimulatedTdxPlatform:
    return SimulatedTdxPlatform(b"\x07" * 32, now=NOW)


def verified(piece: Piece, anchors: Anchors, *, collateral: bytes | None = None, **given: bytes) -> Verification:
    return verify_piece(
        piece,
        collateral=collateral,
        anchors=anchors,
        now=NOW,
        tdx=TdxPolicy(),
        snp=SnpPolicy(),
        gpu=GpuPolicy(),
        **given,
    )


def test_a_quote_is_recognised_raw_in_hex_and_in_documents(tdx: SimulatedTdxPlatform) -> None:
    quote = tdx.quote(DATA)
    collateral = tdx.collateral(NOW)
    forms = [
        quote,
        quote.hex().encode(),
        b" 0x" + quote.hex().upper().encode() + b"\n",
        json.dumps({"quote": quote.hex(), "event_log": "[]", "report_data": DATA.hex()}).encode(),
        json.dumps({"intel_quote": quote.hex(), "collateral": collateral}).encode(),
        json.dumps({"attestation": {"evidence": {"quote": quote.hex(), "collateral": collateral}}}).encode(),
    ]
    for form in forms:
        piece = recognise(form)
        assert (piece.kind, piece.raw) == ("tdx", quote)
    anchors = Anchors.default().pinning(tdx.root_der)
    text = json.dumps(collateral).encode()
    assert verified(recognise(quote), anchors, collateral=text, report_data=DATA).ok
    assert verified(recognise(forms[-1]), anchors).ok
    assert not verified(recognise(quote), anchors).ok
    assert not verified(recognise(quote), anchors, collateral=text, report_data=bytes(64)).ok
    with pytest.raises(PieceError, match="UTF-8"):
        verified(recognise(quote), anchors, collateral=b"\xff")


def test_a_report_is_recognised_with_and_without_its_certificates() -> None:
    machine = platform()
    report = machine.report(DATA)
    pem = machine.vcek_pem.encode() + machine.chain_pem.encode()
    anchors = Anchors.default().pinning(machine.root_der)
    assert recognise(report).kind == recognise(report.hex().encode()).kind == "snp"
    assert verified(recognise(report), anchors, collateral=pem, report_data=DATA).ok
    members = {"snp_report": report.hex(), "vcek": machine.vcek_pem, "cert_chain": machine.chain_pem}
    inside = recognise(json.dumps({"attestation": {"evidence": members}}).encode())
    assert verified(inside, anchors).ok
    envelope = recognise(machine.dstack_envelope(DATA, b'{"version":3}'))
    assert (envelope.kind, envelope.host_document) == ("snp", '{"version":3}')
    assert verified(envelope, anchors, collateral=pem).has_passed({"dstack.host-data"})
    result = verified(recognise(report), anchors)
    assert {check.name: check.status for check in result.checks}["snp.chain"] is Status.SKIP
    assert describe(recognise(report))["report_data"] == DATA.hex()


@pytest.mark.parametrize("serial_zero", [True, False])
def test_certificates_in_an_envelope_may_be_der(serial_zero: bool) -> None:
    machine = platform(serial_zero=serial_zero)
    certificates = (machine.vcek_der, *split_certificates(machine.chain_der))
    envelope = recognise(machine.dstack_envelope(DATA, b'{"version":3}', certificates))
    assert verified(envelope, Anchors.default().pinning(machine.root_der)).ok


def test_a_payload_that_is_compared_with_its_own_nonce_shows_nothing_of_when() -> None:
    piece, anchors = recognise(gpu_payload(gpus(2), NONCE).encode()), pinned()
    asked, unasked = verified(piece, anchors, nonce=NONCE), verified(piece, anchors)
    assert asked.has_passed({"gpu.0.nonce", "gpu.1.nonce"})
    assert (asked.ok, asked.verdict) == (True, Verdict.VERIFIED)
    assert (unasked.ok, unasked.verdict) == (True, Verdict.PARTIAL)
    told = {check.name: check for check in unasked.checks}
    for name in ("gpu.0.nonce", "gpu.1.nonce"):
        assert told[name].status is Status.SKIP
        assert NONCE.hex() in told[name].reason
    assert "our nonce" not in told["gpu.payload"].reason
    document = json.loads(piece.raw)
    document["nonce"] = "11" * 32
    other = verified(recognise(json.dumps(document).encode()), anchors)
    assert {check.name for check in other.checks if check.status is Status.FAIL} == {"gpu.0.nonce", "gpu.1.nonce"}


def test_the_devices_of_a_payload_are_listed_and_verified() -> None:
    text = gpu_payload(gpus(), NONCE)
    piece = recognise(text.encode())
    assert piece.kind == "nvidia"
    anchors = pinned()
    assert verified(piece, anchors).has_passed({"gpu.payload", "gpu.0.chain", "gpu.0.signature"})
    assert verified(piece, anchors, nonce=NONCE).has_passed({"gpu.0.nonce"})
    assert verified(piece, anchors, nonce=bytes(32)).rejected
    shown = describe(piece)
    assert (shown["kind"], shown["nonce"], shown["device.0.arch"]) == ("GPU payload", NONCE.hex(), "HOPPER")
    entries = [{"nonce": NONCE.hex(), **entry} for entry in json.loads(text)["evidence_list"]]
    listed = recognise(json.dumps(entries).encode())
    assert verified(listed, anchors).has_passed({"gpu.0.signature"})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "0 bytes"),
        (b"README", "begin with"),
        (b"0", "hex"),
        (b"04", "1 bytes"),
        (b"{", "cannot be read"),
        (b"[]", "NVIDIA"),
        (b"[5]", "NVIDIA"),
        (b'[{"nonce":5}]', "NVIDIA"),
        (b'"text"', "begin with"),
        (b"{}", "without a quote"),
        (b'{"quote":""}', "without a quote"),
        (b'{"quote":"xy"}', "not hex"),
        (b'{"attestation":{"evidence":5}}', "without a quote"),
        (b"\x00\x03\x81\x12" + bytes(20), "envelope"),
        (b"\x00" * (MAX_PIECE_BYTES + 1), "no evidence is that long"),
        (b'{"quote":"0400000081000000","collateral":{"a":' + b"[" * 500 + b"]" * 500 + b"}}", "nested deeper"),
        (b'[{"nonce":"a","x":' + b"[" * 500 + b"]" * 500 + b"}]", "nested deeper"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_is_no_evidence_is_refused_with_what_was_expected(content: bytes, told: str) -> None:
    with pytest.raises(PieceError, match=told):
        recognise(content)


@given(st.binary(max_size=3000) | st.text(max_size=300).map(lambda text: text.encode(errors="replace")))
@example(b"\x04\x00" + bytes(1182))
@example(bytes(1184))
@example(b'{"nonce":"00","evidence_list":[]}')
@example(b'{"nonce":"zz","evidence":"x","certificate":"y","arch":"HOPPER"}')
@example(json.dumps({"nonce": "00" * 32, "evidence": "AA==", "certificate": "", "arch": "HOPPER"}).encode())
def test_nothing_but_its_own_error_leaves_it_and_nothing_passes(content: bytes) -> None:
    try:
        piece = recognise(content)
        result = verified(piece, Anchors.default())
    except PieceError:
        return
    assert not result.ok
    try:
        describe(piece)
    except PieceError:
        return


def test_a_payload_names_its_nonce_or_is_refused() -> None:
    for nonce in ("00", "zz"):
        text = json.dumps({"nonce": nonce, "evidence_list": []})
        with pytest.raises(PieceError, match="GPU payload"):
            claimed_nonce(recognise(text.encode()))
    device = {"certificate": "", "evidence": base64.b64encode(b"short").decode(), "arch": "HOPPER"}
    with pytest.raises(PieceError, match="evidence of a device"):
        describe(recognise(json.dumps({"nonce": "00" * 32, "evidence_list": [device]}).encode()))


def test_the_fields_of_a_quote_are_shown_as_they_are(tdx: SimulatedTdxPlatform) -> None:
    shown = describe(recognise(tdx.quote(DATA)))
    assert shown["report_data"] == DATA.hex()
    assert shown["version"] == 4
    assert "Simulated SGX Root CA" in str(shown["certificate.2"])
    with pytest.raises(PieceError, match="cut short"):
        describe(recognise(tdx.quote(DATA)[:100]))
    with pytest.raises(PieceError):
        describe(Piece(kind="snp", raw=b""))


def test_a_chain_of_something_else_than_certificates_is_shown_as_that() -> None:
    assert named(b"no certificate") == "not a certificate"


def test_a_root_whose_name_is_no_text_is_no_certificate(tdx: SimulatedTdxPlatform) -> None:
    der = tdx.root_der.replace(b"Simulated SGX", b"\xff" * 13)
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(der) + b"\n-----END CERTIFICATE-----\n"
    with pytest.raises(PieceError, match="certificate"):
        root_der(pem)


def test_roots_and_certificates_are_read_in_both_encodings(tdx: SimulatedTdxPlatform) -> None:
    machine = platform()
    assert root_der(tdx.root_der) == root_der(tdx.root_pem.encode()) == tdx.root_der
    assert root_der(machine.chain_pem.encode()) == machine.root_der
    for content in (b"", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"):
        with pytest.raises(PieceError, match="certificate"):
            root_der(content)
    assert certificates_of(None) == (None, None)
    alone, rest = certificates_of(tdx.root_der)
    assert alone == tdx.root_der
    assert rest is None
    assert certificates_of(machine.vcek_der + machine.chain_der) == (machine.vcek_der, machine.chain_der)
    for content in (b"{}", b""):
        with pytest.raises(PieceError, match="as PEM"):
            certificates_of(content)


@pytest.mark.parametrize(("text", "expected"), [(None, None), (7, None), ("", b""), ("0aFF", b"\x0a\xff"), ("0", b"")])
def test_a_revocation_list_is_hex_or_fails_as_none(text: object, expected: bytes | None) -> None:
    assert list_of(text) == expected
