"""What was fetched, kept in files (tee-evidence 4.4): one file an entry, written whole or not at all, mode 0600.

A file that is broken, of another version, not a plain file of this user's, or open to other writers counts as absent.
Whether what is kept is still good is for the reader to say (`supply.py`): nothing here knows what it is.
"""

import contextlib
import os
import re
import secrets
import stat
import threading
from pathlib import Path
from typing import Protocol

import msgspec

VERSION = 1
MAX_ENTRY_BYTES = 4 * 1024 * 1024
MAX_ENTRIES = 1024
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,150}")
SUFFIX = ".json"


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry. `source`: the address it came from. `fetched_at`: Unix seconds. `content`: text, with DER in hex."""

    name: str
    source: str
    fetched_at: int
    content: str
    version: int = VERSION


class Cache(Protocol):
    """Where entries are kept. Names are lower-case letters, digits and hyphens, at most 151."""

    def get(self, name: str) -> Kept | None:
        """The entry, None where there is none that can be read."""

    def put(self, kept: Kept) -> None:
        """Keep it in place of the one with its name. Where that cannot be done it is not kept."""


class MemoryCache:
    """Entries of this process, at most MAX_ENTRIES: the oldest goes first. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, Kept] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of what it holds, the oldest first."""
        return tuple(self._entries)

    def get(self, name: str) -> Kept | None:
        return self._entries.get(name)

    def put(self, kept: Kept) -> None:
        with self._lock:
            self._entries.pop(kept.name, None)
            self._entries[kept.name] = kept
            while len(self._entries) > MAX_ENTRIES:
                del self._entries[next(iter(self._entries))]


class FileCache:
    """Entries in files of one directory, which is made with mode 0700 when the first one is kept."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def get(self, name: str) -> Kept | None:
        """The entry, or None. Costs one small file."""
        try:
            return read_entry(read_private(self._path(name)), name)
        except OSError:
            return None

    def put(self, kept: Kept) -> None:
        """Keep it. On a full disk, or in a directory that cannot be written, it is fetched again next time."""
        data = msgspec.json.encode(kept)
        if len(data) > MAX_ENTRY_BYTES:
            return
        with contextlib.suppress(OSError):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self._path(kept.name), data)
            self._forget_oldest()

    def _path(self, name: str) -> Path:
        if NAME.fullmatch(name) is None:
            raise ValueError(f"no name for an entry: {name!r}")
        return self._directory / f"{name}{SUFFIX}"

    def _forget_oldest(self) -> None:
        files = [entry for entry in os.scandir(self._directory) if entry.name.endswith(SUFFIX)]
        if len(files) <= MAX_ENTRIES:
            return
        by_age = sorted(files, key=lambda entry: entry.stat(follow_symlinks=False).st_mtime_ns)
        for entry in by_age[: len(files) - MAX_ENTRIES]:
            os.unlink(entry.path)


def read_entry(data: bytes, name: str) -> Kept | None:
    """The entry of this name in a file's bytes, None where they hold another or none."""
    try:
        kept = msgspec.json.decode(data, type=Kept)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return kept if (kept.name, kept.version) == (name, VERSION) else None


def read_private(path: Path) -> bytes:
    """The file's bytes. Raises OSError, also for one that is not ours alone to write, or too large."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        is_ours = status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not stat.S_ISREG(status.st_mode) or not is_ours or status.st_size > MAX_ENTRY_BYTES:
            raise PermissionError(f"{path} is not a file that this user alone may write")
        return file.read(MAX_ENTRY_BYTES + 1)


def write_whole(path: Path, data: bytes) -> None:
    """The file with this content and mode 0600, whole or not at all. Raises OSError."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        with contextlib.suppress(OSError):  # it was renamed, or what went wrong is on its way already
            draft.unlink()
