"""Server-sent events: find the frames in a byte stream, and write our own (wire contract 2.7).

Bytes are forwarded as they came; the framer runs beside the path and says which events they hold. It follows the
event-stream grammar of the WHATWG HTML standard, section 9.2, on bytes: it does not decode UTF-8, so a character that
two reads split is never touched. A stream gives the same events however it was split into reads.

It does not know what a stream of completions looks like: that `[DONE]` came is for the caller to see.
"""

import re
from typing import NamedTuple

import msgspec

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": PROCESSING\n\n"
LF = 0x0A
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class SseError(ValueError):
    """The stream cannot be framed: an event is over the limit, or bytes came after the end."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """One dispatched event: its data lines joined with LF, and its `event` field (None when absent or empty)."""

    data: bytes
    event: bytes | None = None


class Framer:
    """Finds the events of one stream. Line ends may be LF, CRLF or CR, in any mixture.

    `max_event_bytes` bounds what lies between two blank lines, comments and ignored fields included, a line end counted
    as one byte. What was counted is also all that is ever held back, so it bounds memory too.
    """

    def __init__(self, *, max_event_bytes: int = 1024 * 1024) -> None:
        self._max_event_bytes = max_event_bytes
        self._at_start = True  # a byte order mark may come
        self._after_cr = False  # the last byte was a CR: a LF now belongs to it
        self._tail = bytearray()  # the line that has not ended yet
        self._event_bytes = 0  # of the ended lines since the last blank one
        self._data: list[bytes] = []
        self._event: bytes | None = None
        self._between_events = True  # nothing is held back; false once ended
        self._ended = False

    @property
    def pending(self) -> bool:
        """Whether bytes came after the last blank line. At the end of a stream: it stopped inside an event."""
        return bool(self._event_bytes or self._tail)

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes. Raises SseError at an event over the limit; that is final."""
        lines = data.splitlines()  # of bytes: at LF, CR and CRLF, and nowhere else
        is_one_data_line = len(lines) == 2 and lines[0][:6] == b"data: " and not lines[1]
        if is_one_data_line and self._between_events and data[-1] == LF and len(data) <= self._max_event_bytes:
            self._at_start = self._after_cr = False
            return [Event(lines[0][6:])]  # nearly every read
        if self._ended:
            raise SseError("bytes after the end of the stream; expected none after end()")
        if self._at_start or self._after_cr or self._tail:
            data = self._continued(data)
            lines = data.splitlines()
        return self._take(lines, data[-1:])

    def end(self) -> list[Event]:
        """The stream is over. Always empty, as an event without its blank line is not dispatched; see `pending`."""
        self._ended = True
        self._between_events = False
        return []

    def _continued(self, data: bytes) -> bytes:
        """What to split into lines: `data` with what an earlier read left, or nothing while that is still no line."""
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if self._tail:
            self._tail += data
            if not (b"\n" in data or b"\r" in data or self._at_start):
                return b""
            data = bytes(self._tail)
            self._tail.clear()
        return self._without_mark(data) if self._at_start else data

    def _without_mark(self, data: bytes) -> bytes:
        """`data` after the byte order mark, or nothing as long as it may still become one."""
        if len(data) < len(BYTE_ORDER_MARK) and BYTE_ORDER_MARK.startswith(data):
            self._tail += data
            return b""
        self._at_start = False
        return data.removeprefix(BYTE_ORDER_MARK)

    def _take(self, lines: list[bytes], last: bytes) -> list[Event]:
        if last == b"\r":
            self._after_cr = True
        elif last and last != b"\n":
            self._tail += lines.pop()
        events: list[Event] = []
        for line in lines:
            if line:
                self._field(line)
            else:
                self._dispatch(events)
        if self._tail and not self._at_start and self._event_bytes + len(self._tail) > self._max_event_bytes:
            raise self._over_limit()
        self._between_events = not (self._event_bytes or self._tail)
        return events

    def _field(self, line: bytes) -> None:
        self._event_bytes += len(line) + 1
        if self._event_bytes > self._max_event_bytes:
            raise self._over_limit()
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif name == b"event":
            self._event = value.removeprefix(b" ")

    def _dispatch(self, events: list[Event]) -> None:
        if self._data:
            events.append(Event(b"\n".join(self._data), self._event or None))
            self._data.clear()
        self._event = None
        self._event_bytes = 0

    def _over_limit(self) -> SseError:
        return SseError(
            f"an event of more than {self._max_event_bytes} bytes; expected a blank line before that; "
            "raise max_event_bytes if the upstream is meant to send such events"
        )


