"""Fuzz the mr_config document: any text is refused with MrConfigError or read, and passes as what it was hashed as."""

import json
import sys

from confide.evidence.dstack import MR_CONFIG, DstackEvidence, verify_dstack
from confide.evidence.mr_config import MrConfigError, document_sha256, form_3, read_document
from confide.evidence.policy import DstackPolicy
from confide.evidence.result import passed
from confide.evidence.tdx import QUOTE, TdxResult
from fuzz._documents import changed
from fuzz._dstack import DOCUMENT, LOG, QUOTE_OF_DOCUMENT

TDX = TdxResult(1_800_000_000, (passed(QUOTE, "taken as verified"),), quote=QUOTE_OF_DOCUMENT)
HONEST = json.dumps(DOCUMENT)


def fuzz_one(data: bytes) -> None:
    """One input: as a document, and as changes to an honest one."""
    check(data.decode(errors="surrogateescape"))
    check(json.dumps(changed(DOCUMENT, iter(data))))


def check(document: str) -> None:
    """A document keeps its promises, and only the committed one passes."""
    result = verify_dstack(TDX, DstackEvidence(event_log=LOG, mr_config=document), DstackPolicy())
    if document and result.has_passed({MR_CONFIG}) != (document == HONEST):
        raise AssertionError("a document passed that the register does not commit to")
    try:
        digest = document_sha256(document)
    except MrConfigError:
        digest = None
    try:
        read = read_document(document)
    except MrConfigError:
        return
    if digest is None or form_3(document)[1:33] != digest or len(read.compose_hash) != 32:
        raise AssertionError("a document was read that has no hash or names no application")


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
