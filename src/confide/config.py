"""One frozen Config, from TOML and CONFIDE_* variables. Unknown keys are refused; every limit has a unit in its name.

Order, later wins: defaults, the file, variables (`CONFIDE_SERVER_PORT` sets `[server] port`), command-line options.
"""

import contextlib
import ipaddress
import os
import re
import stat
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

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
UPSTREAM_NAME = r"^[a-z0-9][a-z0-9._-]*\Z"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*\Z"
BASE_URL = r"^(https?://[^\s/?#@\x00-\x1f]+[^\s?#@\x00-\x1f]*|unix:/[^\x00?#]+)\Z"
HEX_64 = r"^[0-9a-f]{64}\Z"
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
UpstreamName = Annotated[str, msgspec.Meta(max_length=64, pattern=UPSTREAM_NAME)]
Variable = Annotated[str, msgspec.Meta(max_length=200, pattern=VARIABLE)]
BaseUrl = Annotated[str, msgspec.Meta(max_length=2000, pattern=BASE_URL)]
Hex64 = Annotated[str, msgspec.Meta(pattern=HEX_64)]

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
    f" matching regex {UPSTREAM_NAME!r}": " of letters a to z, digits and . _ -",
    f" matching regex {VARIABLE!r}": " that is the name of a variable",
    f" matching regex {BASE_URL!r}": " of the form http://…, https://… or unix:/PATH, without credentials and query",
    f" matching regex {HEX_64!r}": " of 64 hex digits in lower case",
    f" matching regex {IMAGE_DIGEST!r}": " that is sha256: and 64 hex digits in lower case",
}

