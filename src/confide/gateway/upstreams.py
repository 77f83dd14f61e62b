"""The upstreams of one service: opened from the configuration, probed, verified, and closed again.

A reload opens what is new, keeps what is the same to the last key, and closes what is gone once its last answer has
ended (`Upstreams.replace`).
"""

import asyncio
import contextlib
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from urllib.parse import urlsplit

from confide import config as configuration
from confide.config import Config
from confide.errors import ConfigError
from confide.evidence.policy import DstackPolicy, GpuPolicy
from confide.gateway.models import ServedModel
from confide.store.base import Store
from confide.telemetry.logs import Log
from confide.upstream.address import HTTPS_PORT
from confide.upstream.base import SurfaceName, Upstream
from confide.upstream.channel import Address, Channel, TcpAddress, Timeouts, TlsAddress, UnixAddress
from confide.upstream.documents import Documents
from confide.upstream.health import Health
from confide.upstream.kinds.aci import AciAppraiser
from confide.upstream.kinds.legacy_proxy import LegacyAppraiser
from confide.upstream.kinds.local import LocalUpstream
from confide.upstream.kinds.openai import OpenAiUpstream
from confide.upstream.kinds.relay import Relay
from confide.upstream.probe import probing
from confide.upstream.router import Candidate, Route
from confide.upstream.verified import LONGEST_ANSWER_S, Appraiser, AttestedUpstream
from confide.verifier.collateral import Collateral
from confide.verifier.policy import HARDWARE_ROOTS, Policy, Serving

DRAINED_EVERY_S = 0.1
DEFAULT_PATH = "/v1"
SALT_BYTES = 32


class Opened:
    """One upstream that may be sent prompts. `settings`: what it was opened from. `relay`: the one in use, None while
    nothing may be sent. `relays`: that one, and those that have exchanges to end. `work`: what looks after it.
    """

    def __init__(
        self,
        settings: configuration.Upstream,
        upstream: Upstream,
        health: Health,
        *,
        relay: Callable[[], Relay | None],
        relays: Callable[[], Sequence[Relay]],
        watch: Callable[[], Coroutine[None, None, None]] | None = None,
    ) -> None:
        self.settings = settings
        self.upstream = upstream
        self.health = health
        self._relay = relay
        self._relays = relays
        self._watch = watch
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to look after it."""
        if self._watch is not None:
            self._tasks.append(asyncio.create_task(self._watch(), name=f"watch {self.settings.name}"))
        base_path = parse_base_url(self.settings.base_url or "")[1]
        path = {"models": f"{base_path}/models", "health": "/health"}.get(self.settings.probe)
        if path is not None:
            self._tasks.append(asyncio.create_task(probing(self._relay, path), name=f"probe {self.settings.name}"))

    async def close(self, *, drain_s: float = 0.0) -> None:
        """Close it, once nothing is under way over it or `drain_s` seconds have passed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if isinstance(self.upstream, AttestedUpstream):
            await self.upstream.stop_verifying()
        until = time.monotonic() + drain_s
        while self._is_busy() and time.monotonic() < until:  # noqa: ASYNC110 - an exchange tells nobody of its end
            await asyncio.sleep(DRAINED_EVERY_S)
        await asyncio.gather(*(relay.channel.close() for relay in self._relays()))

    def _is_busy(self) -> bool:
        return any(relay.channel.live for relay in self._relays())


class Upstreams:
    """Those that are open, by name. The embedded engine is not among them."""

    def __init__(self, open_one: Callable[[configuration.Upstream], Opened]) -> None:
        self._open_one = open_one
        self.opened: dict[str, Opened] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def replace(self, config: Config, *, drain_s: float) -> None:
        """Have those of this configuration open. Raises ConfigError, and then nothing has changed."""
        wanted = [each for each in config.upstream if each.kind != "embedded"]
        same = {name: each for name, each in self.opened.items() if each.settings in wanted}
        new = [self._open_one(each) for each in wanted if each.name not in same]
        gone = [each for name, each in self.opened.items() if name not in same]
        self.opened = same | {each.settings.name: each for each in new}
        for each in new:
            each.start()
        for each in gone:
            task = asyncio.create_task(each.close(drain_s=drain_s), name=f"drain {each.settings.name}")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all, at once."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await asyncio.gather(*(each.close() for each in self.opened.values()))


@contextlib.asynccontextmanager
async def open_upstreams(config: Config, *, store: Store, now: Callable[[], int], log: Log) -> AsyncIterator[Upstreams]:
    """The upstreams of this configuration, closed on exit. `now`: Unix seconds. Raises ConfigError."""
    collateral = Collateral(
        offline=config.attester.collateral == "none",
        pccs_url=config.attester.pccs_url,
        kds_url=config.attester.kds_url,
    )
    salt_key = os.urandom(SALT_BYTES)  # lives as long as the process: caches of the engine are met again until then

    def open_one(settings: configuration.Upstream) -> Opened:
        if settings.kind in configuration.ATTESTED_KINDS:
            return open_attested(
                settings, salt_key, store, collateral, kept_s=config.store.receipt_ttl_s, now=now, log=log
            )
        return open_plain(settings, salt_key)

    upstreams = Upstreams(open_one)
    try:
        upstreams.replace(config, drain_s=0.0)
        yield upstreams
    finally:
        await upstreams.close()


