"""What of a response may be passed on before it is proven, sans-IO.

A stream is passed on event by event as it comes, but for its end: from the event that tells a reader that the answer is
complete, or broke, nothing leaves until the receipt over the whole stream was checked. So a reader never takes a stream
for complete that is not proven.
"""

import hashlib
import re

import msgspec

from confide.errors import VerificationError

MAX_EVENT_BYTES = 16 * 1024 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024

# A blank line: two line ends. Atomic, or CR LF would count as two of them.
BLANK_LINE = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r|\n)")

# The events that end a stream (wire contract 2.7, 3.4, 3.5); `[DONE]` ends the others.
LAST_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed", "message_stop", "error"})
MAY_BE_LAST = re.compile(rb"\[DONE\]|response\.(?:completed|incomplete|failed)|message_stop|error")


class Named(msgspec.Struct, frozen=True):
    """The members of an event's data that say what it is."""

    type: str = ""
    error: msgspec.Raw | None = None


class Body:
    """Hashes a response body as it comes; of a buffered one the parts are kept until it is proven."""

    def __init__(self, *, keep: bool) -> None:
        """`keep`: hold the whole body, for the bundle or because nothing may leave before the end."""
        self._hash = hashlib.sha256()
        self._kept: list[bytes] | None = [] if keep else None
        self._size = 0

    def add(self, data: bytes) -> None:
        """The next bytes. Raises VerificationError where more than 64 MiB would have to be kept."""
        self._hash.update(data)
        self._size += len(data)
        if self._kept is not None:
            if self._size > MAX_BODY_BYTES:
                raise too_large("response", MAX_BODY_BYTES)
            self._kept.append(data)

    @property
    def sha256(self) -> bytes:
        """32 bytes over what came so far."""
        return self._hash.digest()

    @property
    def kept(self) -> bytes | None:
        """The body, None where it was not to be kept."""
        return None if self._kept is None else b"".join(self._kept)


class Withholding:
    """Splits a stream into what may be passed on and what has to wait."""

    def __init__(self) -> None:
        self._open = b""  # an event that is not complete
        self._held = bytearray()
        self._is_last = False

    def feed(self, data: bytes) -> bytes:
        """What may be passed on, now that `data` came: whole events. Raises VerificationError at one over 16 MiB."""
        if self._is_last:
            self._hold(data)
            return b""
        self._open += data
        done = self._complete()
        if len(self._open) > MAX_EVENT_BYTES:
            raise too_large("event of the stream", MAX_EVENT_BYTES)
        return done

    @property
    def held(self) -> bytes:
        """What waits for the proof, from the last event on; also an event that never became complete."""
        return bytes(self._held) + self._open

    def _complete(self) -> bytes:
        """Take the whole events out of what is open, up to the last one."""
        waiting, start = self._open, 0
        for found in BLANK_LINE.finditer(waiting):
            if is_last(waiting[start : found.end()]):
                self._is_last = True
                self._open = b""
                self._hold(waiting[start:])
                return waiting[:start]
            start = found.end()
        self._open = waiting[start:]
        return waiting[:start]

    def _hold(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > MAX_BODY_BYTES:
            raise too_large("end of the stream", MAX_BODY_BYTES)


def is_last(event: bytes) -> bool:
    """Whether a reader of this event, bytes up to its blank line, takes the answer for complete or broken."""
    if MAY_BE_LAST.search(event) is None:
        return False
    name, data = "", b""
    for line in event.splitlines():  # of bytes: at LF, CR and CRLF, and nowhere else
        field, _, value = line.partition(b":")
        if field == b"event":
            name = value.removeprefix(b" ").decode(errors="replace")
        elif field == b"data":
            data += value.removeprefix(b" ") + b"\n"
    if data.lstrip().startswith(b"[DONE]") or name in LAST_EVENTS:
        return True
    try:
        said = msgspec.json.decode(data, type=Named)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return said.type in LAST_EVENTS or (said.error is not None and bytes(said.error) != b"null")


def too_large(what: str, limit_bytes: int) -> VerificationError:
    return VerificationError(
        f"receipt-4: got a {what} of more than {limit_bytes} bytes, expected less: it cannot be held back until proven",
        check="receipt-4",
        remedy="Do not rely on this answer; ask for a shorter one.",
    )
