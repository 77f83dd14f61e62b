"""Weights from a file on this disk: pointed to in place, or copied."""

import re
import shutil
from pathlib import Path

from confide.engine import catalogue, disk, gguf, lock, manifest
from confide.engine.catalogue import Installed, Weights
from confide.engine.progress import Progress, silent
from confide.errors import ConfigError


def add(
    home: Path,
    path: Path,
    *,
    id: str | None = None,
    licence: str | None = None,
    copy: bool = False,
    progress: Progress = silent,
) -> Installed:
    """Record a GGUF file with its SHA-256, or a copy of it.

    `id` None: the pinned id of these bytes, or one made from the file's name.

    Raises GgufError on another format or a truncated file, ConfigError when the id is taken by other bytes.
    """
    path = path.expanduser().absolute()
    metadata = gguf.read_metadata(path)
    check_one_file(path, metadata.split_count)
    check_outside(home, path, copy)
    digest = digest_of(path, progress)
    weights = Weights(
        id=id or id_of(path, digest),
        source=f"file:{path}",
        file=f"{path.stem}.gguf" if copy else str(path),
        size=path.stat().st_size,
        sha256=digest,
        licence=licence or licence_of(digest),
        context_length=metadata.context_length,
        kind=kind_of(metadata),
    )
    check_free(home, weights)
    with lock.held(home, weights.id, progress):
        target = disk.make_directory(manifest.directory(home, weights.id))
        if copy:
            copy_in(path, target / weights.file, weights.size)
        manifest.write(home, weights)
    return catalogue.find(home, weights.id)


def check_one_file(path: Path, splits: int) -> None:
    if splits > 1:
        raise ConfigError(
            f"{path}: one of {splits} parts of a split model",
            remedy="Merge the parts into one GGUF file, then add that.",
        )


def kind_of(metadata: gguf.GgufMetadata) -> manifest.Kind:
    return "embeddings" if metadata.makes_vectors else "chat"


def check_outside(home: Path, path: Path, copy: bool) -> None:
    """A file of ours cannot be recorded as the user's: removing one would take the other away."""
    if not copy and path.resolve().is_relative_to((home / "models").resolve()):
        raise ConfigError(f"{path}: lies inside the state directory", remedy="Move it out, or add it with --copy.")


def check_free(home: Path, weights: Weights) -> None:
    """An id means one set of bytes for as long as it is installed, and a pinned id always."""
    holder = catalogue.pinned(weights.id) or manifest.read(home, weights.id)
    if holder is not None and holder.sha256 != weights.sha256:
        raise ConfigError(
            f"the id {weights.id}: taken by weights with SHA-256 {holder.sha256}, got {weights.sha256}",
            remedy="Choose another with --id.",
        )


def digest_of(path: Path, progress: Progress) -> str:
    try:
        return disk.sha256_hex(path, progress)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def id_of(path: Path, digest: str) -> str:
    """The pinned id of the same bytes, so that a copy from elsewhere serves without a network; else the file's name."""
    same = (weights.id for weights in catalogue.PINNED if weights.sha256 == digest)
    return next(same, None) or id_from_name(path.name)


def id_from_name(name: str) -> str:
    """`Qwen3 0.6B-Q8_0.gguf` as `qwen3-0.6b-q8_0`."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", name.lower().removesuffix(".gguf")).strip("-._")[:100]
    if not plain:
        raise ConfigError(f"no id can be made from the file name {name!r}", remedy="Choose one with --id.")
    return plain


def licence_of(digest: str) -> str | None:
    return next((weights.licence for weights in catalogue.PINNED if weights.sha256 == digest), None)


def copy_in(source: Path, target: Path, size: int) -> None:
    """Copy, then take the name; a copy that fails half-way leaves nothing. The digest is checked at start."""
    disk.require_room(target.parent, size)
    draft = target.with_suffix(".new")
    try:
        with disk.writing(target, size):
            shutil.copyfile(source, draft)
            disk.move_durably(draft, target)
    finally:
        draft.unlink(missing_ok=True)
