"""How a test's own server ends: no connection outlives its loop, also none whose handshake is not over."""

import asyncio
from collections.abc import Callable, Sequence

GONE_WITHIN_S = 10


async def end(servers: Sequence[asyncio.AbstractServer], abort: Callable[[], None]) -> None:
    """Accept nothing from now on, drop what `abort` drops, and return when each accepted connection is gone.

    A connection in its TLS handshake is no protocol's yet, so `abort` does not know it: it goes when its client does.
    What goes only after its loop is a warning of the garbage collector, in whatever test runs by then.
    """
    # Before `close`: on Python 3.11 whoever asks after it is told at once.
    gone = [asyncio.ensure_future(server.wait_closed()) for server in servers]
    await asyncio.sleep(0)
    for server in servers:
        server.close()
    abort()
    async with asyncio.timeout(GONE_WITHIN_S):
        await asyncio.gather(*gone)
