"""The SIMULATED attester: real structures, real checks, a root of its own, and no protection whatsoever."""

import asyncio
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from confide.attester.base import MAX_WAITING, Evidence
from confide.attester.keys import LegacyKeys, WorkloadKeys
from confide.attester.seed import load_seed
from confide.errors import ConfigError, InternalError, NotReady
from confide.simulator.tdx import SimulatedTdxPlatform

DEADLINE_S = 10
COLLATERAL_AGE_S = 24 * 60 * 60  # a day; the simulated collateral itself is good for longer

CLOCK_SKEW_S = 60 * 60  # issued an hour back, for verifiers whose clocks run behind ours

# TDX quote version 4: header 48 bytes, then the TD report, report data at its bytes 520 to 583 (tee-evidence 6.1).
REPORT_DATA = slice(48 + 520, 48 + 520 + 64)


class SimulatedAttester:
    """Quotes of the simulated TDX platform, with keys and root from the seed under `<home>/simulator`.

    One thread of its own does all work, so that requests queue and a late one never runs beside the next.
    """

    kind = "simulated"
    app_id = None
    tee_type = "tdx"
    simulated = True

    def __init__(
        self,
        home: Path,
        now: Callable[[], int],
        *,
        deadline_s: float = DEADLINE_S,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """`home`: the state directory. `now`: Unix seconds. `max_waiting`: requests at a time. Raises ConfigError when
        the state cannot be used.
        """
        directory = home / "simulator"
        seed = load_seed(directory)
        self.keys = LegacyKeys.derive(seed)
        self.workload_keys = WorkloadKeys.derive(seed)
        self._now = now
        self._platform = SimulatedTdxPlatform(seed, now=now())
        self._collateral_made_at = now()
        self._collateral = self._platform.collateral(self._collateral_made_at - CLOCK_SKEW_S)
        self._deadline_s = deadline_s
        self._max_waiting = max_waiting
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="simulated-attester")
        self._waiting = 0
        write_root(directory / "root.pem", self._platform.root_pem)

    async def attest(self, report_data: bytes) -> Evidence:
        """Fresh simulated evidence over exactly 64 bytes, else ValueError.

        Raises NotReady when `max_waiting` requests wait already or after 10 s, InternalError when the quote holds other
        data.
        """
        if len(report_data) != 64:
            raise ValueError(f"64 bytes of report data expected, got {len(report_data)}")
        if self._waiting >= self._max_waiting:
            raise NotReady("too many attestation requests are waiting", retry_after_s=1)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._deadline_s):
                return await asyncio.get_running_loop().run_in_executor(self._worker, self._produce, report_data)
        except TimeoutError as error:
            raise NotReady(f"no evidence within {self._deadline_s:g} s", retry_after_s=DEADLINE_S) from error
        finally:
            self._waiting -= 1

    def _produce(self, report_data: bytes) -> Evidence:
        platform = self._platform
        quote = platform.quote(report_data)
        require_report_data(quote, report_data)
        return Evidence(
            tee_type=self.tee_type,
            quote=quote,
            report_data=report_data,  # the same bytes as in the quote, as was just required
            event_log=platform.event_log,
            vm_config=platform.vm_config,
            info=dict(platform.info),
            collateral=dict(self._fresh_collateral()),
            simulated=True,
        )

    def _fresh_collateral(self) -> dict[str, str]:
        now = self._now()
        # A clock that was set back counts as old too: collateral from the future does not verify.
        if not 0 <= now - self._collateral_made_at < COLLATERAL_AGE_S:
            self._collateral = self._platform.collateral(now - CLOCK_SKEW_S)
            self._collateral_made_at = now
        return self._collateral


def require_report_data(quote: bytes, report_data: bytes) -> None:
    """InternalError unless this is a version 4 quote that holds exactly the bytes that were asked for."""
    if quote[:2] != b"\x04\x00" or quote[REPORT_DATA] != report_data:
        raise InternalError("the platform quoted other report data than it was given")


def write_root(path: Path, pem: str) -> None:
    """Publish the simulator's root for callers to pin: 0644, whole or not at all, untouched when it is the same."""
    try:
        if path.exists() and path.read_bytes() == pem.encode():
            return
        draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        draft.write_bytes(pem.encode())
        draft.chmod(0o644)
        os.replace(draft, path)
    except OSError as error:
        raise ConfigError(
            f"the simulated root {path} cannot be written: {error.strerror}",
            remedy="Set CONFIDE_HOME to a directory that this user may write.",
        ) from error
