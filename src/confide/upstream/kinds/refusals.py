"""What an engine answers instead of an answer, in our terms (wire contract 4).

What is wrong with the request is the client's to know, in the engine's words where these are an error of our shape.
What is wrong between us and the engine (its key, its limits, its model names) is not: that is ours to repair. No host,
no address, no long hexadecimal name goes through.
"""

import email.utils
import re
import time
from collections.abc import Iterable

import msgspec

from confide.errors import LimitReached, NotReady, RefusedByUpstream, UpstreamFailed, UpstreamTimeout, WireError
from confide.upstream.base import Unserved

REFUSAL_MOST_BYTES = 64 * 1024
RETRY_AFTER_MOST_S = 3600
FAILED = "the model failed while it answered; try again"
TOO_SLOW = "the model did not answer in time"
BUSY = "the model has too much to do; try again later"
NOT_TAKEN = "the model could not take the request"
OF_THE_CLIENT = frozenset({400, 409, 413, 415, 422, 451})

# By shape, as nobody can list the names of somebody else's machines: addresses, hosts, UUIDs, long hexadecimal names.
NAMES_A_BACKEND = re.compile(
    r"[a-z][a-z0-9+.-]*://|\b\d{1,3}(?:\.\d{1,3}){3}\b|\b(?:[a-z0-9-]+\.)+(?:com|net|org|io|ai|dev|local|internal|lan|svc)\b"
    r"|\blocalhost\b|[0-9a-f]{8}-[0-9a-f]{4}-|\b[0-9a-f]{16,}\b",
    re.IGNORECASE,
)


class OurError(msgspec.Struct, forbid_unknown_fields=True):
    """The four members of our envelope, all of them."""

    message: str
    type: str
    code: str | None
    param: str | None


class OurEnvelope(msgspec.Struct, forbid_unknown_fields=True):
    error: OurError


class AnyError(msgspec.Struct):
    message: str | None = None
    param: str | None = None


class AnyEnvelope(msgspec.Struct):
    """As OpenAI writes it, or with the members at the top as older engines do."""

    error: AnyError | str | None = None
    message: str | None = None


def refused(
    status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes, *, is_aliased: bool
) -> WireError | Unserved:
    """The failure to raise for a response that is no 200. `is_aliased`: the engine has another name for the model,
    which its words may hold.
    """
    if status in OF_THE_CLIENT:
        return of_the_client(status, body, is_aliased=is_aliased)
    retry_after_s = read_retry_after(headers)
    reason = f"status {status}"
    if status == 429:
        return Unserved(LimitReached(BUSY, retry_after_s=retry_after_s or 1), reason)
    if status in (408, 504):
        return Unserved(UpstreamTimeout(TOO_SLOW, retry_after_s=retry_after_s), reason)
    if status == 503:
        return Unserved(NotReady(BUSY, retry_after_s=retry_after_s), reason)
    return Unserved(UpstreamFailed(FAILED), reason)


def of_the_client(status: int, body: bytes, *, is_aliased: bool) -> RefusedByUpstream:
    """The engine's own body where it is in our shape and names nothing; else its words, or ours."""
    try:
        ours = msgspec.json.decode(body, type=OurEnvelope).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        ours = None
    if ours is not None and not is_aliased and is_anonymous(body.decode()):
        return RefusedByUpstream(ours.message, status=status, raw=body, param=ours.param)
    message, param = words_of(body)
    if message is None or is_aliased or not is_anonymous(message + (param or "")):
        return RefusedByUpstream(NOT_TAKEN, status=status)
    return RefusedByUpstream(message, status=status, param=param)


def words_of(body: bytes) -> tuple[str | None, str | None]:
    """Message and parameter of an error in whichever of the usual shapes."""
    try:
        envelope = msgspec.json.decode(body, type=AnyEnvelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, None
    match envelope.error:
        case AnyError(message=message, param=param):
            return message, param
        case str(message):
            return message, None
    return envelope.message, None


def is_anonymous(text: str) -> bool:
    return NAMES_A_BACKEND.search(text) is None


def read_retry_after(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """Seconds, from a number or a date; None where there is none that can be read."""
    value = next((value for name, value in headers if name == b"retry-after"), b"").decode("latin-1").strip()
    if value.isascii() and value.isdigit():
        return max(1, min(int(value[:6]), RETRY_AFTER_MOST_S))
    try:
        at = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(1, min(int(at - time.time()), RETRY_AFTER_MOST_S))
