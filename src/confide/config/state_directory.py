"""Where the state is kept."""

import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from confide.errors import ConfigError


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """The state directory, created 0700 where it is missing. Raises ConfigError where that fails."""
    path = locate_home(environ)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
        if found.st_mode & stat.S_ISVTX:  # narrowing /tmp would lock everybody else out of it
            raise ConfigError(f"the state directory {path} is shared by all users", remedy=HOME_REMEDY)
        if found.st_uid == os.getuid():
            path.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"the state directory {path} cannot be used: {error.strerror}", remedy=HOME_REMEDY) from error
    return path


HOME_REMEDY = "Set CONFIDE_HOME to a directory of its own that this user may write."


def locate_home(environ: Mapping[str, str] = os.environ) -> Path:
    """CONFIDE_HOME, or the platform's user data directory, as an absolute path. Changes nothing on disk."""
    try:
        path = Path(environ["CONFIDE_HOME"]) if environ.get("CONFIDE_HOME") else default_home(environ)
        return path.resolve()
    except (OSError, RuntimeError) as error:  # a loop of links; a user without a home directory
        raise ConfigError(f"the state directory cannot be found: {error}", remedy=HOME_REMEDY) from error


def default_home(environ: Mapping[str, str]) -> Path:
    """The directory that the platform's conventions name for user data, with `confide` below it."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "confide"
    base = environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "confide"
