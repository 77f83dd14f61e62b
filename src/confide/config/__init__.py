"""One frozen Config, from TOML and CONFIDE_* variables. Unknown keys are refused; every limit has a unit in its name.

Order, later wins: defaults, the file, variables (`CONFIDE_SERVER_PORT` sets `[server] port`), command-line options.
"""

from confide.config.addresses import is_loopback
from confide.config.files import check_files, upstream_key
from confide.config.kinds import DOMAIN, NONCE
from confide.config.loading import load
from confide.config.sections import (
    ATTESTED_KINDS,
    Attester,
    Choice,
    Config,
    Engine,
    KeyHeader,
    Limits,
    Model,
    Pricing,
    Section,
    Server,
    Source,
    Store,
    Upstream,
)
from confide.config.state_directory import HOME_REMEDY, home, locate_home

__all__ = [
    "ATTESTED_KINDS",
    "DOMAIN",
    "HOME_REMEDY",
    "NONCE",
    "Attester",
    "Choice",
    "Config",
    "Engine",
    "KeyHeader",
    "Limits",
    "Model",
    "Pricing",
    "Section",
    "Server",
    "Source",
    "Store",
    "Upstream",
    "check_files",
    "home",
    "is_loopback",
    "load",
    "locate_home",
    "upstream_key",
]
