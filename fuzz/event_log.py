"""Fuzz dstack's event log: any log is refused with LogError or replays, and no relabelling keeps its registers."""

import json
import sys
from hashlib import sha384
from typing import Any

from confide.evidence.dstack import DstackEvidence, verify_dstack
from confide.evidence.event_log import EventLog, LogError, read_event_log
from confide.evidence.policy import DstackPolicy
from confide.evidence.result import passed
from confide.evidence.tdx import QUOTE, TdxResult
from fuzz._documents import changed
from fuzz._dstack import LOG, QUOTE_OF_LOG

TDX = TdxResult(1_800_000_000, (passed(QUOTE, "taken as verified"),), quote=QUOTE_OF_LOG)
HONEST = read_event_log(LOG)


def fuzz_one(data: bytes) -> None:
    """One input: as a log's text, and as changes to an honest log."""
    check(data.decode(errors="surrogateescape"))
    document = changed({"event_log": LOG}, iter(data))
    check(document.get("event_log"))


def check(log: object) -> None:
    """A log keeps its promises, and the verifier returns."""
    result = verify_dstack(TDX, DstackEvidence(event_log=log, vm_config="{}"), DstackPolicy())
    try:
        read = read_event_log(log)
    except LogError:
        if result.boot is not None:
            raise AssertionError("an unreadable log was believed") from None
        return
    entries: list[dict[str, Any]] = json.loads(log) if isinstance(log, str) else log  # type: ignore[assignment]  # it was read as one
    if read.registers != replayed(read) or len(read.events) != len(entries):
        raise AssertionError("the log replays to other registers than its digests")
    if result.boot is not None and read.boot_events != HONEST.boot_events:
        raise AssertionError("another boot has the registers of the honest one")


def replayed(log: EventLog) -> tuple[bytes, ...]:
    registers = [bytes(48)] * 4
    for event in log.events:
        if len(event.digest) != 48:
            raise AssertionError("a digest of another length")
        registers[event.register] = sha384(registers[event.register] + event.digest).digest()
    return tuple(registers)


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
