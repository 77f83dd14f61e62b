"""The keyset that stands: the same for everyone until it is rotated, and its report outlives it."""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from confide.attester.base import Evidence
from confide.attester.simulated import SimulatedAttester
from confide.config import Attester, Config, Server
from confide.errors import InternalError, NotReady
from confide.gateway import keysets
from confide.gateway.keysets import Archive, CurrentKeyset, Reports, epochs_of
from confide.protocol.report import SourceProvenance, binds, parse_report
from confide.store import SqliteStore
from confide.telemetry.logs import Log
from left_behind import soon
from store_builders import opened

NOW = 1_790_000_000
NONCE = "ab" * 32
KEPT_S = 3600


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


class Watched(SimulatedAttester):
    """Counts what it attests, and fails as often as it is told to."""

    def __init__(self, home: Path, clock: Clock) -> None:
        super().__init__(home, lambda: int(clock.now))
        self.attested = 0
        self.failures: list[Exception] = []

    async def attest(self, report_data: bytes) -> Evidence:
        self.attested += 1
        if self.failures:
            raise self.failures.pop()
        return await super().attest(report_data)


class Scene:
    """The parts of a service that know of keysets. A keyset lives ten seconds and is replaced after eight."""

    def __init__(self, home: Path, store: SqliteStore) -> None:
        self.clock = Clock()
        self.attester = Watched(home, self.clock)
        self.store = store
        config = Config(attester=Attester(keyset_lifetime_s=10))
        self.current = CurrentKeyset(epochs_of(config, self.attester), self.clock)
        self.reports = Reports(self.attester, self.current, SourceProvenance(), self.clock)
        self.written = io.StringIO()
        self.archive = Archive(self.reports, self.current, store, kept_s=KEPT_S, now=self.clock, log=Log(self.written))

    @property
    def digest(self) -> str:
        return self.current().epoch.digest

    def log(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.written.getvalue().splitlines()]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with opened(tmp_path) as store:
        yield Scene(tmp_path, store)


@contextlib.asynccontextmanager
async def watching(scene: Scene) -> AsyncIterator[None]:
    task = asyncio.create_task(scene.archive.watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_kept(scene: Scene, digest: str) -> bytes:
    async with asyncio.timeout(5):
        while (report := await scene.store.report(digest, now=int(scene.clock.now))) is None:
            await asyncio.sleep(0.005)
    return report


def test_headers_are_the_same_object_until_the_keyset_is_rotated(scene: Scene) -> None:
    standing = scene.current()
    assert scene.current() is standing
    assert (b"x-aci-keyset-digest", standing.epoch.digest.encode()) in standing.headers
    scene.clock.now += 8
    rotated = scene.current()
    assert rotated is not standing
    assert (b"x-aci-keyset-digest", rotated.epoch.digest.encode()) in rotated.headers
    assert rotated.epoch.digest != standing.epoch.digest


def test_a_tls_key_is_listed_only_where_the_attester_made_it(scene: Scene) -> None:
    spki = scene.attester.workload_keys.tls.spki_sha256
    listed = {
        "plain": Server(),
        "files": Server(tls_cert="c.pem", tls_key="k.pem"),
        "attested": Server(tls="attested"),
        "domain": Server(tls="attested", domain="api.example.com"),
    }
    keysets_of = {
        name: epochs_of(Config(server=server), scene.attester).at(NOW).keyset for name, server in listed.items()
    }
    assert keysets_of["plain"].tls_public_keys == keysets_of["files"].tls_public_keys == ()
    assert keysets_of["attested"].tls_pins("any.example") == {spki}
    assert keysets_of["domain"].tls_pins("api.example.com") == {spki}
    assert keysets_of["domain"].tls_pins("any.example") == frozenset()


async def test_every_nonce_costs_a_quote_and_no_nonce_costs_one_an_hour(scene: Scene) -> None:
    for _ in range(3):
        await scene.reports.fresh(NONCE)
    assert scene.attester.attested == 3
    same = await asyncio.gather(*(scene.reports.without_nonce() for _ in range(5)))
    assert scene.attester.attested == 4
    assert all(report is same[0] for report in same)


async def test_after_a_rotation_the_report_is_of_the_new_keyset(scene: Scene) -> None:
    before = await scene.reports.without_nonce()
    scene.clock.now += 8
    after = await scene.reports.without_nonce()
    assert before["workload_keyset_digest"] != after["workload_keyset_digest"] == scene.digest


async def test_the_hour_is_over_before_the_collateral_grows_old(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        scene = Scene(tmp_path, store)
        scene.current = CurrentKeyset(epochs_of(Config(), scene.attester), scene.clock)
        scene.reports = Reports(scene.attester, scene.current, SourceProvenance(), scene.clock)
        first = await scene.reports.without_nonce()
        scene.clock.now += keysets.CACHED_S
        assert await scene.reports.without_nonce() is first
        scene.clock.now += 1
        assert await scene.reports.without_nonce() is not first


async def test_a_kept_report_binds_its_keyset_until_the_last_receipt_is_past(scene: Scene) -> None:
    epoch = await scene.archive.keep_current()
    expires_at = epoch.keyset.not_after + KEPT_S
    raw = await scene.store.report(epoch.digest, now=expires_at - 1)
    assert raw is not None
    report = parse_report(raw)
    assert report.keyset_digest == epoch.digest
    assert binds(report, None) is None
    assert await scene.store.report(epoch.digest, now=expires_at) is None


async def test_a_rotation_while_the_report_is_made_leaves_no_keyset_without_one(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, began = scene.reports.without_nonce, scene.digest

    async def making() -> dict[str, object]:
        if scene.digest == began:
            scene.clock.now += 8
        return await make()

    monkeypatch.setattr(scene.reports, "without_nonce", making)
    epoch = await scene.archive.keep_current()
    assert epoch.digest == scene.digest != began
    raw = await scene.store.report(epoch.digest, now=int(scene.clock.now))
    assert raw is not None
    assert parse_report(raw).keyset_digest == epoch.digest


async def test_the_watch_keeps_each_keyset_as_it_begins(scene: Scene) -> None:
    scene.clock.now += 7.95  # its end is near: the watch looks at the clock again then
    async with watching(scene):
        first = scene.digest
        await until_kept(scene, first)
        scene.clock.now += 8
        second = scene.digest
        await until_kept(scene, second)
        assert await scene.store.report(first, now=int(scene.clock.now)) is not None
    assert [line["event"] for line in scene.log()] == ["keyset", "keyset"]
    assert [line["number"] for line in scene.log()] == [NOW // 8, NOW // 8 + 1]


@pytest.mark.parametrize("failure", [NotReady("busy"), InternalError("another quote")], ids=lambda error: error.type)
async def test_the_watch_goes_on_after_a_failure_and_says_so(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    monkeypatch.setattr(keysets, "RETRY_S", 0.001)
    scene.attester.failures = [failure]
    async with watching(scene):
        await until_kept(scene, scene.digest)
        await soon(lambda: len(scene.log()) == 2)  # it is kept before it is said
    assert [line.get("error") for line in scene.log()] == [failure.type, None]  # type: ignore[attr-defined]  # of ours
