"""One server for one state directory. The lock is the kernel's: it ends with the process, however that ends."""

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from confide.errors import ConfigError

LOCK_NAME = "serve.lock"


class StateLock:
    """Held from `lock_state` until `release`, or the end of a `with` block."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let another server start. Once more does nothing. The file stays: removing it would race with the next."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def holder_of(home: Path) -> int | None:
    """The process that serves from `home`, None where none does."""
    try:
        descriptor = os.open(home / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        found = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        return int(found) if found.isdecimal() else None
    finally:
        os.close(descriptor)
    return None


def lock_state(home: Path) -> StateLock:
    """Claim `home` for this server. Raises ConfigError naming the process that has it."""
    path = home / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"the lock file {path} cannot be opened: {error.strerror}",
            remedy="Set CONFIDE_HOME to a directory that this user may write.",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise ConfigError(
            f"another confide server (process {holder}) uses {home}",
            remedy="Stop that server, or set CONFIDE_HOME to another directory for this one.",
        ) from error
    with contextlib.suppress(OSError):  # on a full disk the lock still holds; only its holder stays unnamed
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return StateLock(descriptor)
