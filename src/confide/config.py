"""One frozen Config, from TOML and CONFIDE_* variables. Unknown keys are refused; every limit has a unit in its name.

Order, later wins: defaults, the file, variables (`CONFIDE_SERVER_PORT` sets `[server] port`), command-line options.
"""

import os
import re
import stat
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec

from confide.errors import ConfigError

HOST = r"^[^\s/\x00-\x1f]+\Z"
FILE_PATH = r"^[^\x00]+\Z"
STORE_URL = r"^sqlite:///[^\x00-\x1f]+\Z"
MODEL_ID = r"^[^\s\x00-\x1f]+\Z"
DECIMAL = r"^[0-9]+(\.[0-9]+)?\Z"
DOMAIN = r"^(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*\Z"
COMMIT = r"^([0-9a-f]{40}|[0-9a-f]{64})\Z"
LABEL = r"^[!-~]+\Z"
IMAGE_DIGEST = r"^sha256:[0-9a-f]{64}\Z"
GPU_URL = r"^https?://[!-~]+\Z"
VENDOR_URL = r"^(https://[!-~]+|http://(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?/?)\Z"
ARGUMENT = r"^[^\x00]*\Z"
NONCE = "${nonce}"  # where the 64 hex digits of a request's nonce go

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]  # what TOML and a database hold
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]  # a day; keeps `inf` out, which no timer takes
Host = Annotated[str, msgspec.Meta(min_length=1, max_length=253, pattern=HOST)]
FilePath = Annotated[str, msgspec.Meta(min_length=1, pattern=FILE_PATH)]
StoreUrl = Annotated[str, msgspec.Meta(pattern=STORE_URL)]
ModelId = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=MODEL_ID)]
Decimal = Annotated[str, msgspec.Meta(pattern=DECIMAL)]
Domain = Annotated[str, msgspec.Meta(pattern=DOMAIN)]
Commit = Annotated[str, msgspec.Meta(pattern=COMMIT)]
ImageDigest = Annotated[str, msgspec.Meta(pattern=IMAGE_DIGEST)]
Label = Annotated[str, msgspec.Meta(min_length=1, max_length=2000, pattern=LABEL)]
GpuUrl = Annotated[str, msgspec.Meta(max_length=2000, pattern=GPU_URL)]
VendorUrl = Annotated[str, msgspec.Meta(max_length=2000, pattern=VENDOR_URL)]
Argument = Annotated[str, msgspec.Meta(max_length=4096, pattern=ARGUMENT)]

# What msgspec says about types and patterns, in words for the person who writes the file.
WORDS = {
    "`object`": "a table",
    "`array`": "an array",
    "`str`": "text",
    "`int`": "a whole number",
    "`float`": "a number",
    "`bool`": "true or false",
    "`null`": "nothing",
    f" matching regex {HOST!r}": " that is a host name or an address",
    f" matching regex {FILE_PATH!r}": " that is a path",
    f" matching regex {STORE_URL!r}": " of the form sqlite:///FILE",
    f" matching regex {MODEL_ID!r}": " without spaces",
    f" matching regex {DECIMAL!r}": ' that is a decimal number, such as "0.0000002"',
    f" matching regex {DOMAIN!r}": " that is a host name in lower case",
    f" matching regex {COMMIT!r}": " that is a full commit, 40 or 64 hex digits in lower case",
    f" matching regex {LABEL!r}": " in ASCII without spaces",
    f" matching regex {GPU_URL!r}": " of the form http://… or https://… without spaces",
    f" matching regex {VENDOR_URL!r}": " that is an https URL, or http://127.0.0.1 with a port",
    f" matching regex {ARGUMENT!r}": " without NUL",
    f" matching regex {IMAGE_DIGEST!r}": " that is sha256: and 64 hex digits in lower case",
}

