"""A guest's boot log, the quote that belongs to it, and what else dstack's evidence holds, piece by piece."""

import json
from dataclasses import replace
from hashlib import sha256, sha384
from typing import Any

from confide.evidence.quote import TdxQuote, parse_quote
from confide.evidence.result import passed
from confide.evidence.tdx import QUOTE, TdxResult
from confide.simulator.tdx import SimulatedTdxPlatform

Document = dict[str, Any]

NOW = 1_800_000_000
RUNTIME_EVENT = 0x08000001
PLATFORM = SimulatedTdxPlatform(b"\x11" * 32, now=NOW)
QUOTE_OF_PLATFORM = parse_quote(PLATFORM.quote(bytes(range(64))))

COMPOSE = '{"name": "an application"}'
COMPOSE_HASH = sha256(COMPOSE.encode()).digest()
APP_ID = bytes(range(20))
INSTANCE_ID = bytes(range(20, 40))
PROVIDER_ID = bytes(range(91))
PROVIDER = json.dumps({"name": "kms", "id": PROVIDER_ID.hex()}).encode()


def runtime(name: str, payload: bytes = b"", **changes: object) -> Document:
    """A runtime event with its right digest, in form 2 where `version=2` is among the changes."""
    content = RUNTIME_EVENT.to_bytes(4, "little") + b":" + name.encode() + b":" + payload
    if changes.get("version") == 2:
        members = {"name": name, "payload": payload.hex(), "type": RUNTIME_EVENT}
        content = json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode()
    event = {"imr": 3, "event_type": RUNTIME_EVENT, "event": name, "event_payload": payload.hex()}
    return event | {"digest": sha384(content).hexdigest()} | changes


def boot_entry(imr: int, what: str = "firmware") -> Document:
    """A digest that the firmware measured."""
    digest = sha384(what.encode()).hexdigest()
    return {"imr": imr, "event_type": 6, "digest": digest, "event": "", "event_payload": ""}


def boot_log(*, without: str = "", **payloads: bytes) -> list[Document]:
    """A whole boot. `payloads`: by event name, underscores for hyphens; a name that is not there yet is added."""
    events = {
        "system-preparing": b"",
        "app-id": APP_ID,
        "compose-hash": COMPOSE_HASH,
        "instance-id": INSTANCE_ID,
        "boot-mr-done": b"",
        "key-provider": PROVIDER,
    } | {name.replace("_", "-"): payload for name, payload in payloads.items()}
    events.pop(without, None)
    firmware = [boot_entry(0), boot_entry(1), boot_entry(1, "kernel"), boot_entry(2)]
    named = [runtime(name, payload) for name, payload in events.items()]
    return firmware + named + ([] if without == "system-ready" else [runtime("system-ready")])


def replayed(events: list[Document], imr: int = 3) -> bytes:
    """One register after the log's own digests."""
    register = bytes(48)
    for event in events:
        if event["imr"] == imr:
            register = sha384(register + bytes.fromhex(event["digest"]).ljust(48, b"\0")).digest()
    return register


def quote_of(events: list[Document], **changes: bytes) -> TdxQuote:
    """A quote with the registers of this log, and no `mr_config_id` unless it is among the changes."""
    registers: dict[str, Any] = {f"rtmr{imr}": replayed(events, imr) for imr in range(4)}
    return replace(QUOTE_OF_PLATFORM, **({"mr_config_id": bytes(48)} | registers | changes))


def judged(quote: TdxQuote, *, genuine: bool = True) -> TdxResult:
    """The quote as `verify_tdx` would hand it on."""
    return TdxResult(NOW, (passed(QUOTE, "taken as verified"),) if genuine else (), quote=quote)
