"""What `confide doctor` asks of the configured upstreams: whether each is there, is who it should be, has the models.

Each is met as the service meets it: an attested one is verified before it is asked anything, and only then given its
key.
"""

import asyncio
import os
import socket
import time
from collections.abc import Sequence

import msgspec

from confide import config as configuration
from confide.cli.finding import Finding, fail, ok, refused, warn
from confide.config import Config, Upstream
from confide.errors import ConfigError
from confide.gateway.opened import appraiser_of, open_relay, origin_of, parse_base_url, relays_to
from confide.upstream.channel import Address, ChannelError, UnixAddress
from confide.upstream.health import Health
from confide.upstream.kinds.relay import Relay
from confide.upstream.probe import BODY_MOST_BYTES, WITHIN_S
from confide.upstream.sessions import SIMULATED, Shown
from confide.upstream.verified import CannotVerify, DoesNotHold
from confide.verifier.collateral import Collateral
from confide.verifier.policy import HARDWARE_ROOTS

UNUSED_SALT = bytes(32)
NAMES_MOST = 8
WHERE = "correct base_url"
KEY_REMEDY = "Give it the upstream's key by key_env or key_file; key_header says in which header it goes."


def upstreams(config: Config) -> Sequence[Finding]:
    """A finding for each of them but the embedded engine, all looked at together."""
    named = [each for each in config.upstream if each.kind != "embedded"]

    async def look_at_all() -> list[Finding]:
        return await asyncio.gather(*(look_at(each, config) for each in named))

    return asyncio.run(look_at_all()) if named else []


async def look_at(settings: Upstream, config: Config) -> Finding:
    """The first thing that is wrong with it, or that it serves."""
    check = f"upstream {settings.name}"
    try:
        configuration.upstream_key(settings)
        address, _ = parse_base_url(settings.base_url or "")
        missing = await unreachable(check, address, settings)
        if missing is not None:
            return missing
        if settings.kind in configuration.ATTESTED_KINDS:
            return await attested(check, settings, config)
        return await answers(check, plain_relay(settings), settings, config, "reached")
    except ConfigError as error:
        return refused(check, error)


async def unreachable(check: str, address: Address, settings: Upstream) -> Finding | None:
    """A finding when its address does not resolve or nobody listens there."""
    place = address.path if isinstance(address, UnixAddress) else f"{address.host} port {address.port}"
    remedy = f"See that it runs and listens there, and that nothing is in between; or {WHERE}."
    try:
        async with asyncio.timeout(settings.connect_timeout_s):
            await touch(address)
    except TimeoutError:
        return warn(check, f"{place}: no connection within {settings.connect_timeout_s:g} s", remedy)
    except socket.gaierror as error:
        return warn(
            check, f"{place}: the name does not resolve: {error.strerror}", f"See that names resolve here, or {WHERE}."
        )
    except OSError as error:
        return warn(check, f"{place}: {os.strerror(error.errno) if error.errno else 'no connection'}", remedy)
    return None


async def touch(address: Address) -> None:
    """Connect, and say nothing. Raises OSError."""
    if isinstance(address, UnixAddress):
        _, writer = await asyncio.open_unix_connection(address.path)
    else:
        _, writer = await asyncio.open_connection(address.host, address.port)
    writer.transport.abort()


async def attested(check: str, settings: Upstream, config: Config) -> Finding:
    """Whether it proves what it has to, and then whether it serves. Raises ConfigError."""
    attester = config.attester
    collateral = Collateral(offline=attester.collateral == "none", pccs_url=attester.pccs_url, kds_url=attester.kds_url)
    appraiser = appraiser_of(settings, collateral, now=lambda: int(time.time()))
    try:
        shown = await appraiser.appraise()
    except CannotVerify as error:
        document = "/v1/aci/attestation" if settings.kind == "aci" else "/v1/attestation/report"
        remedy = f"See that it serves {document} below {origin_of(settings)}; kind says which report is asked for."
        return warn(check, f"could not be verified, so nothing is sent to it: {error.message}", remedy)
    except DoesNotHold as error:
        return fail(check, f"does not prove what it has to, so nothing is sent to it: {error.message}", why(settings))
    relay = relays_to(settings, Health(time.monotonic), UNUSED_SALT)(shown.pins)
    return await answers(check, relay, settings, config, proven(shown))


