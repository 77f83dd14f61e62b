"""Fuzz the CBOR of images: any bytes are refused with CborError or are the one spelling of what was read."""

import sys

from confide.evidence.cbor import CborError, Value, decode
from confide.evidence.osimage import ImageError, read_measurement


def fuzz_one(data: bytes) -> None:
    """One input: as CBOR, and as an image's measurement."""
    try:
        value = decode(data)
    except CborError:
        value = None
    if value is not None and written(value) != data:
        raise AssertionError("two spellings of one value were read")
    try:
        measurement = read_measurement(data)
    except ImageError:
        return
    if value is None or not measurement.mr_tds or len(measurement.rtmr1) != 48 or len(measurement.rtmr2) != 48:
        raise AssertionError("a measurement of nothing was read")


def head(major: int, argument: int) -> bytes:
    """Major type and argument in the shortest form."""
    if argument < 24:
        return bytes((major << 5 | argument,))
    width = next(width for width in (1, 2, 4, 8) if argument < 1 << 8 * width)
    return bytes((major << 5 | 23 + width.bit_length(),)) + argument.to_bytes(width, "big")


def written(value: Value) -> bytes:
    """The value in its deterministic form, the members of a map in their own order."""
    if isinstance(value, int):
        return head(0, value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    return head(5, len(value)) + b"".join(written(name) + written(member) for name, member in value.items())


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
