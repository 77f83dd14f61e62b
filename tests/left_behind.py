"""That nothing stays behind: no task, no socket."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

GONE_WITHIN_S = 20


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """As many tasks and sockets afterwards as before."""
    await asyncio.sleep(0)
    tasks, count = asyncio.all_tasks(), open_sockets()
    yield
    await soon(lambda: asyncio.all_tasks() == tasks and open_sockets() == count)


def open_sockets() -> int:
    """Of this process; a loop's own other files come and stay when it likes."""
    count = 0
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # the listing's own
            count += stat.S_ISSOCK(os.fstat(int(name)).st_mode)
    return count


async def soon(condition: Callable[[], bool]) -> None:
    """Wait for what the loop and the kernel do by themselves, most of it within a few turns of the loop."""
    async with asyncio.timeout(GONE_WITHIN_S):
        for _ in range(20):
            if condition():
                return
            await asyncio.sleep(0)
        while not condition():
            await asyncio.sleep(0.001)
