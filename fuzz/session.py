"""Fuzz the session: any bytes are refused with DocumentError, or are the cited document with the evidence it names."""

import json
import sys
from typing import Any

from confide.protocol.canonical import DocumentError, digest_of
from confide.protocol.session import SOURCES, evidence_bytes, parse_session, session_id
from fuzz._documents import SESSION, changed, read

HONEST_ID = session_id(SESSION)


def fuzz_one(data: bytes) -> None:
    """One input: as a session, as changes to an honest one, and as a data URL."""
    document = read(data)
    if document is not None:
        parse(document)
    parse(changed(SESSION, iter(data)))
    decode(data.decode("latin-1"))
    decode("data:;base64," + data.decode("latin-1"))


def parse(document: dict[str, Any]) -> None:
    """A session keeps its promises, under its own id and under that of another."""
    raw = json.dumps(document).encode()
    try:
        own_id = session_id(document)
    except DocumentError:
        own_id = HONEST_ID
    try:
        session = parse_session(raw, own_id)
    except DocumentError:
        session = None
    if own_id != HONEST_ID:
        try:
            parse_session(raw, HONEST_ID)
        except DocumentError:
            pass
        else:
            raise AssertionError("another document was taken for the cited one")
    if session is None:
        return
    if digest_of(evidence_bytes(session.evidence.data)) != session.evidence.digest:
        raise AssertionError("the evidence is not the named one")
    for name in session.claims.__struct_fields__:
        claim = getattr(session.claims, name)
        if name != "extra" and claim.status != "unknown" and claim.source not in SOURCES:
            raise AssertionError("a claim is stated on an undefined ground")


def decode(text: str) -> None:
    """A text is refused or decodes."""
    try:
        evidence_bytes(text)
    except DocumentError:
        return
    if not text.startswith("data:"):
        raise AssertionError("something else was taken for a data URL")


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
