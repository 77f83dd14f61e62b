"""What touches the disk: digests, durable writes, and the one sentence for a disk that is full or refuses."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from confide.engine.progress import Progress, silent
from confide.errors import ConfigError

CHUNK_BYTES = 1024 * 1024
ROOM_REMEDY = "Free space there, or set CONFIDE_HOME to a directory that this user may write, on a larger disk."


@contextlib.contextmanager
def writing(path: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Every OSError of the block as a ConfigError that names `path`, its cause and the bytes that are needed."""
    try:
        yield
    except OSError as error:
        need = f"; {needed_bytes} bytes are needed" if needed_bytes else ""
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}{need}", remedy=ROOM_REMEDY) from error


def require_room(directory: Path, needed_bytes: int) -> None:
    """Refuse early, before minutes of transfer, what cannot fit. Raises ConfigError."""
    with writing(directory, needed_bytes):
        free = shutil.disk_usage(directory).free
    if free < needed_bytes:
        raise ConfigError(f"{directory}: got {free} bytes free, {needed_bytes} are needed", remedy=ROOM_REMEDY)


def make_directory(path: Path) -> Path:
    """`path`, created with its parents where it is missing."""
    with writing(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def sha256_hex(path: Path, progress: Progress = silent) -> str:
    """SHA-256 of the file as 64 lower-case hex digits. Raises OSError."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress("check", done, total)
    return digest.hexdigest()


def move_durably(source: Path, target: Path) -> None:
    """Rename over `target`, and stay there after a power cut: file before name, name before return. Raises OSError."""
    sync(source)
    source.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