def proven(shown: Shown) -> str:
    """What its evidence has shown, in a few words."""
    claims = ", ".join(sorted(shown.claims))
    return f"verified ({claims})" if not shown.simulated else f"verified, {SIMULATED} ({claims})"


def why(settings: Upstream) -> str:
    """How to learn more than the name of the check."""
    if settings.kind != "aci":
        return "Ask whoever runs it, or change what it has to show (trust_roots, accepted_tcb, compose_hashes)."
    roots = "".join(f" --trust-root {root}" for root in settings.trust_roots if root not in HARDWARE_ROOTS)
    return f"`confide verify {origin_of(settings)}{roots}` gives the reason of each check."


def plain_relay(settings: Upstream) -> Relay:
    """What speaks to one that proves nothing, or need not. Raises ConfigError."""
    address, _ = parse_base_url(settings.base_url or "")
    return open_relay(settings, address, Health(time.monotonic), UNUSED_SALT, configuration.upstream_key(settings))


async def answers(check: str, relay: Relay, settings: Upstream, config: Config, so_far: str) -> Finding:
    """What it says to the question for its models, unless it is not to be asked. `so_far`: what is known already."""
    where = f"{settings.base_url}, {so_far}"
    if settings.probe == "none":
        return ok(check, where)
    try:
        async with asyncio.timeout(WITHIN_S):
            status, body = await ask(relay)
    except (ChannelError, TimeoutError) as error:
        reason = error.message if isinstance(error, ChannelError) else f"no answer within {WITHIN_S:g} s"
        return warn(check, f"{where}, but gives no list of models: {reason}", f"Look at its log, or {WHERE}.")
    finally:
        await relay.channel.close()
    if status in (401, 403):
        return warn(check, f"{where}, but refuses the key (status {status})", KEY_REMEDY)
    if status >= 500:
        return warn(check, f"{where}, but answers with status {status}", "Look at its log.")
    return ok(check, where) if status != 200 else models(check, where, body, settings, config)


async def ask(relay: Relay) -> tuple[int, bytes]:
    """Status and body of its list of models. Raises ChannelError."""
    path = f"{relay.base_path}/models".encode()
    exchange = await relay.channel.send(b"GET", path, relay.probe_headers, b"")
    try:
        return exchange.status, await exchange.read_all(BODY_MOST_BYTES)
    finally:
        exchange.abort()


class Listed(msgspec.Struct):
    id: str


class List(msgspec.Struct):
    data: list[Listed] = []
    has_more: bool = False  # services of Anthropic's shape show a page of them


def models(check: str, where: str, body: bytes, settings: Upstream, config: Config) -> Finding:
    """Whether it lists the models that it is to serve; one that lists none in OpenAI's form is not asked further."""
    try:
        page = msgspec.json.decode(body, type=List)
    except (msgspec.DecodeError, UnicodeDecodeError):
        page = List()
    listed = [each.id for each in page.data]
    wanted = {
        str(choice.upstream_model) for model in config.model for choice in model.choices if choice.name == settings.name
    }
    absent = sorted(wanted.difference(listed))
    if listed and absent and not page.has_more:
        names = ", ".join(listed[:NAMES_MOST]) + (", …" if len(listed) > NAMES_MOST else "")
        return warn(check, f"{where}, but does not list {', '.join(absent)}", f"Set upstream_model to one of: {names}.")
    return ok(check, f"{where}, lists {', '.join(sorted(wanted))}" if listed and not absent else where)
