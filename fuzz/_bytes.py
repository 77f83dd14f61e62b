"""Choices that change honest bytes: what the fuzz targets of binary evidence start from."""


def patched(honest: bytes, choices: bytes) -> bytes:
    """The honest bytes with some replaced at the place that the first three name: offset, and how many go."""
    offset, removed = int.from_bytes(choices[:2], "little") % (len(honest) + 1), choices[2] if len(choices) > 2 else 0
    return honest[:offset] + choices[3:] + honest[offset + removed :]
