"""Fuzz key custody: any document gives checks and never raises, and no change shows another key, app or root."""

import json
import sys
from contextlib import suppress
from typing import Any

from coincurve import PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.evidence.custody import CustodyError, compressed, recovered, verify_custody
from confide.evidence.result import Check, Status
from confide.protocol.canonical import DocumentError, parse_json
from confide.protocol.keyset import ED25519, Keyset, PublicKey
from confide.simulator.kms import SimulatedKms
from fuzz._bytes import patched
from fuzz._documents import changed

PATH, PURPOSE = "aci/receipt-ed25519/v1", "aci.receipt.ed25519.v1"
APP_ID, OTHER_APP_ID = bytes(range(20)), bytes(20)
KMS, OTHER_KMS = SimulatedKms(b"\x11" * 32), SimulatedKms(b"\x22" * 32)


def released_to(app_id: bytes) -> dict[str, Any]:
    """`key_custody` of the receipt key that the KMS gives to this app (wire contract 7.3)."""
    keys = KMS.app_keys(app_id)
    released = keys.release(PATH, PURPOSE)
    secret = bytes.fromhex(str(released["key"]))
    entry = {
        "role": "receipt",
        "path": PATH,
        "purpose": PURPOSE,
        "algo": ED25519,
        "public_key": Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw().hex(),
        "kms_public_key": PrivateKey(secret).public_key.format().hex(),
        "signature_chain": released["signature_chain"],
        "direct_signature_chain": keys.release(PATH, PURPOSE, ED25519)["signature_chain"],
    }
    return {"provider": "dstack-kms", "keys": [entry]}


def keyset_of(custody: dict[str, Any]) -> Keyset:
    """The keyset with the one key of an honest custody."""
    return Keyset(None, 1_900_000_000, (PublicKey("receipt-1", ED25519, custody["keys"][0]["public_key"]),), ())


HONEST = released_to(APP_ID)
KEYSET, KMS_KEY = keyset_of(HONEST), HONEST["keys"][0]["kms_public_key"]
TEXT = json.dumps(HONEST).encode()


def fuzz_one(data: bytes) -> None:
    """One input: as a signature, as custody, and as changes to an honest one in its text and in its members."""
    with suppress(CustodyError):
        recovered(b"", data[:80].hex())
    with suppress(CustodyError):
        compressed(data[:80].hex())
    for raw in (data, patched(TEXT, data)):
        with suppress(DocumentError):
            judge(parse_json(raw, what="it"))
    judge(changed({"key_custody": HONEST}, iter(data)).get("key_custody"))


def judge(custody: object) -> None:
    """What passes is about the released key, the measured app and the pinned root."""
    if any(check.status is Status.PASS for check in checks(custody, OTHER_APP_ID, KMS.root_public_key)):
        raise AssertionError("a key was released to another app")
    if any(check.status is Status.PASS for check in checks(custody, APP_ID, OTHER_KMS.root_public_key)):
        raise AssertionError("a key was released by another root")
    shown = checks(custody, APP_ID, KMS.root_public_key)
    if custody == HONEST and any(check.status is not Status.PASS for check in shown):
        raise AssertionError("the honest custody was not accepted")
    if shown[0].status is Status.PASS and any(
        compressed(entry["kms_public_key"]).hex() != KMS_KEY
        for entry in custody["keys"]  # type: ignore[index]  # it was read as such a document
        if entry["role"] == "receipt"
    ):
        raise AssertionError("another key passed than the released one")


def checks(custody: object, app_id: bytes, root: str) -> tuple[Check, ...]:
    found = verify_custody(custody, keyset=KEYSET, app_id=app_id, kms_roots={root})
    if not found or not all(check.reason.isprintable() for check in found):
        raise AssertionError("there is no check, or a reason is not fit for a terminal")
    return found


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
