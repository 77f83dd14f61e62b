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


Headers = Sequence[tuple[bytes, bytes]]


class RequestHeads:
    """Heads of requests to one authority. A caller that passes one and the same tuple of headers again is spared what
    it takes to check and join them.
    """

    def __init__(self, authority: bytes) -> None:
        self._authority = authority
        self._last: tuple[bytes, bytes, Headers] = (b"", b"", ())
        self._last_start = b""

    def head(self, method: bytes, path: bytes, headers: Headers, length: int) -> bytes:
        """Request line, headers and blank line. Raises ValueError for what would not be one request with one body."""
        last_method, last_path, last_headers = self._last
        if headers is last_headers and method == last_method and path == last_path:
            start = self._last_start
        else:
            start = head_start(method, path, self._authority, headers)
            if type(headers) is tuple:  # a list may hold others the next time
                self._last, self._last_start = (method, path, headers), start
        if length or method != b"GET":
            return start + b"content-length: %d\r\n\r\n" % length
        return start + b"\r\n"


def head_start(method: bytes, path: bytes, authority: bytes, headers: Headers) -> bytes:
    """Request line and headers without those of the body. Raises ValueError as above."""
    start = request_line(method, path, authority)
    for name, value in headers:
        start += field_start(name) + value + b"\r\n"
    line_count = 2 + len(headers)
    if start.count(b"\n") != line_count or start.count(b"\r") != line_count or start.find(b"\0") >= 0:
        raise ValueError("a request header value holds CR, LF or NUL")
    return start


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