# Variables that are not settings of the file.
OTHER_VARIABLES = {"CONFIDE_HOME", "CONFIDE_TEST_HOME", "CONFIDE_CONFIG", "CONFIDE_API_KEY", "CONFIDE_BASE_URL"}
# Kubernetes sets these in every pod beside a Service named "confide"; they are nobody's mistake.
SERVICE_LINKS = re.compile(r"CONFIDE_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
LISTS = ("model", "upstream")
DESCRIBED = "docs/configuration.md describes every setting."


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file. Unknown keys are refused."""


class Server(Section, frozen=True):
    """`[server]`: where it listens and what it accepts."""

    host: Host = "127.0.0.1"
    port: Port = 8080
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1  # processes that serve
    tls: Literal["files", "attested"] = "files"  # attested: the key is made in the TEE and listed in the keyset
    tls_cert: FilePath | None = None  # PEM files; the leaf's key is what report version 2 binds
    tls_key: FilePath | None = None
    domain: Domain | None = None  # the host that the attested TLS key is listed for; None: for every host
    max_body_bytes: Positive = 32 * 1024 * 1024
    drain_s: Seconds = 20.0
    keepalive_comment_s: Seconds | None = None
    remote_images: bool = False
    tee_only: bool = False  # no prompt reaches an upstream that is not attested


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
    image: Decimal | None = None
    request: Decimal | None = None
    input_cache_read: Decimal | None = None
    input_cache_write: Decimal | None = None


Kind = Literal["embedded", "local", "aci", "legacy-proxy", "openai"]
KEY = re.compile(r"[!-~]{1,4096}")
VERIFICATION = (
    "trust_roots",
    "accepted_tcb",
    "denied_advisories",
    "compose_hashes",
    "claims",
    "kms_roots",
    "required_gpus",
    "accept_aggregator",
    "session_s",
)
Surface = Literal["chat", "completions", "embeddings", "messages", "responses"]  # what an engine speaks itself
DIRECT_KINDS = ("embedded", "local")
ATTESTED_KINDS = ("aci", "legacy-proxy")
EMBEDDED = "embedded"  # the upstream of a model that names none


class Upstream(Section, frozen=True, kw_only=True):
    """`[[upstream]]`: an engine or a service that models are served by. From `trust_roots` on: how it is verified."""

    name: UpstreamName
    kind: Kind
    base_url: BaseUrl | None = None
    key_env: Variable | None = None
    key_file: FilePath | None = None
    connect_timeout_s: Seconds = 5.0
    first_byte_timeout_s: Seconds = 120.0
    idle_timeout_s: Seconds = 60.0
    total_timeout_s: Seconds | None = None
    max_connections: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 1024
    probe: Literal["models", "health", "none"] = "models"
    surfaces: Annotated[tuple[Surface, ...], msgspec.Meta(min_length=1)] = ("chat", "completions", "embeddings")
    cache_salt: bool = False  # the engine takes `cache_salt`
    allow_unverified: bool = False
    trust_roots: tuple[FilePath, ...] = ("intel", "amd")
    accepted_tcb: tuple[Label, ...] = ("UpToDate",)
    denied_advisories: tuple[Label, ...] = ()
    compose_hashes: tuple[Hex64, ...] = ()
    claims: tuple[Label, ...] = ()
    kms_roots: tuple[Label, ...] = ()
    required_gpus: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    accept_aggregator: bool = False  # an upstream that has a second hop of its own
    session_s: Annotated[int, msgspec.Meta(ge=60, le=86_400)] = 3600  # of one verification


class Choice(Section, frozen=True, kw_only=True):
    """One of several upstreams of a model."""

    name: UpstreamName
    weight: Annotated[int, msgspec.Meta(ge=0, le=1000)] | None = None
    upstream_model: str | None = None


class Model(Section, frozen=True, kw_only=True):
    """`[[model]]`: one id that clients may ask for."""

    id: ModelId
    kind: Literal["chat", "embeddings"] = "chat"
    aliases: tuple[ModelId, ...] = ()
    # Plain texts: a pattern beside an array in one union makes msgspec 0.22 free it twice. Names are looked up anyway.
    upstream: str | Annotated[tuple[str | Choice, ...], msgspec.Meta(min_length=1)] = EMBEDDED
    upstream_model: str | None = None  # an entry of `confide models list`, or the upstream's name of it; None: the id
    tee_only: bool = False
    affinity: bool = False
    name: str | None = None
    description: str | None = None
    provider: str = "confide"
    context_length: Positive | None = None
    max_output_length: Positive | None = None
    supported_parameters: tuple[Label, ...] | None = None  # what the engine behind an upstream honours
    vector_length: Positive | None = None  # of an embedding model that runs elsewhere, for the catalogue
    modalities: tuple[Literal["text", "image"], ...] = ("text",)
    projector: FilePath | None = None  # GGUF file of the image projector, needed with "image"
    pricing: Pricing = Pricing()

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The upstreams that may serve it, in order, each with its name of the model."""
        given = (self.upstream,) if isinstance(self.upstream, str) else self.upstream
        named = (Choice(name=each) if isinstance(each, str) else each for each in given)
        own = self.id if self.upstream_model is None else self.upstream_model
        return tuple(msgspec.structs.replace(each, upstream_model=each.upstream_model or own) for each in named)

    @property
    def weights(self) -> str:
        """The entry of the catalogue that the embedded engine loads for it."""
        return self.upstream_model or ""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole configuration of one service."""

    server: Server = Server()
    attester: Attester = Attester()
    source: Source = Source()
    store: Store = Store()
    limits: Limits = Limits()
    engine: Engine = Engine()
    upstream: tuple[Upstream, ...] = ()
    model: tuple[Model, ...] = (
        Model(id="confide/smollm2-135m", upstream_model="smollm2-135m"),
        Model(id="confide/all-minilm-l6-v2", kind="embeddings", upstream_model="all-minilm-l6-v2"),
    )

    @property
    def upstreams(self) -> Mapping[str, Upstream]:
        """By name, the embedded engine among them."""
        return {EMBEDDED: Upstream(name=EMBEDDED, kind="embedded"), **{each.name: each for each in self.upstream}}

    @property
    def serving(self) -> Literal["direct", "aggregator"]:
        """Whether inference runs inside this workload or behind a second hop; never both."""
        kinds = {self.upstreams[choice.name].kind for model in self.model for choice in model.choices}
        return "direct" if kinds <= set(DIRECT_KINDS) else "aggregator"

    def is_embedded(self, model: Model) -> bool:
        """Whether this model runs in the embedded engine, on its own or among others."""
        return any(self.upstreams[choice.name].kind == "embedded" for choice in model.choices)


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
    """The keys that a variable can set; a list of models or of upstreams does not fit into one."""
    return known_keys(section) if section not in LISTS else ()


def unknown_variable(name: str, section: str) -> ConfigError:
    keys = [f"CONFIDE_{section}_{key}".upper() for key in settable(section)]
    keys = keys or [f"CONFIDE_{name}_…".upper() for name in known_keys("") if settable(name)]
    return ConfigError(
        f"the variable {name} names no setting, expected one of: {', '.join(keys)}",
        remedy=f"Unset it. {DESCRIBED} Models and upstreams are set in the file alone.",
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
    if entry := re.fullmatch(r"(model|upstream)\[(\d+)\]", section):
        return f"[[{entry[1]}]] number {int(entry[2]) + 1}" + (f", {key}" if key else "")
    return f"[{section}] {key}".strip() if section else ""


def type_at(path: str) -> Any:
    """The type that stands at `model[0].pricing`; None where there is no such key."""
    found: Any = Config
    for part in filter(None, re.split(r"\[\d+\]|\.", path)):
        fields = {field.name: field.type for field in msgspec.structs.fields(found)} if is_struct(found) else {}
        found = innermost(fields.get(part))
    return found


def innermost(found: Any) -> Any:
    """The table that a key holds, alone, in an array or as one of its forms; else the type itself."""
    tables = [each for each in types_in(found) if is_struct(each)]
    entry = get_args(found)[0] if getattr(found, "__origin__", None) is tuple else found
    return tables[0] if tables else entry


def types_in(found: Any) -> Iterator[Any]:
    """A type, and those that it is made of."""
    yield found
    for each in get_args(found):
        yield from types_in(each)


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
    check_upstreams(config)


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
    """Each name means one model. Raises ConfigError."""
    if not models:
        raise ConfigError("[[model]]: got none, expected at least one", remedy="Leave it out for the embedded model.")
    seen: set[str] = set()
    for number, model in enumerate(models, start=1):
        if model.upstream == EMBEDDED and model.upstream_model is None:
            raise ConfigError(
                f"[[model]] number {number}: the key upstream_model is missing",
                remedy="Name an entry of `confide models list`, or an upstream.",
            )
        for name in (model.id, *model.aliases):
            if name in seen:
                raise ConfigError(
                    f"[[model]] {name}: the same id or alias is given twice", remedy="Give each model names of its own."
                )
            seen.add(name)


def check_upstreams(config: Config) -> None:
    """Each upstream has what its kind needs, each model names some that exist, and there are no two modes of serving.

    Raises ConfigError.
    """
    for upstream in config.upstream:
        check_upstream(upstream)
    names = [upstream.name for upstream in config.upstream]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"[[upstream]] {twice}: the same name is given twice", remedy="Give each a name of its own.")
    for model in config.model:
        check_choices(model, config)
    named = {choice.name for model in config.model for choice in model.choices}
    unused = next((name for name in names if name not in named), None)
    if unused is not None:
        raise ConfigError(
            f"[[upstream]] {unused}: no model names it",
            remedy=f'Set upstream = "{unused}" in a [[model]], or take it out.',
        )
    kinds = {config.upstreams[name].kind for name in named}
    direct, behind = sorted(kinds.intersection(DIRECT_KINDS)), sorted(kinds.difference(DIRECT_KINDS))
    if direct and behind:
        raise ConfigError(
            f"[[model]]: got upstreams of kind {', '.join(direct)} (inside this workload) beside {', '.join(behind)} "
            "(behind a second hop); a service is one or the other, and its attestation report says which",
            remedy="Run two services.",
        )


def check_choices(model: Model, config: Config) -> None:
    """Raises ConfigError."""
    names = [choice.name for choice in model.choices]
    for name in names:
        if name not in config.upstreams:
            known = ", ".join(config.upstreams)
            raise ConfigError(
                f"[[model]] {model.id}: got upstream {name!r}, expected one of: {known}",
                remedy=f"Describe it in an [[upstream]] with this name. {DESCRIBED}",
            )
        if names.count(name) > 1:
            raise ConfigError(f"[[model]] {model.id}: upstream {name} is given twice", remedy="Name each once.")
    if config.is_embedded(model) and model.upstream_model is None:
        raise ConfigError(
            f"[[model]] {model.id}: the key upstream_model is missing", remedy="Name an entry of `confide models list`."
        )
    if config.is_embedded(model) and model.supported_parameters is not None:
        raise ConfigError(
            f"[[model]] {model.id}: supported_parameters is for models behind an upstream; of the embedded engine they "
            "are known",
            remedy="Leave it out.",
        )
    is_relayed = any(config.upstreams[name].kind != "embedded" for name in names)
    if ("image" in model.modalities) != (model.projector is not None) and not (is_relayed and model.projector is None):
        raise ConfigError(
            f'[[model]] {model.id}: modality "image" and projector go together; got only one of them',
            remedy='Set modalities = ["text", "image"] and projector = "FILE.gguf", or neither.',
        )
    check_vectors(model, config)
    unattested = [name for name in names if config.upstreams[name].kind == "openai"]
    if (model.tee_only or config.server.tee_only) and len(unattested) == len(names):
        raise ConfigError(
            f"[[model]] {model.id}: tee_only is set, and every upstream that it names is of kind openai",
            remedy="Name an attested upstream, or leave tee_only out.",
        )


def check_vectors(model: Model, config: Config) -> None:
    """What goes together with the kind of a model. Raises ConfigError."""
    if model.kind == "chat":
        if model.vector_length is not None:
            raise ConfigError(
                f'[[model]] {model.id}: vector_length is for kind = "embeddings"',
                remedy="Leave it out, or set the kind.",
            )
        return
    if model.modalities != ("text",):
        raise ConfigError(
            f"[[model]] {model.id}: an embedding model takes text alone", remedy="Leave modalities and projector out."
        )
    for name in (choice.name for choice in model.choices):
        upstream = config.upstreams[name]
        if upstream.kind != "embedded" and "embeddings" not in upstream.surfaces:
            raise ConfigError(
                f'[[model]] {model.id}: got kind = "embeddings", and upstream {name} does not have this surface',
                remedy='Put "embeddings" among its surfaces, or name another upstream.',
            )


def check_upstream(upstream: Upstream) -> None:
    """What the keys of one upstream demand of each other. Raises ConfigError."""
    where = f"[[upstream]] {upstream.name}"
    if upstream.kind == "embedded":
        given = msgspec.structs.replace(upstream, name=EMBEDDED)
        if given != Upstream(name=EMBEDDED, kind="embedded"):
            raise ConfigError(
                f"{where}: the embedded engine takes no keys here but name and kind",
                remedy="Set [engine] and [limits] instead.",
            )
        return
    if upstream.name == EMBEDDED:
        raise ConfigError(f"{where}: this name means the embedded engine", remedy="Choose another name.")
    if upstream.base_url is None:
        raise ConfigError(f"{where}: the key base_url is missing", remedy=DESCRIBED)
    if upstream.key_env is not None and upstream.key_file is not None:
        raise ConfigError(f"{where}: got key_env and key_file, expected one of them", remedy="Leave one out.")
    check_address(where, upstream.kind, upstream.base_url)
    check_verification(where, upstream)


def check_address(where: str, kind: Kind, base_url: str) -> None:
    """Who may be in between. Raises ConfigError."""
    is_unix = base_url.startswith("unix:")
    try:
        url = urlsplit(base_url)
        host, _ = url.hostname or "", url.port
    except ValueError:
        host = ""
    if not host and not is_unix:
        raise ConfigError(f"{where}: base_url {base_url}: not a URL with a host and a port", remedy=DESCRIBED)
    is_near = is_unix or is_loopback(host)
    if kind == "local" and (not is_near or base_url.startswith("https:")):
        raise ConfigError(
            f"{where}: base_url {base_url}: an upstream of kind local is reached over loopback or a unix socket, "
            "inside this workload, and needs no TLS",
            remedy='Use http://127.0.0.1:PORT/v1 or unix:/PATH, or kind = "aci" for a service on another machine.',
        )
    if kind in ATTESTED_KINDS and not base_url.startswith("https:"):
        raise ConfigError(
            f"{where}: base_url {base_url}: an attested upstream is reached over TLS, whose key is what is verified",
            remedy="Use its https:// address.",
        )
    if kind == "openai" and not (is_near or base_url.startswith("https:")):
        raise ConfigError(
            f"{where}: base_url {base_url}: prompts and the key would go over the network in clear",
            remedy="Use its https:// address.",
        )


def check_verification(where: str, upstream: Upstream) -> None:
    """Raises ConfigError."""
    if (upstream.kind == "openai") != upstream.allow_unverified:
        if upstream.kind == "openai":
            raise ConfigError(
                f"{where}: an upstream of kind openai proves nothing, and allow_unverified is not true",
                remedy="Set allow_unverified = true to send it prompts all the same; receipts will say so.",
            )
        raise ConfigError(
            f"{where}: allow_unverified is for kind openai; one of kind {upstream.kind} needs no such leave",
            remedy="Leave allow_unverified out.",
        )
    defaults = Upstream(name=upstream.name, kind=upstream.kind)
    changed = [name for name in VERIFICATION if getattr(upstream, name) != getattr(defaults, name)]
    beyond = [name for name in changed if name in ("claims", "kms_roots", "required_gpus", "accept_aggregator")]
    if upstream.kind == "legacy-proxy" and beyond:
        raise ConfigError(
            f"{where}: {beyond[0]} asks for what the older report cannot show",
            remedy='Leave it out, or use kind = "aci" if the service has an aci/1 report.',
        )
    if changed and upstream.kind not in ATTESTED_KINDS:
        raise ConfigError(
            f"{where}: {changed[0]} is about attested upstreams, and this one is of kind {upstream.kind}",
            remedy="Leave it out.",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def upstream_key(upstream: Upstream, environ: Mapping[str, str] = os.environ) -> str | None:
    """The credential that this upstream wants, None where it wants none. Raises ConfigError; never shows it."""
    where = f"[[upstream]] {upstream.name}"
    if upstream.key_env is not None:
        key = environ.get(upstream.key_env, "").strip()
        source = f"key_env {upstream.key_env}"
    elif upstream.key_file is not None:
        source = f"key_file {upstream.key_file}"
        try:
            key = Path(upstream.key_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: {source}: cannot be read", remedy="Name a file of one line.") from error
    else:
        return None
    if not KEY.fullmatch(key):
        raise ConfigError(
            f"{where}: {source}: got no key, expected one line of printable ASCII", remedy="Set it, or leave it out."
        )
    return key


def check_files(config: Config) -> None:
    """That every file which the configuration names can be read, before anything slow begins. Raises ConfigError."""
    server = config.server
    named = {"[server] tls_cert": server.tls_cert, "[server] tls_key": server.tls_key}
    named |= {f"[[model]] {model.id}: projector": model.projector for model in config.model}
    named |= {
        f"[[upstream]] {each.name}: trust_roots": root
        for each in config.upstream
        for root in each.trust_roots
        if root not in ("intel", "amd")
    }
    for upstream in config.upstream:
        upstream_key(upstream)
    for key, path in named.items():
        try:
            if path is not None:
                Path(path).open("rb").close()
        except OSError as error:
            raise ConfigError(
                f"{key} {path}: cannot be read: {error.strerror}", remedy="Name a file that this user may read."
            ) from error
