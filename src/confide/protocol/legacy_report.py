"""The legacy attestation report: builders for the service, and the choice that a client makes (wire contract 6).

A report proves nothing by itself. Its quote does, once it verified and the report data inside the *verified quote*
equals the layout of wire contract 6.3; that is the evidence room's work, not done here.
"""

import json
from collections.abc import Iterator, Mapping, Sequence

from confide.errors import VerificationError
from confide.protocol.signature import Algo
from confide.protocol.statement import legacy_report_data


def attestation(
    *,
    signing_address: str,
    signing_algo: Algo,
    signing_public_key: str,
    nonce: bytes,
    quote: bytes,
    report_data: bytes,
    event_log: str,
    vm_config: str,
    info: Mapping[str, object],
    simulated: bool,
    collateral: Mapping[str, str] | None = None,
    spki_sha256: bytes | None = None,
    nvidia_payload: str | None = None,
) -> dict[str, object]:
    """One attestation object with all members of wire contract 6.1, and two of ours: `simulated` and `collateral`.

    `signing_public_key`: hex without `0x`. `nonce`: 32 bytes. `report_data`: the 64 bytes in the quote. `spki_sha256`
    (32 bytes) makes it version 2. `nvidia_payload`: JSON text, None without GPU evidence. Raises ValueError when
    `report_data` is not the layout for this address, nonce and TLS key: such an object would accuse its own quote.
    """
    identity = bytes.fromhex(signing_address.removeprefix("0x"))
    if report_data != legacy_report_data(identity, nonce, spki_sha256=spki_sha256):
        raise ValueError("the report data in the quote is not the one for this address, nonce and TLS key")
    members: dict[str, object] = {
        "signing_address": signing_address,
        "signing_algo": signing_algo.value,
        "signing_public_key": signing_public_key,
        "request_nonce": nonce.hex(),
        "intel_quote": quote.hex(),
        "quote": quote.hex(),
        "report_data": report_data.hex(),
        "nvidia_payload": empty_gpu_payload(nonce) if nvidia_payload is None else nvidia_payload,
        "event_log": event_log,
        "vm_config": vm_config,
        "info": dict(info),
        "version": 1 if spki_sha256 is None else 2,
        "simulated": simulated,
    }
    if spki_sha256 is not None:
        members["tls_cert_fingerprint"] = spki_sha256.hex()
    if collateral is not None:
        members["collateral"] = dict(collateral)
    return members


def empty_gpu_payload(nonce: bytes) -> str:
    """The JSON text of `nvidia_payload` where there is no GPU evidence (wire contract 6.4). `nonce`: 32 bytes."""
    return json.dumps({"nonce": nonce.hex(), "evidence_list": [], "arch": "HOPPER"}, separators=(",", ":"))


def legacy_report(
    served_by: Mapping[str, object], *, others: Sequence[Mapping[str, object]] = (), model_name: str | None = None
) -> dict[str, object]:
    """The superset report of wire contract 6.2: every family of verifiers finds what it looks for.

    `served_by`: the attestation of the signer that serves. `others`: those of further known instances. `model_name`:
    the model that was asked for; a direct service shows the same evidence as gateway and as model.
    """
    instances = [without_instances(each) for each in (served_by, *others)]
    report: dict[str, object] = {**instances[0], "all_attestations": instances}
    if model_name is not None:
        report["gateway_attestation"] = instances[0]
        report["model_attestations"] = [{**instances[0], "model_name": model_name}]
    return report


def without_instances(entry: Mapping[str, object]) -> dict[str, object]:
    """A copy that cannot nest: entries never hold `all_attestations` themselves."""
    return {name: value for name, value in entry.items() if name != "all_attestations"}


def pick_attestation(report: Mapping[str, object], signing_address: str | None = None) -> dict[str, object]:
    """The attestation of `signing_address` in a server's report, or with None the first (wire contract 6.2).

    Order: `model_attestations`, `all_attestations`, `gateway_attestation`, the top level. The address is compared
    without case. Raises VerificationError when no entry is that signer's: another signer's attestation says nothing
    about a signature in hand.
    """
    for entry in candidates(report):
        if signing_address is None or is_signed_by(entry, signing_address):
            return without_instances(entry)
    raise VerificationError(
        f"report: got attestations of other signers only, expected one of {signing_address}",
        check="report",
        remedy="Ask the service that served the answer for a report with this signing_address.",
    )


def candidates(report: Mapping[str, object]) -> Iterator[dict[str, object]]:
    """Every object of a foreign report that may be an attestation, in the order of wire contract 6.2."""
    for name in ("model_attestations", "all_attestations"):
        entries = report.get(name)
        if isinstance(entries, list):
            yield from (entry for entry in entries if isinstance(entry, dict))
    gateway = report.get("gateway_attestation")
    if isinstance(gateway, dict):
        yield gateway
    yield dict(report)


def is_signed_by(entry: Mapping[str, object], signing_address: str) -> bool:
    """Whether the entry claims this signer. A claim only: the verified quote decides."""
    claimed = entry.get("signing_address")
    return isinstance(claimed, str) and claimed.lower() == signing_address.lower()
