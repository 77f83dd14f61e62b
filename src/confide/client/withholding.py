"""What of a response may be passed on before it is proven, sans-IO.

A stream is passed on event by event as it comes, but for its end: from the event that tells a reader that the answer is
complete, or broke, nothing leaves until the receipt over the whole stream was checked. So whoever reads to the end
never takes a stream for complete that is not proven. A `finish_reason` is not the end: several choices have one each.
"""

import hashlib
import json
import re

from confide.errors import VerificationError
from confide.protocol.sse import BYTE_ORDER_MARK

MAX_EVENT_BYTES = 16 * 1024 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024

# A blank line: two line ends. Atomic, or CR LF would count as two of them.
BLANK_LINE = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r|\n)")

# The events that end a stream (wire contract 2.7, 3.4, 3.5); `[DONE]` ends the others.
LAST_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed", "message_stop", "error"})
# What such an event cannot do without; its names may be written with escapes in them.
MAY_BE_LAST = re.compile(rb"\[DONE\]|response\.(?:completed|incomplete|failed)|message_stop|error|\\u")
LONGEST_BLANK_LINE = 4


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
        self._open = bytearray()  # an event that is not complete
        self._held = bytearray()
        self._is_last = False
        self._after_cr = False  # the last event ended in a CR: a LF now belongs to it

    def feed(self, data: bytes) -> bytes:
        """What may be passed on, now that `data` came: whole events. Raises VerificationError at one over 16 MiB."""
        if self._is_last:
            self._hold(data)
            return b""
        rest = b"\n" if self._after_cr and data[:1] == b"\n" else b""
        self._after_cr = self._after_cr and not data
        # What is open was looked through when it came, but for a blank line that `data` makes whole.
        seen = max(0, len(self._open) - LONGEST_BLANK_LINE + 1)
        self._open += data[len(rest) :]
        done = self._complete(seen)
        if len(self._open) > MAX_EVENT_BYTES:
            raise too_large("event of the stream", MAX_EVENT_BYTES)
        return rest + done

    @property
    def held(self) -> bytes:
        """What waits for the proof, from the last event on; also an event that never became complete."""
        return bytes(self._held) + self._open

    def _complete(self, seen: int) -> bytes:
        """Take the whole events out of what is open, up to the last one. `seen`: no blank line begins before that."""
        waiting, start = self._open, 0
        for found in BLANK_LINE.finditer(waiting, seen):
            if is_last(bytes(waiting[start : found.end()])):
                self._is_last = True
                self._open = bytearray()
                self._hold(waiting[start:])
                return bytes(waiting[:start])
            start = found.end()
        done = bytes(waiting[:start])
        del waiting[:start]
        if not waiting and done:
            self._after_cr = done.endswith(b"\r")
        return done

    def _hold(self, data: bytes | bytearray) -> None:
        self._held += data
        if len(self._held) > MAX_BODY_BYTES:
            raise too_large("end of the stream", MAX_BODY_BYTES)


def is_last(event: bytes) -> bool:
    """Whether a reader of this event, bytes up to its blank line, takes the answer for complete or broken.

    Data that may say so and that cannot be read counts as the last: readers differ in what they make of it.
    """
    if MAY_BE_LAST.search(event) is None:
        return False
    name, data = "", b""
    for line in event.removeprefix(BYTE_ORDER_MARK).splitlines():  # of bytes: at LF, CR and CRLF, and nowhere else
        field, _, value = line.partition(b":")
        if field == b"event":
            name = value.removeprefix(b" ").decode(errors="replace")
        elif field == b"data":
            data += value.removeprefix(b" ") + b"\n"
    if data.lstrip().startswith(b"[DONE]") or name in LAST_EVENTS:
        return True
    return bool(data) and says_last(data)


def says_last(data: bytes) -> bool:
    """Whether the data of an event is an error, or has the type of a last event. Read as the SDKs read it."""
    try:
        said = json.loads(data.decode())
    except (ValueError, RecursionError):
        return True
    if not isinstance(said, dict):
        return False
    kind = said.get("type")
    return (isinstance(kind, str) and kind in LAST_EVENTS) or said.get("error") is not None


def too_large(what: str, limit_bytes: int) -> VerificationError:
    return VerificationError(
        f"receipt-4: got a {what} of more than {limit_bytes} bytes, expected less: it cannot be held back until proven",
        check="receipt-4",
        remedy="Do not rely on this answer; ask for a shorter one.",
    )