LINE_END = rb"(?>\r\n|\n|\r)"
BLANK_LINE = re.compile(LINE_END + LINE_END)


class Piece(NamedTuple):
    """An event and the bytes it came in, its blank line included. `data`: its data lines joined with LF, or None."""

    raw: bytes
    data: bytes | None


class Cutter:
    """Cuts a stream into whole events as they came: joined, the pieces and `tail` are the bytes that were fed.

    For a stream that is passed on, where nothing may be put between the halves of an event. `max_event_bytes` bounds
    what is held back.
    """

    def __init__(self, *, max_event_bytes: int = 2 * 1024 * 1024) -> None:
        self._max_event_bytes = max_event_bytes
        self._tail = bytearray()
        self._is_at_start = True  # a byte order mark may come

    @property
    def tail(self) -> bytes:
        """What came after the last blank line. At the end of a stream: it stopped inside an event."""
        return bytes(self._tail)

    def feed(self, data: bytes) -> list[Piece]:
        """The events that `data` completes. Raises SseError at an event over the limit; that is final."""
        pieces: list[Piece] = []
        begin = 0
        if self._tail:
            self._tail += data
            seen = max(0, len(self._tail) - len(data) - 3)  # a blank line may be split, and CRLF in it
            data = bytes(self._tail) if has_blank_line(self._tail, seen) else b""
            if not data and len(self._tail) <= self._max_event_bytes:
                return pieces
        for end in blank_line_ends(data):
            raw = data[begin:end]
            pieces.append(Piece(raw, self._data_of(raw)))
            begin = end
        if data or not self._tail:
            self._tail = bytearray(data[begin:])
        is_long = len(data) > self._max_event_bytes and any(len(raw) > self._max_event_bytes for raw, _ in pieces)
        if is_long or len(self._tail) > self._max_event_bytes:
            raise SseError(f"an event of more than {self._max_event_bytes} bytes; expected a blank line before that")
        return pieces

    def _data_of(self, raw: bytes) -> bytes | None:
        if self._is_at_start:
            self._is_at_start = False
            raw = raw.removeprefix(BYTE_ORDER_MARK)
        return data_of(raw)


def has_blank_line(data: bytearray, start: int) -> bool:
    return BLANK_LINE.search(data, start) is not None


def blank_line_ends(data: bytes) -> list[int]:
    """Where each blank line ends. Without a CR there is one kind of them, which is found much faster."""
    if b"\r" in data:
        return [found.end() for found in BLANK_LINE.finditer(data)]
    ends: list[int] = []
    at = data.find(b"\n\n")
    while at >= 0:
        ends.append(at + 2)
        at = data.find(b"\n\n", at + 2)
    return ends


def data_of(raw: bytes) -> bytes | None:
    """The data of one event: its data lines joined with LF; None when it has none."""
    lines = raw.splitlines()
    if len(lines) == 2 and lines[0][:6] == b"data: ":
        return lines[0][6:]  # nearly every event
    found = [value.removeprefix(b" ") for name, _, value in (line.partition(b":") for line in lines) if name == b"data"]
    return b"\n".join(found) if found else None


def frame(data: bytes) -> bytes:
    """One event as we send it: LF only (wire contract 2.7). Raises SseError when `data` holds a CR or LF."""
    if b"\n" in data or b"\r" in data:
        raise SseError("event data with a line end in it; expected compact JSON on one line")
    return b"data: " + data + b"\n\n"


def error_tail(message: str, type: str, code: int) -> bytes:
    """What ends a stream that broke after its first byte: blank line, error event, `[DONE]` (wire contract 2.7).

    `code` is the numeric HTTP status. The blank line closes an event that was left half-written.
    """
    error = {"message": message, "type": type, "code": code, "param": None}
    return b"\n\n" + frame(msgspec.json.encode({"error": error})) + DONE
