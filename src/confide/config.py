"""One frozen Config, from TOML and CONFIDE_* variables. Unknown keys are refused; every limit has a unit in its name.

Order, later wins: defaults, the file, variables (`CONFIDE_SERVER_PORT` sets `[server] port`), command-line options.
"""

import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from confide.errors import ConfigError

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
ModelId = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"^[^\s\x00-\x1f]+$")]

# Variables that are not settings of the file.
OTHER_VARIABLES = {"CONFIDE_HOME", "CONFIDE_TEST_HOME", "CONFIDE_CONFIG", "CONFIDE_API_KEY", "CONFIDE_BASE_URL"}


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file. Unknown keys are refused."""


class Server(Section, frozen=True):
    """`[server]`: where it listens and what it accepts."""

    host: str = "127.0.0.1"
    port: Port = 8080
    tls_cert: str | None = None  # PEM files; the leaf's key is what report version 2 binds
    tls_key: str | None = None
    max_body_bytes: Positive = 32 * 1024 * 1024
    drain_s: Seconds = 20.0
    keepalive_comment_s: Seconds | None = None
    remote_images: bool = False


class Attester(Section, frozen=True):
    """`[attester]`: who produces evidence."""

    kind: Literal["auto", "simulated"] = "auto"


class Store(Section, frozen=True):
    """`[store]`: where proofs and keys are kept. `url` None means a file under CONFIDE_HOME."""

    url: Annotated[str, msgspec.Meta(pattern=r"^sqlite:///.+$")] | None = None
    receipt_ttl_s: Annotated[int, msgspec.Meta(ge=60)] = 3600
    max_proofs: Annotated[int, msgspec.Meta(ge=100)] = 1_000_000
    synchronous: Literal["normal", "full"] = "normal"


class Limits(Section, frozen=True):
    """`[limits]`: what one service takes on at a time."""

    queue: Annotated[int, msgspec.Meta(ge=0)] = 32  # requests waiting for a slot
    queue_timeout_s: Seconds = 60.0
    max_n: Annotated[int, msgspec.Meta(ge=1, le=128)] = 16
    first_byte_timeout_s: Seconds = 120.0
    idle_timeout_s: Seconds = 60.0


class Engine(Section, frozen=True):
    """`[engine]`: the embedded engine."""

    slots: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    context_length: Annotated[int, msgspec.Meta(ge=512)] = 4096
    threads: Annotated[int, msgspec.Meta(ge=0)] = 0  # 0: max(1, cores - 1)
    batch: Annotated[int, msgspec.Meta(ge=16, le=2048)] = 64  # tokens a step; bounds how long a cancelled prefill runs


class Pricing(Section, frozen=True):
    """Decimal strings: the price of one token (wire contract 3.1)."""

    prompt: str = "0"
    completion: str = "0"


class Model(Section, frozen=True, kw_only=True):
    """`[[model]]`: one id that clients may ask for."""

    id: ModelId
    aliases: tuple[ModelId, ...] = ()
    upstream_model: str  # an entry of `confide models list`
    name: str | None = None
    description: str | None = None
    provider: str = "confide"
    context_length: Positive | None = None
    modalities: tuple[Literal["text", "image"], ...] = ("text",)
    projector: str | None = None  # GGUF file of the image projector, needed with "image"
    pricing: Pricing = Pricing()


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole configuration of one service."""

    server: Server = Server()
    attester: Attester = Attester()
    store: Store = Store()
    limits: Limits = Limits()
    engine: Engine = Engine()
    model: tuple[Model, ...] = (Model(id="confide/smollm2-135m", upstream_model="smollm2-135m"),)


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """CONFIDE_HOME, or the platform's user data directory. Created 0700; raises ConfigError where that fails."""
    path = Path(environ["CONFIDE_HOME"]) if environ.get("CONFIDE_HOME") else default_home(environ)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.stat().st_uid == os.getuid():
            path.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"the state directory {path} cannot be used: {error.strerror}",
            remedy="Set CONFIDE_HOME to a directory that this user may write.",
        ) from error
    return path.resolve()


def default_home(environ: Mapping[str, str]) -> Path:
    """The directory that the platform's conventions name for user data, with `confide` below it."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "confide"
    base = environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "confide"


def load(
    path: Path | None,
    *,
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Mapping[str, object]] | None = None,
) -> Config:
    """Build the effective Config; `path` None means CONFIDE_CONFIG, or no file.

    `overrides` are sections from the command line. Raises ConfigError naming the file or variable, the key, and what
    was expected.
    """
    path = path or (Path(environ["CONFIDE_CONFIG"]) if environ.get("CONFIDE_CONFIG") else None)
    tree = read_file(path) if path else {}
    for section, values in from_environment(environ).items():
        tree.setdefault(section, {}).update(values)
    for section, given in (overrides or {}).items():
        tree.setdefault(section, {}).update(given)
    try:
        config = msgspec.convert(tree, Config, strict=True)
    except msgspec.ValidationError as error:
        source = str(path) if path else "configuration"
        raise ConfigError(f"{source}: {describe(error)}", remedy="See docs/configuration.md.") from error
    check(config)
    return config


def read_file(path: Path) -> dict[str, Any]:
    """The TOML file as a tree; ConfigError with line and column when it does not parse."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"no configuration file at {path}", remedy="Name an existing one with --config.") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def from_environment(environ: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """`CONFIDE_SECTION_KEY=value` as sections; values are read as TOML where they parse, else as text."""
    sections = {field.name: field.type for field in msgspec.structs.fields(Config) if field.name != "model"}
    tree: dict[str, dict[str, object]] = {}
    for name, value in environ.items():
        if not name.startswith("CONFIDE_") or name in OTHER_VARIABLES:
            continue
        section, _, key = name.removeprefix("CONFIDE_").lower().partition("_")
        known = [field.name for field in msgspec.structs.fields(sections[section])] if section in sections else []
        if key not in known:
            expected = ", ".join(f"CONFIDE_{section.upper()}_{k.upper()}" for k in known) or "see docs/configuration.md"
            raise ConfigError(f"the variable {name} names no setting; expected one of: {expected}")
        tree.setdefault(section, {})[key] = toml_value(value)
    return tree


def toml_value(text: str) -> object:
    """A number, boolean or array where the text is one in TOML; otherwise the text itself."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def describe(error: msgspec.ValidationError) -> str:
    """`$.server.port` as `[server] port`."""
    text, _, where = str(error).partition(" - at `$")
    parts = where.rstrip("`").lstrip(".").split(".")
    if not where:
        return text
    return f"[{parts[0]}] {'.'.join(parts[1:])}: {text}" if len(parts) > 1 else f"{parts[0]}: {text}"


def check(config: Config) -> None:
    """What one key cannot know by itself. Raises ConfigError."""
    server = config.server
    if (server.tls_cert is None) != (server.tls_key is None):
        raise ConfigError("[server] tls_cert and tls_key: got one of them, expected both or neither")
    if not config.model:
        raise ConfigError("[[model]]: got none, expected at least one")
    seen: set[str] = set()
    for model in config.model:
        for name in (model.id, *model.aliases):
            if name in seen:
                raise ConfigError(f"[[model]] {name}: the same id or alias is given twice")
            seen.add(name)
        if ("image" in model.modalities) != (model.projector is not None):
            raise ConfigError(f'[[model]] {model.id}: modality "image" and projector go together; got only one of them')