# Variables that are not settings of the file.
OTHER_VARIABLES = {"CONFIDE_HOME", "CONFIDE_TEST_HOME", "CONFIDE_CONFIG", "CONFIDE_API_KEY", "CONFIDE_BASE_URL"}
# Kubernetes sets these in every pod beside a Service named "confide"; they are nobody's mistake.
SERVICE_LINKS = re.compile(r"CONFIDE_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
DESCRIBED = "docs/configuration.md describes every setting."


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file. Unknown keys are refused."""


class Server(Section, frozen=True):
    """`[server]`: where it listens and what it accepts."""

    host: Host = "127.0.0.1"
    port: Port = 8080
    tls: Literal["files", "attested"] = "files"  # attested: the key is made in the TEE and listed in the keyset
    tls_cert: FilePath | None = None  # PEM files; the leaf's key is what report version 2 binds
    tls_key: FilePath | None = None
    domain: Domain | None = None  # the host that the attested TLS key is listed for; None: for every host
    max_body_bytes: Positive = 32 * 1024 * 1024
    drain_s: Seconds = 20.0
    keepalive_comment_s: Seconds | None = None
    remote_images: bool = False


class Attester(Section, frozen=True):
    """`[attester]`: who produces evidence."""

    kind: Literal["auto", "dstack", "tsm", "simulated"] = "auto"
    keyset_lifetime_s: Annotated[int, msgspec.Meta(ge=10, le=31_622_400)] = 2_592_000  # 30 days; a leap year at most
    gpu: Literal["none", "nvml", "command", "url", "file", "simulated"] = "none"  # where evidence of the GPUs is from
    gpu_command: tuple[Argument, ...] = ()  # each of the three with ${nonce} in it
    gpu_url: GpuUrl | None = None
    gpu_file: FilePath | None = None
    collateral: Literal["fetch", "none"] = "fetch"  # of hardware's evidence, to travel with it
    pccs_url: VendorUrl = "https://api.trustedservices.intel.com"  # Intel's service, or one with its interface
    kds_url: VendorUrl = "https://kdsintf.amd.com"  # AMD's, likewise


class Source(Section, frozen=True):
    """`[source]`: what this build was made from, set by whoever builds the image. None: not known."""

    repo_url: Label | None = None
    repo_commit: Commit | None = None
    image_digest: ImageDigest | None = None
    image_provenance: Label | None = None


class Store(Section, frozen=True):
    """`[store]`: where proofs and keys are kept. `url` None means a file under CONFIDE_HOME."""

    url: StoreUrl | None = None
    receipt_ttl_s: Annotated[int, msgspec.Meta(ge=60, le=315_360_000)] = 3600  # ten years at most
    max_proofs: Annotated[int, msgspec.Meta(ge=100, le=2**63 - 1)] = 1_000_000
    synchronous: Literal["normal", "full"] = "normal"


class Limits(Section, frozen=True):
    """`[limits]`: what one service takes on at a time."""

    queue: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 32  # requests waiting for a slot
    queue_timeout_s: Seconds = 60.0
    max_n: Annotated[int, msgspec.Meta(ge=1, le=128)] = 16
    first_byte_timeout_s: Seconds = 120.0
    idle_timeout_s: Seconds = 60.0
    client_stall_s: Seconds = 60.0  # a client that does not read must not hold a slot for ever


class Engine(Section, frozen=True):
    """`[engine]`: the embedded engine."""

    slots: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    context_length: Annotated[int, msgspec.Meta(ge=512, le=1_048_576)] = 4096
    threads: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0  # 0: max(1, cores - 1)
    batch: Annotated[int, msgspec.Meta(ge=16, le=2048)] = 64  # tokens a step; bounds how long a cancelled prefill runs


class Pricing(Section, frozen=True):
    """Decimal strings: the price of one token (wire contract 3.1)."""

    prompt: Decimal = "0"
    completion: Decimal = "0"


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
    projector: FilePath | None = None  # GGUF file of the image projector, needed with "image"
    pricing: Pricing = Pricing()


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole configuration of one service."""

    server: Server = Server()
    attester: Attester = Attester()
    source: Source = Source()
    store: Store = Store()
    limits: Limits = Limits()
    engine: Engine = Engine()
    model: tuple[Model, ...] = (Model(id="confide/smollm2-135m", upstream_model="smollm2-135m"),)


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """The state directory, created 0700 where it is missing. Raises ConfigError where that fails."""
    path = locate_home(environ)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
        if found.st_mode & stat.S_ISVTX:  # narrowing /tmp would lock everybody else out of it
            raise ConfigError(f"the state directory {path} is shared by all users", remedy=HOME_REMEDY)
        if found.st_uid == os.getuid():
            path.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"the state directory {path} cannot be used: {error.strerror}", remedy=HOME_REMEDY) from error
    return path


HOME_REMEDY = "Set CONFIDE_HOME to a directory of its own that this user may write."


