"""From a file, variables and options to one Config."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from confide.config.checks import check
from confide.config.explaining import explained, known_keys
from confide.config.kinds import DESCRIBED
from confide.config.sections import Config
from confide.errors import ConfigError

# Variables that are not settings of the file.
OTHER_VARIABLES = {"CONFIDE_HOME", "CONFIDE_TEST_HOME", "CONFIDE_CONFIG", "CONFIDE_API_KEY", "CONFIDE_BASE_URL"}
# Kubernetes sets these in every pod beside a Service named "confide"; they are nobody's mistake.
SERVICE_LINKS = re.compile(r"CONFIDE_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
LISTS = ("model", "upstream")


def load(
    path: Path | None,
    *,
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Mapping[str, object]] | None = None,
) -> Config:
    """Build the effective Config; `path` None means CONFIDE_CONFIG, or no file.

    `overrides` are sections from the command line. Raises ConfigError naming the file, variable or option, the key,
    and what was expected. Files that the configuration names are not looked at: see `check_files`.
    """
    path = path or (Path(environ["CONFIDE_CONFIG"]) if environ.get("CONFIDE_CONFIG") else None)
    tree = read_file(path) if path else {}
    origins = {"": str(path) if path else "configuration"}
    for section, values in from_environment(environ).items():
        origins |= {f"{section}.{key}": f"CONFIDE_{section}_{key}".upper() for key in values}
        merge(tree, section, values)
    for section, given in (overrides or {}).items():
        origins |= {f"{section}.{key}": f"--{key.replace('_', '-')}" for key in given}
        merge(tree, section, given)
    try:
        config = msgspec.convert(tree, Config, strict=True)
    except msgspec.ValidationError as error:
        raise explained(error, origins) from error
    check(config)
    return config


def merge(tree: dict[str, Any], section: str, values: Mapping[str, object]) -> None:
    """Put `values` over those of the file. A section that is no table stays: the conversion refuses it by name."""
    there = tree.get(section, {})
    if isinstance(there, dict):
        tree[section] = {**there, **values}


def read_file(path: Path) -> dict[str, Any]:
    """The TOML file as a tree; ConfigError with line and column when it does not parse."""
    try:
        return tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError as error:
        raise ConfigError(
            f"no configuration file at {path}", remedy="Name an existing one with --config or CONFIDE_CONFIG."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}", remedy="Name a TOML file that this user may read."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not valid TOML: byte {error.start} is not UTF-8", remedy="Save it as UTF-8."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", remedy=DESCRIBED) from error


def from_environment(environ: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """`CONFIDE_SECTION_KEY=value` as sections; values are read as TOML where they parse, else as text."""
    tree: dict[str, dict[str, object]] = {}
    for name, value in environ.items():
        if not name.startswith("CONFIDE_") or name in OTHER_VARIABLES or SERVICE_LINKS.fullmatch(name):
            continue
        section, _, key = name.removeprefix("CONFIDE_").lower().partition("_")
        if key not in settable(section):
            raise unknown_variable(name, section)
        if not value.isascii() and not is_unicode(value):
            raise ConfigError(f"the variable {name} is not UTF-8", remedy=DESCRIBED)
        tree.setdefault(section, {})[key] = toml_value(value)
    return tree


def settable(section: str) -> tuple[str, ...]:
    """The keys that a variable can set; a list of models or of upstreams does not fit into one."""
    return known_keys(section) if section not in LISTS else ()


def unknown_variable(name: str, section: str) -> ConfigError:
    keys = [f"CONFIDE_{section}_{key}".upper() for key in settable(section)]
    keys = keys or [f"CONFIDE_{name}_…".upper() for name in known_keys("") if settable(name)]
    return ConfigError(
        f"the variable {name} names no setting, expected one of: {', '.join(keys)}",
        remedy=f"Unset it. {DESCRIBED} Models and upstreams are set in the file alone.",
    )


def is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8: bytes of the environment that are not arrive as halves of surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def toml_value(text: str) -> object:
    """A number, boolean, quoted text or array where the text is one in TOML; otherwise the text itself."""
    try:
        value = tomllib.loads(f"v = {text}")["v"] if text.isprintable() else text
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, int | float | str | list) else text  # no setting is a date or a table
