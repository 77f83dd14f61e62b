"""Which application was measured? (wire contract 9.1, step 6; tee-evidence 3.5)

The report shows the text of the application, `app_compose`; the verified quote holds its SHA-256, either in
`mr_config_id` or in the event log behind RTMR3. A pass says what runs. Whether that is good is not decided here.
"""

from hashlib import sha256

from confide.evidence.dstack_boot import COMPOSE_HASH
from confide.evidence.event_log import RUNTIME_REGISTER, EventLog, LogError, read_event_log
from confide.evidence.mr_config import form_1
from confide.evidence.quote import TdxQuote
from confide.evidence.result import Check, failed, passed, skipped
from confide.evidence.tdx import QUOTE, TdxResult
from confide.protocol.canonical import MAX_DOCUMENT_BYTES, DocumentError, parse_json

SOFTWARE = "software"


class SoftwareError(ValueError):
    """The report's account of the software cannot be read. The text is for people."""


def check_software(entry: dict[str, object], tdx: TdxResult) -> Check:
    """Compare `app_compose` in a foreign legacy attestation with what the verified quote measured."""
    try:
        return check_shown(SOFTWARE, app_compose(entry), entry.get("event_log"), tdx)
    except (SoftwareError, LogError) as error:
        return failed(SOFTWARE, str(error))


def check_compose(name: str, compose: str | None, log: str | None, tdx: TdxResult) -> Check:
    """The same for the evidence of an ACI report (wire contract 9.3, step 4). `log`: JSON text."""
    try:
        return check_shown(name, compose, log, tdx)
    except (SoftwareError, LogError) as error:
        return failed(name, str(error))


def check_shown(name: str, compose: str | None, log: object, tdx: TdxResult) -> Check:
    """Raises SoftwareError or LogError."""
    if compose is None:
        return skipped(name, "the report shows no app_compose")
    if tdx.quote is None or not tdx.has_passed({QUOTE}):
        return skipped(name, "the quote did not verify, so its measurements prove nothing")
    events = None if log is None else read_event_log(log)
    return compared(name, compose_sha256(compose), tdx.quote, events)


def compose_sha256(compose: str) -> bytes:
    """SHA-256 of the text exactly as served, 32 bytes. Raises SoftwareError."""
    try:
        return sha256(compose.encode()).digest()
    except UnicodeEncodeError:
        raise SoftwareError("app_compose holds half of a surrogate pair") from None


def compared(name: str, compose_hash: bytes, quote: TdxQuote, events: EventLog | None) -> Check:
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


def measured(compose_hash: bytes, quote: TdxQuote, events: EventLog | None) -> dict[str, tuple[bytes, bytes]]:
    """What each register that names an application holds, and what it has to hold. Raises LogError."""
    registers = {}
    if quote.mr_config_id[0] == 1:
        registers["mr_config_id"] = (quote.mr_config_id, form_1(compose_hash))
    if events is not None:
        registers["RTMR3"] = (logged_compose_hash(events, quote.rtmr3), compose_hash)
    return registers


def logged_compose_hash(events: EventLog, rtmr3: bytes) -> bytes:
    """The payload of the one `compose-hash` event, once the log was shown to be RTMR3's. Raises LogError."""
    register = events.registers[RUNTIME_REGISTER]
    if register != rtmr3:
        raise LogError(f"the event log replays to {register.hex()}, expected {rtmr3.hex()} in RTMR3")
    return events.payload(COMPOSE_HASH)


def app_compose(entry: dict[str, object]) -> str | None:
    """`info.tcb_info.app_compose`, None when a part of that is absent (wire contract 6.1). Raises SoftwareError."""
    info = member(entry, "info")
    tcb_info = member(info, "tcb_info")
    compose = member(decoded(tcb_info, "tcb_info"), "app_compose")
    if compose is not None and not isinstance(compose, str):
        raise SoftwareError("app_compose is no text")
    return compose


def member(holder: object, name: str) -> object:
    """A member of an object, None when it or the object is absent. Raises SoftwareError where there is no object."""
    if holder is None:
        return None
    if not isinstance(holder, dict):
        raise SoftwareError(f"what should hold {name} is no object")
    found: object = holder.get(name)
    return found


def decoded(value: object, name: str) -> object:
    """The value of JSON text; what is no text stands for itself (wire contract 6.1). Raises SoftwareError."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value.encode(errors="surrogatepass"), what=name, most_bytes=MAX_DOCUMENT_BYTES)
    except DocumentError as error:
        raise SoftwareError(str(error)) from None