def locate_home(environ: Mapping[str, str] = os.environ) -> Path:
    """CONFIDE_HOME, or the platform's user data directory, as an absolute path. Changes nothing on disk."""
    try:
        path = Path(environ["CONFIDE_HOME"]) if environ.get("CONFIDE_HOME") else default_home(environ)
        return path.resolve()
    except (OSError, RuntimeError) as error:  # a loop of links; a user without a home directory
        raise ConfigError(f"the state directory cannot be found: {error}", remedy=HOME_REMEDY) from error


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

    `overrides` are sections from the command line. Raises ConfigError naming the file, variable or option, the key,
    and what was expected. Files that the configuration names are not looked at: see `check_files`.
    """
    path = path or (Path(environ["CONFIDE_CONFIG"]) if environ.get("CONFIDE_CONFIG") else None)
    tree = read_file(path) if path else {}
    origins = {"": str(path) if path else "configuration"}
    for section, values in from_environment(environ).items():
        origins |= {f"{section}.{key}": f"CONFIDE_{section}_{key}".upper() for key in values}
        merge(tree, section, values)
    for section, given in (overrides or {}).items():
        origins |= {f"{section}.{key}": f"--{key.replace('_', '-')}" for key in given}
        merge(tree, section, given)
    try:
        config = msgspec.convert(tree, Config, strict=True)
    except msgspec.ValidationError as error:
        raise explained(error, origins) from error
    check(config)
    return config


def merge(tree: dict[str, Any], section: str, values: Mapping[str, object]) -> None:
    """Put `values` over those of the file. A section that is no table stays: the conversion refuses it by name."""
    there = tree.get(section, {})
    if isinstance(there, dict):
        tree[section] = {**there, **values}


def read_file(path: Path) -> dict[str, Any]:
    """The TOML file as a tree; ConfigError with line and column when it does not parse."""
    try:
        return tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError as error:
        raise ConfigError(
            f"no configuration file at {path}", remedy="Name an existing one with --config or CONFIDE_CONFIG."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}", remedy="Name a TOML file that this user may read."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not valid TOML: byte {error.start} is not UTF-8", remedy="Save it as UTF-8."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", remedy=DESCRIBED) from error


def from_environment(environ: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """`CONFIDE_SECTION_KEY=value` as sections; values are read as TOML where they parse, else as text."""
    tree: dict[str, dict[str, object]] = {}
    for name, value in environ.items():
        if not name.startswith("CONFIDE_") or name in OTHER_VARIABLES or SERVICE_LINKS.fullmatch(name):
            continue
        section, _, key = name.removeprefix("CONFIDE_").lower().partition("_")
        if key not in settable(section):
            raise unknown_variable(name, section)
        if not value.isascii() and not is_unicode(value):
            raise ConfigError(f"the variable {name} is not UTF-8", remedy=DESCRIBED)
        tree.setdefault(section, {})[key] = toml_value(value)
    return tree


def settable(section: str) -> tuple[str, ...]:
    """The keys that a variable can set; a list of models does not fit into one."""
    return known_keys(section) if section != "model" else ()


def unknown_variable(name: str, section: str) -> ConfigError:
    keys = [f"CONFIDE_{section}_{key}".upper() for key in settable(section)]
    keys = keys or [f"CONFIDE_{name}_…".upper() for name in known_keys("") if settable(name)]
    return ConfigError(
        f"the variable {name} names no setting, expected one of: {', '.join(keys)}",
        remedy=f"Unset it. {DESCRIBED} Models are set in the file alone.",
    )


def is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8: bytes of the environment that are not arrive as halves of surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def toml_value(text: str) -> object:
    """A number, boolean, quoted text or array where the text is one in TOML; otherwise the text itself."""
    try:
        value = tomllib.loads(f"v = {text}")["v"] if text.isprintable() else text
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, int | float | str | list) else text  # no setting is a date or a table


def explained(error: msgspec.ValidationError, origins: Mapping[str, str]) -> ConfigError:
    """What is wrong, in the words of the file. `origins`: who gave `section.key`; under "" who gave the rest."""
    text, _, where = str(error).partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    if unknown := re.search(r"unknown field `(.*)`", text, re.DOTALL):
        text = f"unknown key {unknown[1]!r}, expected one of: {', '.join(known_keys(path))}"
    elif missing := re.search(r"required field `(.*)`", text):
        text = f"the key {missing[1]} is missing"
    elif text.startswith("Invalid enum value"):
        text = f"got {text.removeprefix('Invalid enum value ')}, expected one of: {', '.join(get_args(type_at(path)))}"
    for name, word in WORDS.items():
        text = text.replace(name, word)
    parts = [origins.get(path, origins[""]), in_file(path), text]
    return ConfigError(": ".join(part for part in parts if part), remedy=DESCRIBED)


def in_file(path: str) -> str:
    """`server.port` as `[server] port`, `model[1].id` as `[[model]] number 2, id`."""
    section, _, key = path.partition(".")
    if entry := re.fullmatch(r"model\[(\d+)\]", section):
        return f"[[model]] number {int(entry[1]) + 1}" + (f", {key}" if key else "")
    return f"[{section}] {key}".strip() if section else ""


def type_at(path: str) -> Any:
    """The type that stands at `model[0].pricing`; None where there is no such key."""
    found: Any = Config
    for part in filter(None, re.split(r"\[\d+\]|\.", path)):
        fields = {field.name: field.type for field in msgspec.structs.fields(found)} if is_struct(found) else {}
        found = fields.get(part)
        if getattr(found, "__origin__", None) is tuple:
            found = get_args(found)[0]
    return found


def is_struct(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, msgspec.Struct)


def known_keys(path: str) -> tuple[str, ...]:
    """The keys of the table at `path`; none where there is no table."""
    found = type_at(path)
    return tuple(field.name for field in msgspec.structs.fields(found)) if is_struct(found) else ()


def check(config: Config) -> None:
    """What one key cannot know by itself. Raises ConfigError."""
    server = config.server
    try:
        server.host.encode("idna")
    except UnicodeError as error:
        raise ConfigError(
            f"[server] host {server.host}: not a host name", remedy="Use 127.0.0.1 or one of this machine's addresses."
        ) from error
    check_tls(server)
    check_gpu(config.attester)
    check_models(config.model)


def check_tls(server: Server) -> None:
    """Which of the TLS keys go together. Raises ConfigError."""
    if server.tls == "attested":
        if server.tls_key is not None:
            raise ConfigError(
                '[server] tls_key: got a key file with tls = "attested", where the attester makes the key',
                remedy="Leave tls_key out; tls_cert may name a chain issued for the request of `confide tls csr`.",
            )
        return
    if server.domain is not None:
        raise ConfigError(
            '[server] domain: it lists the attested TLS key for one host, and tls is not "attested"',
            remedy='Set tls = "attested", or leave domain out.',
        )
    if (server.tls_cert is None) != (server.tls_key is None):
        raise ConfigError(
            "[server] tls_cert and tls_key: got one of them, expected both or neither",
            remedy="Name the PEM files of the certificate and of its private key.",
        )


def check_gpu(attester: Attester) -> None:
    """The source of GPU evidence has what it needs, and nothing is set for another one. Raises ConfigError."""
    given: dict[str, Sequence[str]] = {
        "command": attester.gpu_command,
        "url": (attester.gpu_url,) if attester.gpu_url is not None else (),
        "file": (attester.gpu_file,) if attester.gpu_file is not None else (),
    }
    for source, texts in given.items():
        if bool(texts) != (attester.gpu == source):
            raise ConfigError(
                f'[attester] gpu: got "{attester.gpu}", and gpu = "{source}" goes together with gpu_{source}',
                remedy=f"Set both or neither. {DESCRIBED}",
            )
        if texts and not any(NONCE in text for text in texts):
            raise ConfigError(
                f"[attester] gpu_{source}: there is no {NONCE} in it",
                remedy=f"Put {NONCE} where the 64 hex digits of the nonce go: evidence for no nonce proves nothing.",
            )


def check_models(models: tuple[Model, ...]) -> None:
    """Each name means one model; images and a projector go together. Raises ConfigError."""
    if not models:
        raise ConfigError("[[model]]: got none, expected at least one", remedy="Leave it out for the embedded model.")
    seen: set[str] = set()
    for model in models:
        for name in (model.id, *model.aliases):
            if name in seen:
                raise ConfigError(
                    f"[[model]] {name}: the same id or alias is given twice", remedy="Give each model names of its own."
                )
            seen.add(name)
        if ("image" in model.modalities) != (model.projector is not None):
            raise ConfigError(
                f'[[model]] {model.id}: modality "image" and projector go together; got only one of them',
                remedy='Set modalities = ["text", "image"] and projector = "FILE.gguf", or neither.',
            )


def check_files(config: Config) -> None:
    """That every file which the configuration names can be read, before anything slow begins. Raises ConfigError."""
    server = config.server
    named = {"[server] tls_cert": server.tls_cert, "[server] tls_key": server.tls_key}
    named |= {f"[[model]] {model.id}: projector": model.projector for model in config.model}
    for key, path in named.items():
        try:
            if path is not None:
                Path(path).open("rb").close()
        except OSError as error:
            raise ConfigError(
                f"{key} {path}: cannot be read: {error.strerror}", remedy="Name a file that this user may read."
            ) from error
