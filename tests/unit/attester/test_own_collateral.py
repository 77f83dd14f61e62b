"""Collateral of our own evidence: it travels along, a service that is away is waited for once, and fails nothing."""

import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from confide import config
from confide.attester.own_collateral import Keeper, OwnCollateral, own_collateral
from confide.collateral.fetch import Unavailable
from confide.errors import ConfigError
from confide.simulator.pccs import PccsFault, SimulatedPccs
from confide.simulator.serving import serving_tcp
from confide.simulator.snp import SimulatedSnpPlatform
from confide.simulator.tdx import SimulatedTdxPlatform
from confide.telemetry.logs import Log
from vendors import NOW, SEED

MONTH_S = 30 * 24 * 60 * 60
PLATFORM = SimulatedTdxPlatform(SEED, now=NOW)
QUOTE = PLATFORM.quote(bytes(64))


class Asked:
    """The vendors, what is asked of them, and a clock that a test sets."""

    def __init__(self, directory: Path, services: SimulatedPccs, url: str) -> None:
        self.services = services
        self.now = NOW
        self.written = io.StringIO()
        self.directory = directory
        self.url = url

    def opened(self, wait_s: float = 2.0) -> OwnCollateral:
        return OwnCollateral(
            self.directory,
            now=lambda: self.now,
            log=Log(self.written),
            pccs_url=self.url,
            kds_url=self.url,
            wait_s=wait_s,
        )

    @property
    def log(self) -> list[tuple[str, str, str]]:
        lines = [json.loads(line) for line in self.written.getvalue().splitlines()]
        assert all(set(line) == {"at", "event", "outcome", "error"} for line in lines)
        return [(line["event"], line["outcome"], line["error"]) for line in lines]


@contextmanager
def asking(directory: Path, **more: SimulatedSnpPlatform | PccsFault) -> Iterator[Asked]:
    services = SimulatedPccs(PLATFORM, now=NOW, **more)  # type: ignore[arg-type]  # knobs of a test
    with serving_tcp(services.app) as url:
        yield Asked(directory, services, url)


async def test_it_is_fetched_once_and_kept_through_a_restart(tmp_path: Path) -> None:
    with asking(tmp_path / "cache") as asked:
        own = asked.opened()
        assert await own.for_quote(QUOTE) == PLATFORM.collateral(NOW)
        assert await own.for_quote(PLATFORM.quote(b"\x01" * 64)) == PLATFORM.collateral(NOW)
        assert await asked.opened().for_quote(QUOTE) == PLATFORM.collateral(NOW)
        assert len(asked.services.seen) == 4
        assert asked.log == []


async def test_a_due_one_is_given_at_once_and_renewed_beside(tmp_path: Path) -> None:
    with asking(tmp_path / "cache") as asked:
        await asked.opened().for_quote(QUOTE)
        asked.now = asked.services.now = NOW + MONTH_S - 60
        own = asked.opened()  # as after a restart: the file holds one that is good for a minute
        found = await own.for_quote(QUOTE)
        assert found == PLATFORM.collateral(asked.now)


@pytest.mark.parametrize("fault", [PccsFault.FAILING, PccsFault.NOT_FOUND, PccsFault.EXPIRED])
async def test_while_the_service_is_away_the_old_one_is_given_until_it_expires(
    tmp_path: Path, fault: PccsFault
) -> None:
    with asking(tmp_path / "cache") as asked:
        await asked.opened().for_quote(QUOTE)
        asked.services.fault = fault
        asked.now = NOW + MONTH_S - 1
        own = asked.opened()
        assert await own.for_quote(QUOTE) == PLATFORM.collateral(NOW)
        asked.now = NOW + MONTH_S
        assert await own.for_quote(QUOTE) is None
        kind = "NotKnown" if fault is PccsFault.NOT_FOUND else "Unavailable"
        assert asked.log == [("collateral", "kept", kind)]


async def test_a_service_that_hangs_is_waited_for_once(tmp_path: Path) -> None:
    with asking(tmp_path / "cache", fault=PccsFault.HUNG) as asked:
        own, began = asked.opened(wait_s=1.0), time.monotonic()
        assert await own.for_quote(QUOTE) is None
        assert await own.for_quote(QUOTE) is None
        assert 1.0 <= time.monotonic() - began < 20
        assert len(asked.services.seen) == 1


async def test_an_answer_that_comes_late_is_there_for_the_next() -> None:
    late: list[int] = []

    def ask() -> tuple[str, int]:
        time.sleep(0.1)
        late.append(1)
        return "collateral", 100

    keeper: Keeper[str] = Keeper("test", now=lambda: 99, wait_s=0.01)
    assert await keeper.get("machine", ask) is None
    for thread in threading.enumerate():
        if thread.name == "collateral-test":
            thread.join(5)
    assert late
    assert await keeper.get("machine", ask) == "collateral"
    assert await keeper.get("another machine", failing) is None
    assert await keeper.get("machine", ask) == "collateral"


def failing() -> tuple[str, int]:
    raise Unavailable("away")


async def test_an_snp_report_gets_the_certificates_of_its_chip(tmp_path: Path) -> None:
    machine = SimulatedSnpPlatform(SEED, now=NOW)
    with asking(tmp_path / "cache", snp=machine) as asked:
        found = await asked.opened().for_report(machine.report(bytes(64)))
        assert found is not None
        assert (found.vcek, found.cert_chain) == (machine.vcek_pem, machine.chain_pem)
        masked = SimulatedSnpPlatform(SEED, now=NOW, vlek=True)
        assert await asked.opened().for_report(masked.report(bytes(64))) is None
        assert len(asked.services.seen) == 2, "for a provider's key AMD cannot be asked"


@pytest.mark.parametrize("evidence", [b"", b"\x04\x00", QUOTE[:700]])
async def test_what_is_no_evidence_is_left_to_the_verifier(tmp_path: Path, evidence: bytes) -> None:
    with asking(tmp_path / "cache") as asked:
        assert await asked.opened().for_quote(evidence) is None
        assert await asked.opened().for_report(evidence) is None
        assert asked.services.seen == []


def test_it_can_be_turned_off_and_the_address_has_to_be_safe(tmp_path: Path) -> None:
    log = Log(io.StringIO())
    off = config.Attester(collateral="none")
    assert own_collateral(off, tmp_path, now=lambda: NOW, log=log) is None
    assert own_collateral(config.Attester(), tmp_path, now=lambda: NOW, log=log) is not None
    for url in ("http://pccs.example.com", "ftp://127.0.0.1", "http://127.0.0.1.example.com", "http://127.0.0.1:80@x"):
        for key in ("pccs_url", "kds_url"):
            with pytest.raises(ConfigError, match="https"):
                config.load(None, environ={}, overrides={"attester": {key: url}})
    odd = "https://x.example/?a=b"
    for settings in (config.Attester(pccs_url=odd), config.Attester(kds_url=odd)):
        with pytest.raises(ConfigError, match="query"):
            own_collateral(settings, tmp_path, now=lambda: NOW, log=log)
