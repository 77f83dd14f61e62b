"""Keys and files that a configuration names."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from confide.config.sections import Config, Upstream
from confide.errors import ConfigError

KEY = re.compile(r"[!-~]{1,4096}")


def upstream_key(upstream: Upstream, environ: Mapping[str, str] = os.environ) -> str | None:
    """The credential that this upstream wants, None where it wants none. Raises ConfigError; never shows it."""
    where = f"[[upstream]] {upstream.name}"
    if upstream.key_env is not None:
        key = environ.get(upstream.key_env, "").strip()
        source = f"key_env {upstream.key_env}"
    elif upstream.key_file is not None:
        source = f"key_file {upstream.key_file}"
        try:
            key = Path(upstream.key_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: {source}: cannot be read", remedy="Name a file of one line.") from error
    else:
        return None
    if not KEY.fullmatch(key):
        raise ConfigError(
            f"{where}: {source}: got no key, expected one line of printable ASCII", remedy="Set it, or leave it out."
        )
    return key


def check_files(config: Config) -> None:
    """That every file which the configuration names can be read, before anything slow begins. Raises ConfigError."""
    server = config.server
    named = {"[server] tls_cert": server.tls_cert, "[server] tls_key": server.tls_key}
    named |= {f"[[model]] {model.id}: projector": model.projector for model in config.model}
    named |= {
        f"[[upstream]] {each.name}: trust_roots": root
        for each in config.upstream
        for root in each.trust_roots
        if root not in ("intel", "amd")
    }
    for upstream in config.upstream:
        upstream_key(upstream)
    for key, path in named.items():
        try:
            if path is not None:
                Path(path).open("rb").close()
        except OSError as error:
            raise ConfigError(
                f"{key} {path}: cannot be read: {error.strerror}", remedy="Name a file that this user may read."
            ) from error
