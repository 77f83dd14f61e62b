"""Fuzz the keyset: any document is refused with DocumentError or has its own digest, and each key one role."""

import json
import sys

from confide.protocol.canonical import DocumentError, canonical, digest_of
from confide.protocol.keyset import parse_keyset
from fuzz._documents import KEYSET, changed, read

HONEST = json.loads(canonical(KEYSET.document()))


def fuzz_one(data: bytes) -> None:
    """One input: as a keyset, and as changes to an honest one."""
    document = read(data)
    if document is not None:
        parse(document)
    parse(changed(HONEST, iter(data)))


def parse(document: dict[str, object]) -> None:
    """A keyset keeps its promises."""
    try:
        keyset, digest = parse_keyset(document)
    except DocumentError:
        return
    if digest != digest_of(canonical(document)):
        raise AssertionError("the digest is that of another document")
    if (digest == KEYSET.digest()) != (canonical(document) == canonical(HONEST)):
        raise AssertionError("two keysets have one digest")
    signing = {key.key_id: keyset.receipt_key(key.key_id) for key in keyset.receipt_signing_keys}
    if len(signing) != len(keyset.receipt_signing_keys) or not any(signing.values()):
        raise AssertionError("an id names two keys, or no key signs")
    sealing = {key.public_key for key in keyset.e2ee_public_keys}
    if any(key is not None and key.hex() in sealing for key in signing.values()):
        raise AssertionError("a receipt key seals")
    for host in (*keyset.domains, "", "é"):
        if any(len(pin) != 32 for pin in keyset.tls_pins(host)):
            raise AssertionError("a pin is no SHA-256")


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
