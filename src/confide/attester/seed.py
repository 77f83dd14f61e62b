"""The seed of the SIMULATED TEE: where the platform would give keys, a file does, and it protects nothing."""

import os
import secrets
import stat
from pathlib import Path

from confide.attester.keys import SEED_BYTES
from confide.errors import ConfigError


def load_seed(directory: Path) -> bytes:
    """The 32-byte seed of the SIMULATED TEE in `directory` (`<home>/simulator`), made on first use.

    The directory is 0700 and the file 0600. Processes that start together agree: one makes the seed, all read it.
    Raises ConfigError on a wrong length, loose permissions or a failing disk.
    """
    path = directory / "seed"
    try:
        make_private(directory)
        if not path.exists():
            create_seed(path)
        return read_seed(path)
    except OSError as error:
        raise ConfigError(
            f"the seed of the simulated TEE {path} cannot be used: {error.strerror}",
            remedy=f"Use a directory on a local disk that this user may write, not {directory}.",
        ) from error


def make_private(directory: Path) -> None:
    """Create the directory as 0700, or require that it is no looser. Raises ConfigError or OSError."""
    if not directory.exists():
        directory.mkdir(mode=0o700, exist_ok=True)
        fsync_directory(directory.parent)
    refuse_loose(directory, directory.stat().st_mode, "700")


def create_seed(path: Path) -> None:
    """Put a whole seed at `path`, or leave the one that another process put there first."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SEED_BYTES))
            file.flush()
            os.fsync(descriptor)
        # A link appears whole or not at all, and unlike a rename it never replaces the seed of a faster process.
        os.link(draft, path)
    except FileExistsError:
        pass  # the other process won; its seed is read
    finally:
        draft.unlink()
    fsync_directory(path.parent)


def read_seed(path: Path) -> bytes:
    """The seed, from a file that nobody else can read. Raises ConfigError or OSError."""
    with path.open("rb") as file:
        refuse_loose(path, os.fstat(file.fileno()).st_mode, "600")
        seed = file.read(SEED_BYTES + 1)
    if len(seed) != SEED_BYTES:
        size = "more than 32" if len(seed) > SEED_BYTES else len(seed)
        raise ConfigError(
            f"the seed of the simulated TEE {path} has a wrong length: got {size} bytes, expected {SEED_BYTES}",
            remedy=f"Restore {path}, or delete it: the next start makes new keys and a new root.",
        )
    return seed


def refuse_loose(path: Path, mode: int, allowed: str) -> None:
    """ConfigError when anyone but the owner has a permission on `path`. `allowed`: the octal mode to set."""
    if mode & stat.S_ISVTX:
        raise ConfigError(
            f"{path} is shared by all users", remedy=f"Use a directory of its own, such as {path}/confide."
        )
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(
            f"{path} holds secrets and is open to others: got mode {stat.S_IMODE(mode):o}, expected {allowed}",
            remedy=f"If nobody else has read it, run: chmod {allowed} {path}",
        )


def fsync_directory(directory: Path) -> None:
    """Make the names in the directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
