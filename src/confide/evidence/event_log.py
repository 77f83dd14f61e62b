"""dstack's event log: what extended which runtime register (tee-evidence 3.5).

On entry: text or an array from anybody. On exit: every entry is well-formed, and each runtime event has the digest of
its own name and payload, recomputed here; whatever the log says its digest is must agree.

NOT shown: that this log is the one behind a quote. `EventLog.registers` is what to compare with a VERIFIED quote;
before that, names and payloads are whatever somebody wrote. Boot entries (all that are no runtime events) are digests
alone: what they call themselves is never looked at.
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha384
from typing import Annotated

import msgspec

from confide.evidence.result import quoted
from confide.protocol.canonical import DocumentError, canonical, check_readable, parse_json, typed

RUNTIME_EVENT = 0x08000001  # dstack's event type in RTMR3; everything else is a boot entry
RUNTIME_REGISTER = 3
REGISTERS = 4
REGISTER_BYTES = 48

MAX_LOG_BYTES = 1024 * 1024  # of JSON text; the fullest real log here has 7 kB
MAX_EVENTS = 4096

SYSTEM_READY = "system-ready"
INIT_SCRIPT_HASH = "init-script-hash"  # one for each script; every other name stands once
HEX = re.compile(r"(?:[0-9a-fA-F]{2})*")


class LogError(ValueError):
    """The event log cannot be read or contradicts itself. The text is for people."""


class Entry(msgspec.Struct, frozen=True):
    """One entry as it is written; `digest`, `event_payload` and `preimage` are hex.

    `version`: the form of a runtime event's digest, 1 when absent. `preimage`: what the digest is over, if it is shown;
    form 2 is JSON, and may stand there as it is.
    """

    imr: Annotated[int, msgspec.Meta(ge=0, lt=REGISTERS)]
    event_type: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
    event: str
    event_payload: str
    digest: str = ""
    version: int | None = None
    preimage: str | None = None


@dataclass(frozen=True)
class Event:
    """What one entry did. `digest`: the 48 bytes that extended register `register` (0 to 3)."""

    register: int
    is_runtime: bool
    name: str
    payload: bytes
    digest: bytes


@dataclass(frozen=True)
class EventLog:
    """A log that could be read, in its own order."""

    events: tuple[Event, ...]

    @cached_property
    def registers(self) -> tuple[bytes, ...]:
        """RTMR0 to RTMR3 as the log leaves them, 48 bytes each."""
        registers = [bytes(REGISTER_BYTES)] * REGISTERS
        for event in self.events:
            registers[event.register] = sha384(registers[event.register] + event.digest).digest()
        return tuple(registers)

    @cached_property
    def boot_events(self) -> tuple[Event, ...]:
        """The runtime events before the first `system-ready`: those of dstack itself. Raises LogError.

        Later ones are the application's own and carry no meaning. Refused, because they could hide that end or a name:
        an entry of RTMR3 that is no runtime event (its digest may be that of any event), and a name with a colon (in
        form 1 the name could have been cut from its payload elsewhere). A name that stands twice is refused too.
        """
        events = self._before_ready()
        for event in events:
            if not event.is_runtime:
                raise LogError("an entry of RTMR3 before system-ready is no runtime event, and may stand for any")
            if ":" in event.name:
                raise LogError(f"the event {quoted(event.name)} has a colon in its name")
        names = Counter(event.name for event in events)
        twice = [name for name, count in names.items() if count > 1 and name != INIT_SCRIPT_HASH]
        if twice:
            raise LogError(f"the event {quoted(twice[0])} stands {names[twice[0]]} times before system-ready")
        return events

    def _before_ready(self) -> tuple[Event, ...]:
        events = self._runtime_register
        for place, event in enumerate(events):
            if event.is_runtime and event.name == SYSTEM_READY:
                return events[:place]
        raise LogError("the event log has no system-ready event")

    @property
    def later_events(self) -> tuple[Event, ...]:
        """What the application logged after `system-ready`: no statement of dstack's. Raises LogError."""
        return self._runtime_register[len(self._before_ready()) + 1 :]

    @property
    def _runtime_register(self) -> tuple[Event, ...]:
        return tuple(event for event in self.events if event.register == RUNTIME_REGISTER)

    def payload(self, name: str) -> bytes:
        """The payload of the one boot event of this name. Raises LogError when there is none."""
        for event in self.boot_events:
            if event.name == name:
                return event.payload
        raise LogError(f"the event log has no {name} event before system-ready")


def read_event_log(log: object) -> EventLog:
    """The log in JSON text of at most 1 MiB, or in the array that was parsed from it. Raises LogError."""
    try:
        if isinstance(log, str):
            # A lone surrogate has no bytes in UTF-8; passed on as it is, the parser refuses it.
            log = parse_json(log.encode(errors="surrogatepass"), what="the event log", most_bytes=MAX_LOG_BYTES)
        else:
            check_readable(log, "the event log")
        if isinstance(log, list) and len(log) > MAX_EVENTS:
            raise LogError(f"the event log has {len(log)} entries, expected at most {MAX_EVENTS}")
        entries = typed(log, list[Entry], what="the event log")
    except DocumentError as error:
        raise LogError(quoted(error)) from None
    return EventLog(tuple(read_entry(entry) for entry in entries))


def read_entry(entry: Entry) -> Event:
    """What the entry extended its register by. Raises LogError."""
    payload, given = unhexed(entry.event_payload), unhexed(entry.digest)
    is_runtime = entry.imr == RUNTIME_REGISTER and entry.event_type == RUNTIME_EVENT
    digest = runtime_digest(entry, payload, given) if is_runtime else boot_digest(given)
    return Event(entry.imr, is_runtime, entry.event, payload, digest)


def boot_digest(given: bytes) -> bytes:
    """A boot entry's digest as given, zeros on its right."""
    if not 0 < len(given) <= REGISTER_BYTES:
        raise LogError(f"a boot entry has a digest of {len(given)} bytes, expected 1 to {REGISTER_BYTES}")
    return given.ljust(REGISTER_BYTES, b"\0")


def runtime_digest(entry: Entry, payload: bytes, given: bytes) -> bytes:
    """A runtime event's digest, recomputed. Newer logs leave theirs out."""
    content = preimage(entry, payload)
    digest = sha384(content).digest()
    if given and given != digest:
        raise LogError(f"the event {quoted(entry.event)} has another digest than its content")
    if entry.preimage and entry.preimage.encode() != content and entry.preimage.lower() != content.hex():
        raise LogError(f"the event {quoted(entry.event)} has another preimage than its content")
    return digest


def preimage(entry: Entry, payload: bytes) -> bytes:
    """What a runtime event's digest is over, in form 1 or 2."""
    if entry.version in (None, 1):
        return b"%b:%b:%b" % (entry.event_type.to_bytes(4, "little"), entry.event.encode(), payload)
    if entry.version == 2:
        return canonical({"name": entry.event, "payload": payload.hex(), "type": entry.event_type})
    raise LogError(f"the event {quoted(entry.event)} has the digest form {entry.version}, expected 1 or 2")


def unhexed(digits: str) -> bytes:
    if HEX.fullmatch(digits) is None:
        raise LogError("the event log holds something else than hex")
    return bytes.fromhex(digits)
