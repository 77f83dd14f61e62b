"""`nvidia_payload`: the evidence of one or several NVIDIA devices as services pass it on (wire contract 6.4).

Structure only: on exit there is a nonce and a bounded list of entries, each of them three texts. What the texts hold
is for `evidence.nvidia`.
"""

import base64
from dataclasses import dataclass

import msgspec

from confide.evidence.result import quoted

MAX_PAYLOAD_BYTES = 1024 * 1024  # a device needs 12 kB
MAX_DEVICES = 64


class PayloadError(ValueError):
    """The text is no such payload. The message is for people."""


class Entry(msgspec.Struct, frozen=True):
    """The evidence of one device. `certificate`: base64 of a PEM chain, leaf first; `evidence`: of its report."""

    certificate: str
    evidence: str
    arch: str


class Listed(msgspec.Struct, frozen=True):
    """The form with a list. Other members are left alone."""

    nonce: str
    evidence_list: tuple[Entry, ...]


class Single(msgspec.Struct, frozen=True):
    """The older form, with the members of one device beside the nonce."""

    nonce: str
    certificate: str
    evidence: str
    arch: str


@dataclass(frozen=True)
class Payload:
    """The nonce that it names, and one entry for each device. All of it is claims."""

    nonce: str
    entries: tuple[Entry, ...]


def parse_payload(text: str | bytes) -> Payload:
    """Read JSON text in either form. Raises PayloadError."""
    if len(text) > MAX_PAYLOAD_BYTES:
        raise PayloadError(f"{len(text)} bytes, expected at most {MAX_PAYLOAD_BYTES}")
    try:
        payload = read(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise PayloadError(f"it cannot be read: {quoted(error)}") from error
    if len(payload.entries) > MAX_DEVICES:
        raise PayloadError(f"{len(payload.entries)} devices, expected at most {MAX_DEVICES}")
    return payload


def read(text: str | bytes) -> Payload:
    """The payload in the form that its members show."""
    names = msgspec.json.decode(text, type=dict[str, msgspec.Raw]).keys()
    if "evidence_list" not in names:
        single = msgspec.json.decode(text, type=Single)
        return Payload(single.nonce, (Entry(single.certificate, single.evidence, single.arch),))
    if names & {"certificate", "evidence"}:
        raise PayloadError("there is a list of devices and one beside it, so it is not clear which of them count")
    listed = msgspec.json.decode(text, type=Listed)
    return Payload(listed.nonce, listed.evidence_list)


def decoded(text: str, refusal: type[ValueError]) -> bytes:
    """Base64 of which there is exactly one spelling. Raises `refusal`."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error, and for text that is not ASCII
        raise refusal(f"not base64: {quoted(error)}") from error
    if base64.b64encode(raw).decode() != text:
        raise refusal("not canonical base64")
    return raw
