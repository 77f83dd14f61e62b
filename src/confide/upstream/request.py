"""The bytes before a request's body. The channel's own headers are Host and what frames the body."""

import functools
import re
from collections.abc import Sequence

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
TARGET = re.compile(rb"/[!-~]*")
OWN_HEADERS = {
    b"connection",
    b"content-length",
    b"expect",
    b"host",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}


def request_head(
    method: bytes, path: bytes, authority: bytes, headers: Sequence[tuple[bytes, bytes]], length: int
) -> bytes:
    """Request line, headers and blank line. Raises ValueError for what would not be one request with one body."""
    head = request_line(method, path, authority)
    for name, value in headers:
        head += field_start(name) + value + b"\r\n"
    if length or method != b"GET":
        head += b"content-length: %d\r\n" % length
    line_count = 2 + len(headers) + (length > 0 or method != b"GET")
    if head.count(b"\n") != line_count or head.count(b"\r") != line_count or head.find(b"\0") >= 0:
        raise ValueError("a request header value holds CR, LF or NUL")
    return head + b"\r\n"


@functools.lru_cache(maxsize=256)
def request_line(method: bytes, path: bytes, authority: bytes) -> bytes:
    """The first line, and the Host line."""
    if method in (b"HEAD", b"CONNECT"):
        raise ValueError("no request by HEAD or CONNECT: the response has no body, whatever its headers say")
    if not TOKEN.fullmatch(method) or not TARGET.fullmatch(path):
        raise ValueError("the method or path of a request holds a character that HTTP does not allow there")
    return b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method, path, authority)


@functools.lru_cache(maxsize=256)
def field_start(name: bytes) -> bytes:
    """`name` and its colon, once it is known to be a name that a caller may set."""
    if not TOKEN.fullmatch(name) or name.lower() in OWN_HEADERS:
        raise ValueError("a request header name that HTTP does not allow, or that the channel sets itself")
    return name + b": "
