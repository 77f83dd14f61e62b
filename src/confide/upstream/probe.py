"""Cheap questions to an upstream that nobody has heard of for a while: whether it is there (what-users-ask 20).

A GET of its list of models or of its health, never a completion, which costs money or a slot.
"""

import asyncio
import time
from collections.abc import Callable

from confide.upstream.channel import ChannelError
from confide.upstream.kinds.relay import Relay

EVERY_S = 5.0
QUIET_S = 10.0
BODY_MOST_BYTES = 4 * 1024 * 1024
WITHIN_S = 10.0


async def probing(
    current: Callable[[], Relay | None], path: str, *, every_s: float = EVERY_S, quiet_s: float = QUIET_S
) -> None:
    """Probe it when it is left alone or was quiet; until cancelled. `current`: None while nothing may be sent to it."""
    while True:
        await asyncio.sleep(every_s)
        relay = current()
        if relay is None:
            continue
        if relay.health.is_left_alone or time.monotonic() - relay.health.heard_at > quiet_s:
            await probe(relay, path)


async def probe(relay: Relay, path: str) -> None:
    """Ask once, and let its health know. Any answer but 5xx means that it is there."""
    try:
        async with asyncio.timeout(WITHIN_S):
            exchange = await relay.channel.send(b"GET", path.encode(), relay.probe_headers, b"")
            try:
                await exchange.read_all(BODY_MOST_BYTES)
            finally:
                exchange.abort()
    except (ChannelError, TimeoutError):
        relay.health.failed()
        return
    if exchange.status < 500:
        relay.health.succeeded()
    else:
        relay.health.failed()
