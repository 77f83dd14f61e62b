"""One piece of evidence in whatever form it was kept: what it is, its fields, and whether it verifies.

Forms that are recognised: a TDX quote or an SNP report, raw or as hex text; dstack's `GetQuote` answer and its V0
envelope of an SNP report; an `nvidia_payload`, and a list of NVIDIA evidence; a report of this service, ACI or legacy.
Recognition decides nothing about trust: what is taken for a quote is then verified as one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from confide.evidence.gpu_payload import Entry, PayloadError, decoded, parse_payload
from confide.evidence.mr_config import document_sha256
from confide.evidence.nvidia import PAYLOAD, GpuResult, verify_gpu_payload
from confide.evidence.policy import Anchors, GpuPolicy, SnpPolicy, TdxPolicy
from confide.evidence.quote import TD_REPORT_15, QuoteError, parse_quote
from confide.evidence.result import Status, Verification, passed, quoted, skipped
from confide.evidence.snp import verify_snp
from confide.evidence.snp_chain import split_certificates
from confide.evidence.snp_dstack import HEAD, EnvelopeError, split_envelope
from confide.evidence.snp_report import REPORT_BYTES, SnpReportError, parse_snp_report
from confide.evidence.spdm import SpdmError, parse_report
from confide.evidence.tdx import UNREADABLE, verify_tdx
from confide.protocol.canonical import DocumentError, check_readable

MAX_PIECE_BYTES = 16 * 1024 * 1024
NONCE_BYTES = 32
CERTIFICATE = b"-----BEGIN CERTIFICATE-----"

Kind = Literal["tdx", "snp", "nvidia"]
Members = Mapping[str, object]


class PieceError(ValueError):
    """The bytes are no evidence of a kind that is known here. The text is for people."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What was recognised. `raw`: the quote, the report, or the JSON text of a GPU payload.

    `certificates`: that came along with an SNP report, PEM or DER one behind the other. `host_document`: what its
    HOST_DATA has to be the hash of. `collateral`: JSON text that came along with a quote. `crl`: DER that came along
    with an SNP report.
    """

    kind: Kind
    raw: bytes
    certificates: bytes | None = None
    host_document: str | None = None
    collateral: str | None = None
    crl: bytes | None = None


def recognise(content: bytes) -> Piece:
    """What these bytes are. Raises PieceError."""
    if len(content) > MAX_PIECE_BYTES:
        raise PieceError(f"{len(content)} bytes, expected at most {MAX_PIECE_BYTES}: no evidence is that long")
    text = content.strip()
    if text[:1] in (b"{", b"["):
        return from_json(text)
    if text and all(byte in b"0123456789abcdefABCDEFxX" for byte in text):
        try:
            content = bytes.fromhex(text.decode().removeprefix("0x"))
        except ValueError as error:
            raise PieceError("hex digits are missing, or there are other characters among them") from error
    return from_bytes(content)


def from_bytes(raw: bytes) -> Piece:
    """A quote by its version and TEE type, a report by its length, an envelope by its head. Raises PieceError."""
    if raw.startswith(HEAD):
        try:
            envelope = split_envelope(raw)
        except EnvelopeError as error:
            raise PieceError(f"dstack's envelope of an SNP report: {error}") from error
        certificates = b"".join(envelope.certificates) or None
        return Piece(kind="snp", raw=envelope.report, certificates=certificates, host_document=envelope.document)
    if len(raw) == REPORT_BYTES and raw[4:8] != b"\x81\x00\x00\x00":
        return Piece(kind="snp", raw=raw)
    if raw[:2] in (b"\x03\x00", b"\x04\x00", b"\x05\x00"):
        return Piece(kind="tdx", raw=raw)
    raise PieceError(
        f"{len(raw)} bytes that begin with {raw[:8].hex() or 'nothing'}, expected a TDX quote, an SNP report of "
        f"{REPORT_BYTES} bytes, a GetQuote answer, a GPU payload or a report"
    )


def from_json(text: bytes) -> Piece:
    """Evidence inside a document. Raises PieceError."""
    try:
        document: dict[str, object] | list[object] = msgspec.json.decode(text, type=dict[str, object] | list[object])
        check_readable(document, "the document")  # parts of it are written again
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, DocumentError) as error:
        raise PieceError(f"it looks like JSON and cannot be read: {quoted(error)}") from error
    if isinstance(document, list):
        return Piece(kind="nvidia", raw=payload_of(document))
    if "evidence_list" in document or {"evidence", "certificate"} <= document.keys():
        return Piece(kind="nvidia", raw=text)
    inside = document.get("attestation")
    evidence = inside.get("evidence") if isinstance(inside, dict) else document
    return from_members(evidence if isinstance(evidence, dict) else {})


def from_members(evidence: Members) -> Piece:
    """A GetQuote answer, or the evidence of a report. Raises PieceError."""
    found = {name: evidence.get(name) for name in ("quote", "intel_quote", "snp_report", "attestation")}
    texts = {name: value for name, value in found.items() if isinstance(value, str) and value}
    if not texts:
        raise PieceError("a JSON document without a quote, an SNP report or a list of GPU evidence in it")
    try:
        raw = bytes.fromhex(next(iter(texts.values())).removeprefix("0x"))
    except ValueError as error:
        raise PieceError(f"its member {next(iter(texts))} is not hex") from error
    piece = from_bytes(raw)
    collateral = evidence.get("collateral")
    certificates = [evidence.get(name) for name in ("vcek", "cert_chain")]
    given = "".join(each for each in certificates if isinstance(each, str)).encode() or piece.certificates
    return Piece(
        kind=piece.kind,
        raw=piece.raw,
        certificates=given,
        host_document=piece.host_document,
        collateral=json.dumps(collateral) if isinstance(collateral, dict) else None,
        crl=list_of(evidence.get("crl")),
    )


def list_of(text: object) -> bytes | None:
    """The revocation list in a member `crl`: DER in hex. What is no hex is no list either, and fails as one."""
    try:
        return bytes.fromhex(text) if isinstance(text, str) else None
    except ValueError:
        return b""


def payload_of(entries: list[object]) -> bytes:
    """A list of NVIDIA evidence as one payload. Each entry has the nonce; that they agree is checked with the rest."""
    nonces = [entry.get("nonce") for entry in entries if isinstance(entry, dict)]
    if not nonces or not all(isinstance(nonce, str) for nonce in nonces) or len(nonces) != len(entries):
        raise PieceError("a JSON list whose entries are not evidence of NVIDIA devices, each with its nonce")
    return msgspec.json.encode({"nonce": nonces[0], "evidence_list": entries})


def claimed_nonce(piece: Piece) -> bytes:
    """The nonce that a GPU payload says it answers, 32 bytes: its own word. Raises PieceError."""
    try:
        nonce = bytes.fromhex(parse_payload(piece.raw).nonce)
    except (PayloadError, ValueError) as error:
        raise PieceError(f"the GPU payload cannot be read: {quoted(error)}") from error
    if len(nonce) != NONCE_BYTES:
        raise PieceError(f"the GPU payload has a nonce of {len(nonce)} bytes, expected {NONCE_BYTES}")
    return nonce


def verify_piece(
    piece: Piece,
    *,
    collateral: bytes | None,
    anchors: Anchors,
    now: int,
    tdx: TdxPolicy,
    snp: SnpPolicy,
    gpu: GpuPolicy,
    nonce: bytes | None = None,
    report_data: bytes | None = None,
    crl: bytes | None = None,
) -> Verification:
    """Check one piece by itself. Offline, never raises on bad evidence of its kind; PieceError for odd arguments.

    `collateral`: of a quote, DCAP collateral as JSON text; of an SNP report its certificates, PEM or DER, VCEK first.
    None takes what came along. `now`: Unix seconds. `nonce`: 32 bytes that GPUs should have answered, None for the one
    that they name, which shows nothing of when. `report_data`: the 64 bytes that a quote or report should hold, None
    for any. `crl`: AMD's revocation list, DER.
    """
    if piece.kind == "nvidia":
        asked = claimed_nonce(piece) if nonce is None else nonce
        result = verify_gpu_payload(piece.raw, nonce=asked, anchors=anchors, policy=gpu, now=now)
        return result if nonce is not None else without_freshness(result, asked)
    if piece.kind == "snp":
        vcek, chain = certificates_of(piece.certificates if collateral is None else collateral)
        document = piece.host_document
        return verify_snp(
            piece.raw,
            vcek=vcek,
            chain=chain,
            crl=piece.crl if crl is None else crl,
            anchors=anchors,
            policy=snp,
            now=now,
            expected_report_data=report_data,
            expected_host_data=None if document is None else document_sha256(document),
        )
    try:
        text = piece.collateral if collateral is None else collateral.decode()
    except UnicodeDecodeError as error:
        raise PieceError("the collateral of a quote is JSON text, and this is not UTF-8") from error
    return verify_tdx(
        piece.raw, collateral=text, anchors=anchors, policy=tdx, now=now, expected_report_data=report_data
    )


def without_freshness(result: GpuResult, nonce: bytes) -> GpuResult:
    """The result of a payload that was compared with the nonce which it names itself: that they agree shows nothing of
    when it was made, so that no check passes for it, and the verdict is PARTIAL at best.
    """
    fresh = frozenset(each.name for device in result.devices for each in device.checks if each.name.endswith(".nonce"))
    why = f"it answers {nonce.hex()}, which nobody asked for here: it may be a recording"
    unasked = {name: skipped(name, why) for name in fresh}
    unasked[PAYLOAD] = passed(PAYLOAD, f"evidence of {len(result.devices)} devices for the nonce that it names itself")
    checks = tuple(unasked.get(check.name, check) if check.status is Status.PASS else check for check in result.checks)
    return replace(result, checks=checks, required=result.required - fresh, desired=result.desired | fresh)


def root_der(content: bytes) -> bytes:
    """The root in a file, PEM or DER, as DER; of several certificates the self-signed one. Raises PieceError."""
    try:
        if CERTIFICATE not in content:
            return x509.load_der_x509_certificate(content).public_bytes(Encoding.DER)
        certificates = x509.load_pem_x509_certificates(content)
        # A name is parsed when it is asked for, and may only then turn out to be none.
        roots = [certificate for certificate in certificates if certificate.issuer == certificate.subject]
    except UNREADABLE as error:
        raise PieceError("not a certificate, PEM or DER") from error
    return (roots or certificates)[0].public_bytes(Encoding.DER)


def certificates_of(given: bytes | None) -> tuple[bytes | None, bytes | None]:
    """The first certificate, and the rest, in the encoding that they came in. Raises PieceError."""
    if given is None:
        return None, None
    if CERTIFICATE in given:
        blocks = [CERTIFICATE + part for part in given.split(CERTIFICATE)[1:]]
        return blocks[0], b"".join(blocks[1:]) or None
    try:
        first, *rest = split_certificates(given)
    except ValueError as error:  # SnpChainError, and where there is none at all
        raise PieceError(
            "the collateral of an SNP report is its certificates, as PEM or DER: VCEK, ASK, ARK"
        ) from error
    return first, b"".join(rest) or None


def describe(piece: Piece) -> dict[str, object]:
    """Every field, JSON-ready, byte fields as lower-case hex. Claims: nothing was verified. Raises PieceError."""
    if piece.kind == "nvidia":
        return describe_devices(piece)
    if piece.kind == "tdx":
        try:
            quote = parse_quote(piece.raw)
        except QuoteError as error:
            raise PieceError(str(error)) from error
        fields = {name: getattr(quote, name).hex() for name in TD_REPORT_15 if getattr(quote, name)}
        head = {"version": quote.version, "qe_vendor_id": quote.qe_vendor_id.hex(), "user_data": quote.user_data.hex()}
        chain = {f"certificate.{place}": named(der) for place, der in enumerate(quote.chain)}
        lengths = {"quote_bytes": len(quote.trimmed), "bytes_after_it": len(quote.tail)}
        return {"kind": "TDX quote", **head, **fields, **chain, **lengths}
    try:
        report = parse_snp_report(piece.raw)
    except SnpReportError as error:
        raise PieceError(str(error)) from error
    return {"kind": "SNP report", **{name: shown(value) for name, value in vars(report).items()}}


def describe_devices(piece: Piece) -> dict[str, object]:
    """A GPU payload, device by device. Raises PieceError."""
    nonce = claimed_nonce(piece).hex()
    payload = parse_payload(piece.raw)
    devices = {
        f"device.{place}.{name}": value for place, entry in enumerate(payload.entries) for name, value in device(entry)
    }
    return {"kind": "GPU payload", "nonce": nonce, **devices}


def device(entry: Entry) -> list[tuple[str, str]]:
    """What one device reports. Raises PieceError."""
    try:
        report = parse_report(decoded(entry.evidence, SpdmError))
    except SpdmError as error:
        raise PieceError(f"the evidence of a device: {error}") from error
    return [("arch", quoted(entry.arch)), *report.fields().items()]


def named(der: bytes) -> str:
    try:
        return quoted(x509.load_der_x509_certificate(der).subject.rfc4514_string())
    except UNREADABLE:
        return "not a certificate"


def shown(value: object) -> object:
    """A field of a report as JSON has it."""
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, int | str | bool) else str(value)
