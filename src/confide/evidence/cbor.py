"""A strict reader for the little CBOR that dstack's images carry (RFC 8949): maps, text, bytes, unsigned integers.

Deterministic encoding is demanded of lengths and integers (4.2.1): the shortest form, no indefinite lengths. A key
stands once in its map, and nothing follows the one item. So no two byte strings are read as one value, up to the order
of a map's members. Everything else (tags, floats, arrays, negative numbers, simple values) is refused.
"""

from collections.abc import Mapping

UNSIGNED, BYTES, TEXT, MAP = 0, 2, 3, 5  # major types
MAX_DEPTH = 8
WIDTHS = {24: 1, 25: 2, 26: 4, 27: 8}  # additional information: bytes of the argument that follow

Value = int | bytes | str | Mapping[str, "Value"]


class CborError(ValueError):
    """The bytes are not such CBOR. The text is for people."""


def decode(data: bytes) -> Value:
    """The one item that `data` is. Raises CborError."""
    value, end = read(data, 0, 0)
    if end != len(data):
        raise CborError(f"{len(data) - end} bytes follow the CBOR item")
    return value


def read(data: bytes, start: int, depth: int) -> tuple[Value, int]:
    """The item at `start`, and where it ends."""
    major, argument, offset = head(data, start)
    if major == UNSIGNED:
        return argument, offset
    if major in (BYTES, TEXT):
        content = take(data, offset, argument)
        return content if major == BYTES else text(content), offset + argument
    if major != MAP:
        raise CborError(f"CBOR major type {major} at byte {start}, expected a map, text, bytes or an unsigned integer")
    if depth == MAX_DEPTH:
        raise CborError(f"CBOR maps are nested deeper than {MAX_DEPTH}")
    return read_map(data, offset, argument, depth + 1)


def read_map(data: bytes, offset: int, size: int, depth: int) -> tuple[Mapping[str, Value], int]:
    members: dict[str, Value] = {}
    for _ in range(size):  # ends at the first member that is not there, whatever size is claimed
        key, offset = read(data, offset, depth)
        if not isinstance(key, str):
            raise CborError("a key of a CBOR map is no text")
        if key in members:
            raise CborError("a key stands twice in a CBOR map")
        members[key], offset = read(data, offset, depth)
    return members, offset


def head(data: bytes, start: int) -> tuple[int, int, int]:
    """Major type and argument of the item at `start`, and where its content begins."""
    (initial,) = take(data, start, 1)
    major, information = initial >> 5, initial & 0x1F
    if information < 24:
        return major, information, start + 1
    if information not in WIDTHS:
        raise CborError(f"CBOR additional information {information} at byte {start}, expected a definite length")
    width = WIDTHS[information]
    argument = int.from_bytes(take(data, start + 1, width), "big")
    if argument < (24 if width == 1 else 1 << 4 * width):
        raise CborError(f"the CBOR number at byte {start} is not in its shortest form")
    return major, argument, start + 1 + width


def take(data: bytes, start: int, length: int) -> bytes:
    if length > len(data) - start:
        raise CborError(f"cut short: CBOR at byte {start} needs {length} bytes, and {len(data) - start} are left")
    return data[start : start + length]


def text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise CborError("a CBOR text is not UTF-8") from None
