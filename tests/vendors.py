"""Simulated vendors on loopback, and a fetcher with short patience.

with serving(SimulatedPccs(platform, now=NOW)) as vendors:
    source = TdxCollateralSource(vendors.fetcher, MemoryCache(), pcs=Pcs.at(vendors.url))
"""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

from attested_service import listening
from confide.collateral.fetch import Fetcher
from confide.simulator.pccs import SimulatedPccs

NOW = 1_800_000_000
SEED = b"\x11" * 32


class Vendors:
    """The services at `url`, and a fetcher whose clock only moves when told."""

    def __init__(self, services: SimulatedPccs, url: str, http: httpx2.Client) -> None:
        self.services = services
        self.url = url
        self.clock_s = 1000.0
        self.fetcher = Fetcher(http, whole_s=5.0, silence_s=0.3, clock=lambda: self.clock_s)

    @property
    def asked(self) -> list[str]:
        return self.services.seen


@contextmanager
def serving(services: SimulatedPccs) -> Iterator[Vendors]:
    with listening(services.app) as port, httpx2.Client(trust_env=False) as http:
        yield Vendors(services, f"http://127.0.0.1:{port}", http)
