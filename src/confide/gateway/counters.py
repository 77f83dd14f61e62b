"""Numbers that processes show each other: one for each worker, which alone writes it, in memory that all share."""

import mmap

COUNTER_BYTES = 4


def counters(number: int) -> memoryview:
    """So many whole numbers, 0 at first, less than 2**31. Shared with whoever is forked afterwards."""
    # A store of four aligned bytes is whole or not there, on every machine that this runs on.
    return memoryview(mmap.mmap(-1, COUNTER_BYTES * number)).cast("i")
