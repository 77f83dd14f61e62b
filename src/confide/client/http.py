"""`confide.Client` and `confide.AsyncClient`: httpx2 clients for the official SDKs, whose answers are proven.

client = OpenAI(base_url="https://…/v1", api_key=KEY, http_client=confide.Client(policy=confide.Policy(…)))
"""

from collections.abc import Callable
from typing import Any

import httpx2

from confide.client.async_transport import AsyncVerifyingTransport
from confide.client.sending import connection_options, now_s
from confide.client.transport import VerifyingTransport
from confide.verifier.appraisal import ServiceVerification
from confide.verifier.collateral import HeldCollateral
from confide.verifier.policy import Policy


class Client(httpx2.Client):
    """An httpx2 client that verifies a service before it sends anything to it, and each answer before it counts.

    `policy`: None for `confide.Policy()`: hardware of Intel or AMD, over TLS that ends in it. `keep_bodies`: a proof's
    bundle then holds request and response. `now`: Unix seconds, as of which is checked. `collateral`: where to get what
    a service's report lacks; None for `confide.Collateral()`, which asks the vendors then. `options`: as of
    `httpx2.Client`, but for verify, cert, mounts and transport, which raise ConfigError. A request raises
    VerificationError when the service or its answer does not hold, and from then on every request does, unsent, until
    `reset()`. The way leads over `proxy`, where one is named, and not over those that the environment names.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        keep_bodies: bool = False,
        now: Callable[[], int] = now_s,
        collateral: HeldCollateral | None = None,
        **options: Any,
    ) -> None:
        connections = connection_options(options)
        self._verifying = VerifyingTransport(
            policy or Policy(), connections, keep_bodies=keep_bodies, now=now, collateral=collateral
        )
        super().__init__(transport=self._verifying, **options)

    def verify(self, url: str) -> ServiceVerification:
        """Verify the service at `url` now, as the first request to it would. Raises VerificationError."""
        return self._verifying.verify(httpx2.URL(url))

    def reset(self) -> None:
        """Let a client that has failed send again. Find out first why it failed."""
        self._verifying.latch.open()


class AsyncClient(httpx2.AsyncClient):
    """The same for asyncio."""

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        keep_bodies: bool = False,
        now: Callable[[], int] = now_s,
        collateral: HeldCollateral | None = None,
        **options: Any,
    ) -> None:
        connections = connection_options(options)
        self._verifying = AsyncVerifyingTransport(
            policy or Policy(), connections, keep_bodies=keep_bodies, now=now, collateral=collateral
        )
        super().__init__(transport=self._verifying, **options)

    async def verify(self, url: str) -> ServiceVerification:
        """Verify the service at `url` now, as the first request to it would. Raises VerificationError."""
        return await self._verifying.verify(httpx2.URL(url))

    def reset(self) -> None:
        """Let a client that has failed send again. Find out first why it failed."""
        self._verifying.latch.open()
