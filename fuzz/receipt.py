"""Fuzz the receipt: any bytes are refused with DocumentError or read, and only what was signed verifies."""

import json
import sys

from confide.protocol.canonical import DIGEST, DocumentError, canonical
from confide.protocol.receipt import RECEIVED, RETURNED, Receipt, parse_receipt, signature_fault, signed_receipt
from fuzz._documents import KEY, KEYSET, changed, read

SIGNED = signed_receipt(
    receipt_id="rcpt-00112233445566778899aabb",
    chat_id="chatcmpl-1",
    model="m",
    keyset_digest=KEYSET.digest(),
    endpoint="/v1/chat/completions",
    served_at=1_750_000_000,
    received_sha256=bytes(32),
    forwarded_sha256=bytes(32),
    returned_sha256=bytes(32),
    outcome="complete",
    signer=KEY,
)
HONEST = json.loads(SIGNED)


def fuzz_one(data: bytes) -> None:
    """One input: as a receipt, and as changes to an honest one, signed by another's key or again by its own."""
    read(data)
    verifies(data)
    document = changed(HONEST, iter(data))
    raw = json.dumps(document).encode()
    if verifies(raw) and canonical(document) != SIGNED:
        raise AssertionError("a changed receipt verifies")
    try:
        unsigned = canonical({name: value for name, value in document.items() if name != "signature"})
    except DocumentError:
        return
    again = json.dumps({**document, "signature": KEY.sign(unsigned).hex()}).encode()
    receipt = parsed(again)
    if receipt is not None and receipt.signing_input != unsigned:
        raise AssertionError("what was signed is not what is verified")


def verifies(raw: bytes) -> bool:
    """Whether these bytes are a receipt of the honest keyset."""
    receipt = parsed(raw)
    return receipt is not None and signature_fault(receipt, KEYSET) is None


def parsed(raw: bytes) -> Receipt | None:
    """A receipt keeps its promises: one request and one response, each with its hash, and sessions that are ids."""
    try:
        receipt = parse_receipt(raw)
    except DocumentError:
        return None
    for event_type in (RECEIVED, RETURNED):
        if DIGEST.fullmatch(receipt.body_hash(event_type) or "") is None:
            raise AssertionError(f"{event_type} has no hash")
    for event in receipt.upstream:
        if (event.result == "verified") != (event.session_id is not None):
            raise AssertionError("a session is cited that did not serve, or none where one did")
    return receipt


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
