"""`confide reload`: let the running service read its configuration again."""

import contextlib
import os
import signal
import time
from pathlib import Path

import typer

from confide import config as configuration
from confide.errors import CannotTell, ConfigError

WITHIN_S = 30.0
LOOK_EVERY_S = 0.05


def reload() -> None:
    """Have the running service read its configuration again; upstreams and models change, or nothing does.

    It reads the file and the variables that it was started with.
    """
    from confide.gateway.reload import read_result
    from confide.store.lock import holder_of

    home = configuration.home()
    process = holder_of(home)
    if process is None:
        raise ConfigError(f"no confide server uses {home}", remedy="Start one with `confide serve`.")
    before = read_result(home)
    hang_up(process, home)
    until = time.monotonic() + WITHIN_S
    while time.monotonic() < until:
        result = read_result(home)
        if result is not None and (before is None or result.at_ns != before.at_ns):
            if result.error is not None:
                raise ConfigError(f"nothing was changed: {result.error}", remedy=result.remedy)
            typer.echo("\n".join(result.changes) or "nothing has changed")
            return
        time.sleep(LOOK_EVERY_S)
    raise CannotTell("the server did not say how the reload ended", remedy="Look at its log.")


def hang_up(process: int, home: Path) -> None:
    """Raises ConfigError where the process is another user's, or has just ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, signal.SIGHUP)
        return
    raise ConfigError(
        f"the server that uses {home} cannot be signalled", remedy="Run this as the user that the server runs as."
    )
