"""One upstream of a service, opened by its settings: what prompts go to, its health, and what looks after it."""

import asyncio
import math
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from urllib.parse import urlsplit

import msgspec

from confide import config as configuration
from confide.errors import ConfigError
from confide.evidence.policy import DstackPolicy, GpuPolicy
from confide.store.base import Store
from confide.telemetry.logs import Log
from confide.upstream.address import HTTPS_PORT
from confide.upstream.base import SurfaceName, Upstream
from confide.upstream.channel import Address, Channel, TcpAddress, Timeouts, TlsAddress, UnixAddress
from confide.upstream.documents import Documents
from confide.upstream.followed import FollowedUpstream, Lead
from confide.upstream.health import Health
from confide.upstream.kinds.aci import AciAppraiser
from confide.upstream.kinds.legacy_proxy import LegacyAppraiser
from confide.upstream.kinds.local import LocalUpstream
from confide.upstream.kinds.openai import OpenAiUpstream
from confide.upstream.kinds.relay import Relay
from confide.upstream.probe import probing
from confide.upstream.verified import LONGEST_ANSWER_S, Appraiser, AttestedUpstream, SessionUpstream
from confide.verifier.collateral import Collateral
from confide.verifier.policy import HARDWARE_ROOTS, Policy, Serving

DRAINED_EVERY_S = 0.1
DEFAULT_PATH = "/v1"
COUNTS_PART = 4  # one connection of so many may carry a count of tokens


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
        if isinstance(self.upstream, SessionUpstream):
            await self.upstream.stop_verifying()
        until = time.monotonic() + drain_s
        while self._is_busy() and time.monotonic() < until:  # noqa: ASYNC110 - an exchange tells nobody of its end
            await asyncio.sleep(DRAINED_EVERY_S)
        await asyncio.gather(*(relay.channel.close() for relay in self._relays()))

    def _is_busy(self) -> bool:
        return any(relay.channel.live for relay in self._relays())


def own_part(settings: configuration.Upstream, workers: int) -> configuration.Upstream:
    """The same with this process's part of what is bounded over all of them."""
    return msgspec.structs.replace(settings, max_connections=max(1, settings.max_connections // workers))


def open_plain(settings: configuration.Upstream, salt_key: bytes) -> Opened:
    """One that is inside this workload, or proves nothing. Raises ConfigError."""
    address, _ = parse_base_url(settings.base_url or "")
    health = Health(time.monotonic)
    relay = open_relay(settings, address, health, salt_key, configuration.upstream_key(settings))
    surfaces = surfaces_of(settings)
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
    health = Health(time.monotonic)
    upstream = AttestedUpstream(
        settings.name,
        appraiser_of(settings, collateral, now=now),
        relays_to(settings, health, salt_key),
        origin=origin_of(settings),
        health=health,
        store=store,
        session_s=settings.session_s,
        kept_s=kept_s,
        now=now,
        log=log,
        is_attested=set(settings.trust_roots) <= set(HARDWARE_ROOTS),
        answer_s=math.ceil(longest_answer_s(settings)),
        surfaces=surfaces_of(settings),
    )
    return Opened(
        settings,
        upstream,
        health,
        relay=lambda: upstream.relay,
        relays=lambda: upstream.relays,
        watch=upstream.watch,
    )


def open_followed(
    settings: configuration.Upstream, salt_key: bytes, lead: Lead, *, now: Callable[[], int], log: Log
) -> Opened:
    """The same, verified by another process of this service. Raises ConfigError."""
    health = Health(time.monotonic)
    policy_of(settings)  # as the one who verifies it would
    upstream = FollowedUpstream(
        settings.name,
        relays_to(settings, health, salt_key),
        lead=lead,
        health=health,
        now=now,
        log=log,
        is_attested=set(settings.trust_roots) <= set(HARDWARE_ROOTS),
        surfaces=surfaces_of(settings),
    )
    return Opened(settings, upstream, health, relay=lambda: upstream.relay, relays=lambda: upstream.relays)


def appraiser_of(settings: configuration.Upstream, collateral: Collateral, *, now: Callable[[], int]) -> Appraiser:
    """What asks an attested upstream for its evidence and judges it by these settings. Raises ConfigError."""
    address, base_path = parse_base_url(settings.base_url or "")
    assert isinstance(address, TlsAddress), "the configuration demands https"
    documents, policy = Documents(origin_of(settings) + base_path.removesuffix(DEFAULT_PATH)), policy_of(settings)
    if settings.kind == "aci":
        return AciAppraiser(documents, policy, host=address.host, now=now, draw=os.urandom, collateral=collateral)
    return LegacyAppraiser(documents, policy, now=now, draw=os.urandom, collateral=collateral)


def origin_of(settings: configuration.Upstream) -> str:
    """Scheme, host and port of an attested upstream."""
    address, _ = parse_base_url(settings.base_url or "")
    return f"https://{address.authority.decode()}"


def relays_to(settings: configuration.Upstream, health: Health, salt_key: bytes) -> Callable[[frozenset[bytes]], Relay]:
    """What makes a relay to an attested upstream with these TLS keys, and to no other. Raises ConfigError."""
    address, _ = parse_base_url(settings.base_url or "")
    assert isinstance(address, TlsAddress), "the configuration demands https"
    key = configuration.upstream_key(settings)
    return lambda pins: open_relay(settings, TlsAddress(address.host, address.port, pins), health, salt_key, key)


def surfaces_of(settings: configuration.Upstream) -> frozenset[SurfaceName]:
    """What it speaks itself: who speaks Messages counts tokens."""
    spoken: frozenset[SurfaceName] = frozenset(settings.surfaces)
    return spoken | {"count_tokens"} if "messages" in spoken else spoken


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
        key_header=settings.key_header,
        is_probed_as_messages="messages" in settings.surfaces,
        max_counts=max(1, settings.max_connections // COUNTS_PART),
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
