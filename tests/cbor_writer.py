"""CBOR in its deterministic form (RFC 8949 4.2.1), written for tests: maps, text, bytes, unsigned integers."""

from confide.evidence.cbor import Value


def head(major: int, argument: int) -> bytes:
    """Major type and argument in the shortest form."""
    if argument < 24:
        return bytes((major << 5 | argument,))
    for information, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << 8 * width:
            return bytes((major << 5 | information,)) + argument.to_bytes(width, "big")
    raise ValueError(argument)


def encoded(value: Value) -> bytes:
    """The members of a map in their own order."""
    if isinstance(value, int):
        return head(0, value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    return head(5, len(value)) + b"".join(encoded(name) + encoded(member) for name, member in value.items())
