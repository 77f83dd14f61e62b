"""A second reader of HTTP/1.1 responses, which has all bytes and takes nothing that RFC 9112 does not spell out.

It is the measure for what the channel makes of a stream: independent of its parser, and as slow as it likes.
"""

import re
from dataclasses import dataclass

STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n]*)?\r\n")  # no one reads the reason
FIELD = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t ]*((?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?)[\t ]*\r\n"
)
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]+)((?:;[\t !-~\x80-\xff]*)?)\r\n")

Fields = list[tuple[bytes, bytes]]


class Broken(Exception):  # not an error of ours: what the reader finds
    """Not a response, or not all of one."""


@dataclass(frozen=True)
class Read:
    """A whole response. `rest` is what followed it; `by_close`: only the end of the stream ended it."""

    status: int
    headers: Fields
    body: bytes
    rest: bytes
    by_close: bool


def read_response(stream: bytes) -> Read:
    """The response at the start of a stream that ended. Raises Broken."""
    while True:
        version, status, fields, stream = read_head(stream)
        if status == 101:
            raise Broken("a switch of protocols")
        lengths = [value for name, value in fields if name == b"content-length"]
        encodings = [value.lower() for name, value in fields if name == b"transfer-encoding"]
        if status >= 200:
            break
        if lengths or encodings:
            raise Broken("an interim response with a body")
    if encodings and (version == b"0" or encodings != [b"chunked"] or lengths):
        raise Broken("an encoding that is not chunked, or with a length")
    if lengths and (len(lengths) > 1 or not re.fullmatch(rb"[0-9]+", lengths[0])):
        raise Broken("a length that is none")
    if status in (204, 304):
        return Read(status, fields, b"", stream, by_close=False)
    if encodings:
        body, rest = read_chunks(stream)
        return Read(status, fields, body, rest, by_close=False)
    if lengths:
        length = int(lengths[0])
        if len(stream) < length:
            raise Broken("cut")
        return Read(status, fields, stream[:length], stream[length:], by_close=False)
    return Read(status, fields, stream, b"", by_close=True)


def read_head(stream: bytes) -> tuple[bytes, int, Fields, bytes]:
    line = STATUS_LINE.match(stream)
    if line is None:
        raise Broken("no status line")
    fields, rest = read_fields(stream[line.end() :])
    return line[1], int(line[2]), fields, rest


def read_fields(stream: bytes) -> tuple[Fields, bytes]:
    fields: Fields = []
    while not stream.startswith(b"\r\n"):
        field = FIELD.match(stream)
        if field is None:
            raise Broken("no header line")
        fields.append((field[1].lower(), field[2]))
        stream = stream[field.end() :]
    return fields, stream[2:]


def read_chunks(stream: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        line = CHUNK_LINE.match(stream)
        if line is None:
            raise Broken("no chunk line")
        size, stream = int(line[1], 16), stream[line.end() :]
        if size == 0:
            trailers, rest = read_fields(stream)
            if any(name in (b"content-length", b"transfer-encoding") for name, _ in trailers):
                raise Broken("framing in a trailer")
            return body, rest
        if stream[size : size + 2] != b"\r\n":
            raise Broken("no line end after a chunk")
        body, stream = body + stream[:size], stream[size + 2 :]