def open_plain(settings: configuration.Upstream, salt_key: bytes) -> Opened:
    """One that is inside this workload, or proves nothing. Raises ConfigError."""
    address, _ = parse_base_url(settings.base_url or "")
    health = Health(time.monotonic)
    relay = open_relay(settings, address, health, salt_key, configuration.upstream_key(settings))
    surfaces: frozenset[SurfaceName] = frozenset(settings.surfaces)
    upstream: Upstream = LocalUpstream(relay, health, description=f"{settings.name}, local", surfaces=surfaces)
    if settings.kind == "openai":
        upstream = OpenAiUpstream(settings.name, relay, health, surfaces=surfaces)
    return Opened(settings, upstream, health, relay=lambda: relay, relays=lambda: [relay])


def open_attested(
    settings: configuration.Upstream,
    salt_key: bytes,
    store: Store,
    collateral: Collateral,
    *,
    kept_s: int,
    now: Callable[[], int],
    log: Log,
) -> Opened:
    """One that has to be verified before it is sent anything. `collateral`: where to get what its reports lack.

    Raises ConfigError.
    """
    address, base_path = parse_base_url(settings.base_url or "")
    assert isinstance(address, TlsAddress), "the configuration demands https"
    health, key = Health(time.monotonic), configuration.upstream_key(settings)
    origin = f"https://{address.authority.decode()}"
    documents = Documents(origin + base_path.removesuffix(DEFAULT_PATH))
    policy = policy_of(settings)
    appraiser: Appraiser = LegacyAppraiser(documents, policy, now=now, draw=os.urandom, collateral=collateral)
    if settings.kind == "aci":
        appraiser = AciAppraiser(documents, policy, host=address.host, now=now, draw=os.urandom, collateral=collateral)

    def make_relay(pins: frozenset[bytes]) -> Relay:
        return open_relay(settings, TlsAddress(address.host, address.port, pins), health, salt_key, key)

    upstream = AttestedUpstream(
        settings.name,
        appraiser,
        make_relay,
        origin=origin,
        health=health,
        store=store,
        session_s=settings.session_s,
        kept_s=kept_s,
        now=now,
        log=log,
        is_attested=set(settings.trust_roots) <= set(HARDWARE_ROOTS),
        answer_s=math.ceil(longest_answer_s(settings)),
        surfaces=frozenset(settings.surfaces),
    )
    return Opened(
        settings,
        upstream,
        health,
        relay=lambda: upstream.relay,
        relays=lambda: upstream.relays,
        watch=upstream.watch,
    )


def longest_answer_s(settings: configuration.Upstream) -> float:
    """No answer may outlive the session that its receipt cites."""
    return settings.total_timeout_s or LONGEST_ANSWER_S


def policy_of(settings: configuration.Upstream) -> Policy:
    """What this upstream has to prove. Raises ConfigError."""
    try:
        return Policy(
            trust_roots=settings.trust_roots,
            accepted_tcb=settings.accepted_tcb,
            denied_advisories=settings.denied_advisories,
            compose_hashes=settings.compose_hashes,
            claims=settings.claims,
            gpu=GpuPolicy(required_gpus=settings.required_gpus),
            dstack=DstackPolicy(kms_roots=frozenset(settings.kms_roots)),
            requirements=() if settings.accept_aggregator else (Serving("direct"),),
        )
    except (ConfigError, ValueError) as error:
        remedy = error.remedy if isinstance(error, ConfigError) else None
        raise ConfigError(f"[[upstream]] {settings.name}: {error}", remedy=remedy) from error


def open_relay(
    settings: configuration.Upstream, address: Address, health: Health, salt_key: bytes, api_key: str | None
) -> Relay:
    """A channel and what is sent over it."""
    is_attested = settings.kind in configuration.ATTESTED_KINDS
    channel = Channel(
        address,
        timeouts=Timeouts(
            connect_s=settings.connect_timeout_s,
            first_byte_s=settings.first_byte_timeout_s,
            idle_s=settings.idle_timeout_s,
            total_s=longest_answer_s(settings) if is_attested else settings.total_timeout_s,
        ),
        max_connections=settings.max_connections,
    )
    return Relay(
        channel,
        health=health,
        base_path=parse_base_url(settings.base_url or "")[1],
        api_key=api_key,
        salt_key=salt_key if settings.cache_salt else None,
    )


def parse_base_url(base_url: str) -> tuple[Address, str]:
    """Where it listens, and the path of its API without a slash at its end. `base_url`: one that the configuration
    accepted.
    """
    if base_url.startswith("unix:"):
        return UnixAddress("/" + base_url.removeprefix("unix:").lstrip("/")), DEFAULT_PATH
    url = urlsplit(base_url)
    host = url.hostname or ""
    path = url.path.rstrip("/") or DEFAULT_PATH
    if url.scheme == "https":
        return TlsAddress(host, url.port or HTTPS_PORT, None), path
    return TcpAddress(host, url.port or 80), path


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
