"""Which application was measured? (wire contract 9.1, step 6; tee-evidence 3.5)

The report shows the text of the application, `app_compose`; the verified quote holds its SHA-256, either in
`mr_config_id` or in the event log behind RTMR3. A pass says what runs. Whether that is good is not decided here.
"""

from collections.abc import Iterator
from hashlib import sha256, sha384

import msgspec

from confide.evidence.quote import TdxQuote
from confide.evidence.result import Check, failed, passed, quoted, skipped
from confide.evidence.tdx import QUOTE, TdxResult

SOFTWARE = "software"
COMPOSE_HASH, SYSTEM_READY = "compose-hash", "system-ready"

RUNTIME_EVENT = 0x08000001  # dstack's event type in RTMR3; everything else is a boot entry
MR_CONFIG_ID_BYTES = 48


class LogError(ValueError):
    """The report's account of the software cannot be read or contradicts itself. The text is for people."""


class Event(msgspec.Struct, frozen=True):
    """One entry of the event log. `digest` and `event_payload` are hex; names of boot entries mean nothing."""

    imr: int
    event_type: int
    digest: str
    event: str
    event_payload: str
    version: int | None = None

    @property
    def is_runtime(self) -> bool:
        return self.imr == 3 and self.event_type == RUNTIME_EVENT

    def measured(self) -> bytes:
        """The 48 bytes that extended the register: recomputed for runtime events, as given for the others."""
        given = unhexed(self.digest)
        if not self.is_runtime:
            return given.ljust(48, b"\0")
        own = sha384(self.preimage()).digest()
        if given and given != own:
            raise LogError(f"the event {quoted(self.event)} has another digest than its content")
        return own

    def preimage(self) -> bytes:
        """What a runtime event's digest is over: form V1, or V2 where the entry says so."""
        if self.version == 2:
            document = {"name": self.event, "payload": self.event_payload, "type": self.event_type}
            return msgspec.json.encode(document, order="sorted")
        name, payload = self.event.encode(), unhexed(self.event_payload)
        return b"%b:%b:%b" % (self.event_type.to_bytes(4, "little"), name, payload)


def check_software(entry: dict[str, object], tdx: TdxResult) -> Check:
    """Compare `app_compose` in a foreign legacy attestation with what the verified quote measured."""
    try:
        return check_shown(SOFTWARE, app_compose(entry), entry.get("event_log"), tdx)
    except LogError as error:
        return failed(SOFTWARE, str(error))


def check_compose(name: str, compose: str | None, log: str | None, tdx: TdxResult) -> Check:
    """The same for the evidence of an ACI report (wire contract 9.3, step 4). `log`: JSON text."""
    try:
        return check_shown(name, compose, log, tdx)
    except LogError as error:
        return failed(name, str(error))


def check_shown(name: str, compose: str | None, log: object, tdx: TdxResult) -> Check:
    """Raises LogError."""
    if compose is None:
        return skipped(name, "the report shows no app_compose")
    if tdx.quote is None or not tdx.has_passed({QUOTE}):
        return skipped(name, "the quote did not verify, so its measurements prove nothing")
    return compared(name, sha256(compose.encode()).digest(), tdx.quote, event_log({"event_log": log}))


def compared(name: str, compose_hash: bytes, quote: TdxQuote, events: list[Event] | None) -> Check:
    """`compose_hash`: SHA-256 of the shown text, 32 bytes; it has to stand wherever the quote holds one. A log that
    came along has to replay. Raises LogError.
    """
    registers = measured(compose_hash, quote, events)
    if not registers:
        return skipped(name, "mr_config_id names no application and the report has no event log")
    for register, (found, expected) in registers.items():
        if found != expected:
            got = f"got {found.hex()} in {register}, expected {expected.hex()}"
            return failed(name, f"{got} for the shown app_compose")
    where = " and in ".join(registers)
    return passed(name, f"the shown app_compose, SHA-256 {compose_hash.hex()}, is the one in {where}")


def measured(compose_hash: bytes, quote: TdxQuote, events: list[Event] | None) -> dict[str, tuple[bytes, bytes]]:
    """What each register that names an application holds, and what it has to hold. Raises LogError."""
    registers = {}
    if quote.mr_config_id[0] == 1:
        expected = (b"\x01" + compose_hash).ljust(MR_CONFIG_ID_BYTES, b"\0")
        registers["mr_config_id"] = (quote.mr_config_id, expected)
    if events is not None:
        registers["RTMR3"] = (logged_compose_hash(events, quote.rtmr3), compose_hash)
    return registers


def app_compose(entry: dict[str, object]) -> str | None:
    """`info.tcb_info.app_compose`, None when a part of that is absent (wire contract 6.1). Raises LogError."""
    info = member(entry, "info")
    tcb_info = member(info, "tcb_info")
    compose = member(decoded(tcb_info, "tcb_info"), "app_compose")
    if compose is not None and not isinstance(compose, str):
        raise LogError("app_compose is no text")
    return compose


def member(holder: object, name: str) -> object:
    """A member of an object, None when it or the object is absent. Raises LogError where there is no object."""
    if holder is None:
        return None
    if not isinstance(holder, dict):
        raise LogError(f"what should hold {name} is no object")
    found: object = holder.get(name)
    return found


def event_log(entry: dict[str, object]) -> list[Event] | None:
    """The log, from JSON text or an array. Raises LogError."""
    log = decoded(entry.get("event_log"), "event_log")
    if log is None:
        return None
    try:
        return msgspec.convert(log, list[Event])
    except msgspec.ValidationError as error:
        raise LogError(f"event_log cannot be read: {quoted(error)}") from error


def decoded(value: object, name: str) -> object:
    """The value of JSON text; what is no text stands for itself (wire contract 6.1). Raises LogError."""
    if not isinstance(value, str):
        return value
    try:
        document: object = msgspec.json.decode(value)
        return document
    except (msgspec.DecodeError, RecursionError) as error:
        raise LogError(f"{name} cannot be read: {quoted(error)}") from error


def logged_compose_hash(events: list[Event], rtmr3: bytes) -> bytes:
    """The payload of the one `compose-hash` event, once the log was shown to be RTMR3's. Raises LogError."""
    register = bytes(48)
    for event in events:
        if event.imr == 3:
            register = sha384(register + event.measured()).digest()
    if register != rtmr3:
        raise LogError(f"the event log replays to {register.hex()}, expected {rtmr3.hex()} in RTMR3")
    payloads = [event.event_payload for event in boot_events(events) if event.event == COMPOSE_HASH]
    if len(payloads) != 1:
        raise LogError(f"the event log has {len(payloads)} compose-hash events, expected one")
    return unhexed(payloads[0])


def boot_events(events: list[Event]) -> Iterator[Event]:
    """Runtime events before the first `system-ready`; later ones are the application's own. Raises LogError."""
    for event in events:
        if event.is_runtime and event.event == SYSTEM_READY:
            return
        if event.is_runtime:
            yield event
    raise LogError("the event log has no system-ready event")


def unhexed(digits: str) -> bytes:
    try:
        return bytes.fromhex(digits)
    except ValueError as error:
        raise LogError("the event log holds something else than hex") from error
