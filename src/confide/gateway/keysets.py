"""The keyset that stands right now: what every response says of it, and the reports that outlive it.

The keyset changes by the clock (`attester/epochs.py`). A request keeps the one it began under: its headers, its receipt
and the key that signs it agree also when the answer ends in the next epoch.

Each keyset's report without a nonce is kept in the store for as long as receipts that name it may be asked about, so
that a receipt can be verified after a rotation (`GET /v1/aci/keysets/{digest}`).
"""

import asyncio
from collections.abc import Callable
from typing import Literal

import msgspec

from confide import config
from confide.attester.base import Attester
from confide.attester.epochs import Epoch, KeysetEpochs
from confide.attester.nvidia import GpuCollector
from confide.errors import WireError
from confide.gateway.wire import COMMON, Header
from confide.protocol.keyset import TlsKey
from confide.protocol.report import API_VERSION, SourceProvenance, aci_report
from confide.protocol.statement import aci_report_data
from confide.store.base import Store
from confide.telemetry.logs import Log

CACHED_S = 3600  # a report without a nonce; the collateral in it grows old
RETRY_S = 5.0


class Standing(msgspec.Struct, frozen=True):
    """An epoch and the headers that every response under it carries."""

    epoch: Epoch
    headers: tuple[Header, ...]


class CurrentKeyset:
    """Knows the epoch of this moment. `now`: Unix seconds."""

    def __init__(self, epochs: KeysetEpochs, now: Callable[[], float]) -> None:
        self._epochs = epochs
        self._now = now
        self._standing = standing(epochs.at(int(now())))

    def __call__(self) -> Standing:
        """The epoch and its headers; the same object until the keyset is rotated."""
        epoch = self._epochs.at(int(self._now()))
        if epoch is not self._standing.epoch:
            self._standing = standing(epoch)
        return self._standing

    def headers(self) -> tuple[Header, ...]:
        """What every response carries."""
        return self().headers


def epochs_of(settings: config.Config, attester: Attester) -> KeysetEpochs:
    """The keysets of a service with these settings. A TLS key is listed only where the attester made it."""
    tls: tuple[TlsKey, ...] = ()
    if settings.server.tls == "attested":
        domain = msgspec.UNSET if settings.server.domain is None else settings.server.domain
        tls = (TlsKey(attester.workload_keys.tls.spki_sha256.hex(), domain),)
    lifetime_s = settings.attester.keyset_lifetime_s
    return KeysetEpochs(attester.workload_keys, lifetime_s=lifetime_s, subject=None, tls_keys=tls)


def standing(epoch: Epoch) -> Standing:
    aci = ((b"x-aci-version", API_VERSION.encode()), (b"x-aci-keyset-digest", epoch.digest.encode()))
    return Standing(epoch, (*COMMON, *aci))


class Reports:
    """Makes ACI reports: fresh ones for a nonce, a cached one without (wire contract 7.3)."""

    def __init__(
        self,
        attester: Attester,
        current: CurrentKeyset,
        provenance: SourceProvenance,
        now: Callable[[], float],
        *,
        gpu: GpuCollector | None = None,
        serving: Literal["direct", "aggregator"] = "direct",
    ) -> None:
        """`gpu`: shows the GPUs in reports for a nonce; without a nonce there is nothing that they could answer."""
        self._attester = attester
        self._gpu = gpu
        self._serving = serving
        self._current = current
        self._provenance = provenance
        self._now = now
        self._cached: tuple[str, float, dict[str, object]] | None = None
        self._making = asyncio.Lock()

    async def fresh(self, nonce: str) -> dict[str, object]:
        """A report for this nonce, 64 lower-case hex digits. Raises NotReady while the platform is busy."""
        return await self._report(self._current().epoch, nonce)

    async def without_nonce(self) -> dict[str, object]:
        """A report that shows binding and no freshness; made anew at most once an hour."""
        async with self._making:
            epoch = self._current().epoch
            if self._cached is None or self._cached[0] != epoch.digest or self._now() - self._cached[1] > CACHED_S:
                self._cached = (epoch.digest, self._now(), await self._report(epoch, None))
            return self._cached[2]

    async def _report(self, epoch: Epoch, nonce: str | None) -> dict[str, object]:
        evidence = await self._attester.attest(aci_report_data(epoch.digest, nonce))
        members = evidence.aci_members(epoch.signer.public_key_hex)
        if self._gpu is not None and nonce is not None:
            members["nvidia_payload"] = await self._gpu.payload(bytes.fromhex(nonce))
        return aci_report(
            keyset=epoch.keyset,
            nonce=nonce,
            tee_type=evidence.tee_type,
            provenance=self._provenance,
            evidence=members,
            serving=self._serving,
        )


class Archive:
    """Keeps the report of every keyset that ever stood. `kept_s`: for how long after its expiry."""

    def __init__(
        self,
        reports: Reports,
        current: CurrentKeyset,
        store: Store,
        *,
        kept_s: int,
        now: Callable[[], float],
        log: Log,
    ) -> None:
        self._reports = reports
        self._current = current
        self._store = store
        self._kept_s = kept_s
        self._now = now
        self._log = log

    async def keep_current(self) -> Epoch:
        """Store the report of the epoch that stands, and say which that is. Raises NotReady or InternalError."""
        while True:
            epoch = self._current().epoch
            report = await self._reports.without_nonce()
            if report["workload_keyset_digest"] == epoch.digest:
                break  # else the next one began meanwhile
        expires_at = epoch.keyset.not_after + self._kept_s
        await self._store.keep_report(epoch.digest, msgspec.json.encode(report), expires_at=expires_at)
        return epoch

    async def watch(self) -> None:
        """Keep each new epoch's report as it begins; until cancelled."""
        while True:
            try:
                epoch = await self.keep_current()
                self._log.write("keyset", number=epoch.number, not_after=epoch.keyset.not_after)
            except WireError as error:
                self._log.write("keyset", error=error.type)
                await asyncio.sleep(RETRY_S)
                continue
            await self._until_rotated(epoch)

    async def _until_rotated(self, epoch: Epoch) -> None:
        """The clock may be set meanwhile, so it is asked again every minute rather than slept through."""
        while self._current().epoch is epoch:  # noqa: ASYNC110 - it is the clock that is waited for, no event
            await asyncio.sleep(min(60.0, max(0.05, epoch.ends_at - self._now())))
