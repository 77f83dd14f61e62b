"""Collateral for this machine's own evidence, so that its verifiers need no network (tee-evidence 2.3, 4.1; ADR 10).

    held                  given at once; asked for again beside it, once a minute at most, so that a due one is renewed
                          ahead of its expiry
    not held, or expired  the report waits for the vendor's service, a few seconds at most, and then goes without

A vendor's service that is away never fails a report: whoever verifies it may fetch its own. Nothing is trusted here
for where it came from; a verifier checks all of it under roots of its own.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from confide import config
from confide.attester.base import SnpCertificates
from confide.collateral.cache import FileCache
from confide.collateral.fetch import Unavailable, fetcher_for, require_base
from confide.collateral.kds import AMD_KDS, SnpCollateralSource, chip_of, crl_window
from confide.collateral.pcs import Pcs, TdxCollateralSource
from confide.collateral.supply import Malformed
from confide.collateral.tdx import platform_of
from confide.errors import CannotTell
from confide.evidence.quote import QuoteError, parse_quote
from confide.evidence.snp_report import SnpReportError, parse_snp_report
from confide.telemetry.logs import Log

WAIT_S = 5.0  # that a report waits for a fetch, from its beginning
ASK_AGAIN_S = 60
FAR_S = 2**53  # what has no end that anybody here should mind

T = TypeVar("T")


@dataclass(frozen=True)
class Held(Generic[T]):
    """What came last. `key`: of what it is the collateral. `good_until`: Unix seconds."""

    key: str
    value: T
    good_until: int


@dataclass(frozen=True)
class Attempt:
    """One time of asking. `began_s`: by a clock that only ever grows."""

    key: str
    began_s: float
    done: "Future[None]"


class Keeper(Generic[T]):
    """Holds one piece of collateral, and asks for the next on a thread beside: one at a time, which may hang.

    May be used from one event loop after another. The thread is a daemon: a service that hangs must not keep the
    process from ending.
    """

    def __init__(self, name: str, *, now: Callable[[], int], wait_s: float = WAIT_S) -> None:
        """`now`: Unix seconds."""
        self._name = name
        self._now = now
        self._wait_s = wait_s
        self._guard = threading.Lock()
        self._held: Held[T] | None = None
        self._last: Attempt | None = None

    async def get(self, key: str, ask: Callable[[], tuple[T, int]]) -> T | None:
        """What `ask` returned for this key while that is good, else None. `ask`: blocks, gives the value and until
        when it is good, and raises CannotTell.
        """
        attempt = self._begun(key, ask)
        if (held := self._good(key)) is not None:
            return held
        left_s = attempt.began_s + self._wait_s - time.monotonic()
        if not attempt.done.done() and left_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await asyncio.wrap_future(attempt.done)
        return self._good(key)

    def _good(self, key: str) -> T | None:
        held = self._held
        return held.value if held is not None and held.key == key and self._now() < held.good_until else None

    def _begun(self, key: str, ask: Callable[[], tuple[T, int]]) -> Attempt:
        """The attempt that runs or was made within the last minute, else a new one."""
        with self._guard:
            last, clock_s = self._last, time.monotonic()
            if last is not None and not last.done.done():
                return last
            if last is not None and last.key == key and clock_s - last.began_s < ASK_AGAIN_S:
                return last
            self._last = attempt = Attempt(key, clock_s, Future())
        attempt.done.set_running_or_notify_cancel()  # so that nobody who stops waiting for it can cancel it
        thread = threading.Thread(target=self._run, args=(attempt, ask), name=f"collateral-{self._name}", daemon=True)
        thread.start()
        return attempt

    def _run(self, attempt: Attempt, ask: Callable[[], tuple[T, int]]) -> None:
        try:
            value, good_until = ask()
            self._held = Held(attempt.key, value, good_until)
        except CannotTell:
            pass  # it was logged where it happened, and what is held stays
        finally:
            attempt.done.set_result(None)


class OwnCollateral:
    """Asks Intel's service, or another with its interface, and AMD's. Kept in files of one directory."""

    def __init__(
        self,
        directory: Path,
        *,
        now: Callable[[], int],
        log: Log,
        pccs_url: str | None = None,
        kds_url: str = AMD_KDS,
        wait_s: float = WAIT_S,
    ) -> None:
        """`directory`: of the cache. `now`: Unix seconds. `pccs_url`: the provisioning service, Intel's by default.
        `kds_url`: AMD's key distribution service.

        Raises ConfigError for an address that is neither https nor loopback. Nothing is opened yet.
        """
        self._pcs = Pcs.at() if pccs_url is None else Pcs.at(pccs_url)
        self._kds_url = require_base(kds_url, "AMD's key distribution service")
        self._cache = FileCache(directory)
        self._now = now
        self._log = log
        self._quotes: Keeper[dict[str, str]] = Keeper("tdx", now=now, wait_s=wait_s)
        self._reports: Keeper[SnpCertificates] = Keeper("snp", now=now, wait_s=wait_s)
        self._lists: Keeper[str] = Keeper("snp-crl", now=now, wait_s=wait_s)

    async def for_quote(self, quote: bytes) -> dict[str, str] | None:
        """DCAP collateral of the platform that made this TDX quote; None where there is none to be had now."""
        try:
            parsed = parse_quote(quote)
            key = str(platform_of(parsed))
        except (QuoteError, Malformed):
            return None  # the quote is served as it is: a verifier says what is wrong with it

        def ask() -> tuple[dict[str, str], int]:
            found = self._intel.collateral(parsed, now=self._now())
            return found.members, found.validity()[1]

        return await self._quotes.get(key, ask)

    async def for_report(self, report: bytes) -> SnpCertificates | None:
        """The certificates of the chip that made this SNP report; None where there are none to be had now."""
        try:
            parsed = parse_snp_report(report)
            chip = chip_of(parsed, None)
        except (SnpReportError, CannotTell):
            return None

        def ask() -> tuple[SnpCertificates, int]:
            now = self._now()
            vcek = self._amd.vcek(parsed, chip, now=now)
            return SnpCertificates(vcek, self._amd.cert_chain(chip.product, now=now)), FAR_S

        return await self._reports.get(str(chip), ask)

    async def revoked_for(self, report: bytes) -> str | None:
        """AMD's revocation list for the product of this SNP report, DER in hex; None where there is none to be had."""
        try:
            parsed = parse_snp_report(report)
        except SnpReportError:
            return None
        product = parsed.cpuid.product if parsed.cpuid else None
        if product is None:
            return None

        def ask() -> tuple[str, int]:
            found = self._amd.crl(product, now=self._now())
            return found, crl_window(found)[1]

        return await self._lists.get(product, ask)

    @cached_property
    def _intel(self) -> TdxCollateralSource:
        return TdxCollateralSource(fetcher_for(self._pcs.base), self._cache, pcs=self._pcs, failed=self._failed)

    @cached_property
    def _amd(self) -> SnpCollateralSource:
        return SnpCollateralSource(fetcher_for(self._kds_url), self._cache, base=self._kds_url, failed=self._failed)

    def _failed(self, error: Unavailable, is_kept: bool) -> None:
        """One line for each fetch that failed. The reason is for who asked by hand: it names hosts and platforms."""
        self._log.write("collateral", outcome="kept" if is_kept else "none", error=type(error).__name__)


def own_collateral(settings: config.Attester, home: Path, *, now: Callable[[], int], log: Log) -> OwnCollateral | None:
    """What `[attester] collateral` asks for, kept below the state directory. Raises ConfigError."""
    if settings.collateral == "none":
        return None
    return OwnCollateral(home / "collateral", now=now, log=log, pccs_url=settings.pccs_url, kds_url=settings.kds_url)
