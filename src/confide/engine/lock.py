"""One change at a time to one installation, across processes."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from confide.engine import disk, manifest
from confide.engine.progress import Progress, silent


def partial_directory(home: Path) -> Path:
    """Where unfinished transfers and locks are kept; no id can name it."""
    return disk.make_directory(home / "models" / ".partial")


@contextlib.contextmanager
def held(home: Path, weights_id: str, progress: Progress = silent) -> Iterator[None]:
    """Hold the lock of `weights_id`; whoever comes second waits, and is told so. The kernel frees it on any death."""
    manifest.directory(home, weights_id)  # refuses an id that is no plain name
    path = partial_directory(home) / f"{weights_id}.lock"
    with disk.writing(path):
        file = path.open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("wait", 0, 0)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
