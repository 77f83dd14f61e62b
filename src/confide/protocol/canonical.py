"""Documents of our own: how they are read, written in canonical form, and hashed (wire contract 0.2, RFC 8785).

An ACI document has ASCII member names and integers in ±(2^53−1). For such a value the canonical form of RFC 8785 is
compact JSON with the members of every object sorted by name; texts are written as UTF-8. Anything else is refused
before it is hashed, never rounded: two programs that round differently would hash differently.
"""

import base64
import binascii
import hashlib
import json
import math
import re
from collections.abc import Collection
from typing import Any, NoReturn, TypeVar

import msgspec

MAX_INTEGER = 2**53 - 1
MAX_DEPTH = 100  # of objects and arrays; the deepest document of the contract has 6
MAX_DOCUMENT_BYTES = 4 * 1024 * 1024

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
BARE_DIGEST = re.compile(r"[0-9a-f]{64}")
SURROGATE = re.compile("[\ud800-\udfff]")
PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

ENCODER = msgspec.json.Encoder(order="sorted")

T = TypeVar("T")


class DocumentError(ValueError):
    """A document is not what the wire contract says it is. The text is for people and names the member."""


def canonical(value: object) -> bytes:
    """The canonical form of a value as JSON parsing gives it (RFC 8785 under wire contract 0.2, rule 6).

    Raises DocumentError for a float, a member name that is not ASCII, an integer out of range, half of a surrogate
    pair, or nesting deeper than 100.
    """
    check(value, "", 0)
    try:
        return ENCODER.encode(value)
    except UnicodeEncodeError:
        raise DocumentError("a text holds half of a surrogate pair, which has no form in UTF-8") from None


def check(value: object, where: str, depth: int) -> None:
    """Raise DocumentError unless `value` has a canonical form. `where`: its path, for the message."""
    if value is None or isinstance(value, str | bool):
        return
    if isinstance(value, dict | list | tuple) and depth > MAX_DEPTH:
        raise DocumentError(f"objects and arrays are nested deeper than {MAX_DEPTH}")
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise DocumentError(f"{where or 'the value'}: an integer beyond 2^53-1 cannot be hashed")
    elif isinstance(value, dict):
        for name, member in value.items():
            if not isinstance(name, str) or not name.isascii():
                raise DocumentError(f"{where or 'the document'}: a member name is not ASCII")
            # The message may reach a terminal: a name that could steer one is not repeated.
            shown = name if PLAIN_NAME.fullmatch(name) else "…"
            check(member, f"{where}.{shown}" if where else shown, depth + 1)
    elif isinstance(value, list | tuple):
        for index, member in enumerate(value):
            check(member, f"{where}[{index}]", depth + 1)
    else:
        raise DocumentError(f"{where or 'the value'}: {type(value).__name__} cannot be hashed, expected integers only")


def digest_of(data: bytes) -> str:
    """The digest string of these bytes: `sha256:` and 64 lower-case hex digits (wire contract 0.2, rule 1)."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_text(sha256: bytes) -> str:
    """The digest string for 32 bytes that are a SHA-256 already. Raises ValueError for another length."""
    if len(sha256) != 32:
        raise ValueError(f"a SHA-256 of 32 bytes expected, got {len(sha256)}")
    return f"sha256:{sha256.hex()}"


def parse_document(raw: bytes, *, what: str, most_bytes: int = MAX_DOCUMENT_BYTES) -> dict[str, Any]:
    """The JSON object in `raw`, at most `most_bytes` of UTF-8. `what` names it in messages.

    Raises DocumentError, also for what `parse_json` refuses.
    """
    value = parse_json(raw, what=what, most_bytes=most_bytes)
    if not isinstance(value, dict):
        raise DocumentError(f"{what} is not a JSON object")
    return value


def parse_json(raw: bytes, *, what: str, most_bytes: int = MAX_DOCUMENT_BYTES) -> object:
    """The JSON value in `raw`, at most `most_bytes` of UTF-8. `what` names it in messages.

    Raises DocumentError; also for what two readers may take for two documents or one of them cannot hold: a member name
    that stands twice in one object, half of a surrogate pair, a number that reads as infinity, nesting deeper than 100.
    """
    if len(raw) > most_bytes:
        raise DocumentError(f"{what} is larger than {most_bytes} bytes")
    try:
        value = json.loads(
            raw.decode(), object_pairs_hook=without_duplicates, parse_constant=refuse_constant, parse_float=finite
        )
    except DocumentError as error:
        raise DocumentError(f"{what}: {error}") from None
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError too; their texts quote the document
        raise DocumentError(f"{what} is not JSON") from None
    check_readable(value, what)
    return value


def check_readable(document: object, what: str) -> None:
    """Raise DocumentError unless every text has a form in UTF-8 and nothing is nested deeper than 100."""
    level: list[object] = [document]
    depth = 0
    while level:
        below: list[object] = []
        for value in level:
            if isinstance(value, dict | list):
                if depth > MAX_DEPTH:
                    raise DocumentError(f"{what}: objects and arrays are nested deeper than {MAX_DEPTH}")
                below += value
                below += value.values() if isinstance(value, dict) else ()
            elif isinstance(value, str) and not value.isascii() and SURROGATE.search(value):
                raise DocumentError(f"{what}: a text holds half of a surrogate pair")
        level, depth = below, depth + 1


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise DocumentError("a member name stands twice in one object")
    return members


def refuse_constant(_: str) -> NoReturn:
    raise DocumentError("NaN and Infinity are not JSON")


def finite(digits: str) -> float:
    """A number that can be written again, which infinity cannot. Raises DocumentError."""
    number = float(digits)
    if math.isinf(number):
        raise DocumentError("a number is beyond what can be read")
    return number


def typed(document: object, kind: type[T], *, what: str) -> T:
    """The members of a parsed document as a struct. Raises DocumentError naming the member."""
    try:
        return msgspec.convert(document, kind, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise DocumentError(f"{what}: {' '.join(str(error).split())[:200]}") from None
    except UnicodeEncodeError:  # msgspec, where it looks whether a text might be the number that it expected
        raise DocumentError(f"{what}: a text holds half of a surrogate pair") from None


def of_known_types(entries: object, types: Collection[str]) -> object:
    """The entries of an array, those with a `type` outside `types` cut down to that: their other members are free."""
    if not isinstance(entries, list):
        return entries
    return [
        {"type": entry.get("type")} if isinstance(entry, dict) and entry.get("type") not in types else entry
        for entry in entries
    ]


def unbase64(text: str, *, what: str) -> bytes:
    """The bytes of base64 with padding (RFC 4648 4). Raises DocumentError naming `what`.

    Bits after the last byte must be zero, so that no two texts stand for the same bytes.
    """
    try:
        decoded = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise DocumentError(f"{what} is not base64") from None
    if base64.b64encode(decoded).decode() != text:
        raise DocumentError(f"{what} is not base64")
    return decoded
