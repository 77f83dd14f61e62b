"""The upstreams of one service: opened from the configuration, probed, verified, and closed again.

A reload opens what is new, keeps what is the same to the last key, and closes what is gone once its last answer has
ended (`Upstreams.replace`).
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping

from confide import config as configuration
from confide.config import Config
from confide.gateway.models import ServedModel
from confide.gateway.opened import Opened, open_attested, open_followed, open_plain, own_part
from confide.store.base import Store
from confide.telemetry.logs import Log
from confide.upstream.base import Upstream
from confide.upstream.followed import Lead
from confide.upstream.router import Candidate, Route
from confide.verifier.collateral import Collateral

SALT_BYTES = 32


class Upstreams:
    """Those that are open, by name. The embedded engine is not among them."""

    def __init__(self, open_one: Callable[[configuration.Upstream], Opened]) -> None:
        self._open_one = open_one
        self.opened: dict[str, Opened] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def replace(self, config: Config, *, drain_s: float) -> None:
        """Have those of this configuration open. Raises ConfigError, and then nothing has changed."""
        self.take(self.stage(config), drain_s=drain_s)

    def stage(self, config: Config) -> Mapping[str, Opened]:
        """Those that this configuration would have open, for `take`; so far nothing has changed. Raises ConfigError."""
        wanted = [each for each in config.upstream if each.kind != "embedded"]
        same = {name: each for name, each in self.opened.items() if each.settings in wanted}
        return same | {each.name: self._open_one(each) for each in wanted if each.name not in same}

    def take(self, staged: Mapping[str, Opened], *, drain_s: float) -> None:
        """Have these open, and no others."""
        before, self.opened = self.opened, dict(staged)
        for name, each in self.opened.items():
            if before.get(name) is not each:
                each.start()
        for name, each in before.items():
            if self.opened.get(name) is each:
                continue
            task = asyncio.create_task(each.close(drain_s=drain_s), name=f"drain {name}")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all, at once."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await asyncio.gather(*(each.close() for each in self.opened.values()))


@contextlib.asynccontextmanager
async def open_upstreams(
    config: Config,
    *,
    store: Store,
    now: Callable[[], int],
    log: Log,
    salt_key: bytes | None = None,
    lead: Lead | None = None,
) -> AsyncIterator[Upstreams]:
    """The upstreams of this configuration, closed on exit. `now`: Unix seconds. Raises ConfigError.

    `salt_key`: 32 bytes, drawn now where it is None. `lead`: who verifies those that are attested; None: this process.
    """
    collateral = Collateral(
        offline=config.attester.collateral == "none",
        pccs_url=config.attester.pccs_url,
        kds_url=config.attester.kds_url,
    )
    # Lives as long as the service: caches of the engine are met again until then.
    salt = os.urandom(SALT_BYTES) if salt_key is None else salt_key

    def open_one(given: configuration.Upstream) -> Opened:
        settings = own_part(given, config.server.workers)
        if given.kind not in configuration.ATTESTED_KINDS:
            opened = open_plain(settings, salt)
        elif lead is not None:
            opened = open_followed(settings, salt, lead, now=now, log=log)
        else:
            kept_s = config.store.receipt_ttl_s
            opened = open_attested(settings, salt, store, collateral, kept_s=kept_s, now=now, log=log)
        opened.settings = given
        return opened

    upstreams = Upstreams(open_one)
    try:
        upstreams.replace(config, drain_s=0.0)
        yield upstreams
    finally:
        await upstreams.close()


def served_models(
    config: Config,
    upstreams: Upstreams,
    engines: Mapping[str, Upstream],
    *,
    simulated: bool,
    created: int,
) -> list[ServedModel]:
    """The models of this configuration, each with its candidates. `engines`: by model id. `created`: Unix seconds."""
    return [
        ServedModel(
            model,
            Route(candidates(model, config, upstreams, engines), affinity=model.affinity),
            created=created,
            simulated=simulated,
            tee_only=model.tee_only or config.server.tee_only,
        )
        for model in config.model
    ]


def candidates(
    model: configuration.Model, config: Config, upstreams: Upstreams, engines: Mapping[str, Upstream]
) -> list[Candidate]:
    """The upstreams that the model names, in order."""
    found: list[Candidate] = []
    for choice in model.choices:
        name = choice.upstream_model or model.id
        opened = upstreams.opened.get(choice.name)
        if opened is None:
            found.append(Candidate(engines[model.id], name, name=choice.name, weight=choice.weight))
        else:
            found.append(Candidate(opened.upstream, name, name=choice.name, weight=choice.weight, health=opened.health))
    return found
