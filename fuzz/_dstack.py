"""An honest guest of the simulator: what the fuzz targets of dstack's evidence start from."""

import json
from dataclasses import replace
from typing import Any

from confide.evidence import mr_config
from confide.evidence.quote import parse_quote
from confide.simulator.measurements import APP_ID, COMPOSE_HASH, LogStyle
from confide.simulator.tdx import SimulatedTdxPlatform

PLATFORM = SimulatedTdxPlatform(b"\x03" * 32, now=1_800_000_000, log=LogStyle(application_event=True))
LOG: list[dict[str, Any]] = json.loads(PLATFORM.event_log)
QUOTE_OF_LOG = parse_quote(PLATFORM.quote(bytes(64)))

DOCUMENT: dict[str, Any] = {
    "version": 3,
    "app_id": APP_ID.hex(),
    "compose_hash": COMPOSE_HASH.hex(),
    "instance_id": PLATFORM.info["instance_id"],
    "key_provider": "kms",
    "key_provider_id": json.loads(str(PLATFORM.info["key_provider_info"]))["id"],
}
QUOTE_OF_DOCUMENT = replace(QUOTE_OF_LOG, mr_config_id=mr_config.form_3(json.dumps(DOCUMENT)))
