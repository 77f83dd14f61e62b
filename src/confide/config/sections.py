"""The tables of the file, each a struct, and the whole of them: Config."""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from confide.config.kinds import (
    Argument,
    BaseUrl,
    Commit,
    Decimal,
    Domain,
    FilePath,
    GpuUrl,
    Hex64,
    Host,
    ImageDigest,
    Label,
    ModelId,
    Port,
    Positive,
    Seconds,
    StoreUrl,
    UpstreamName,
    Variable,
    VendorUrl,
)


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file. Unknown keys are refused."""


class Server(Section, frozen=True):
    """`[server]`: where it listens and what it accepts."""

    host: Host = "127.0.0.1"
    port: Port = 8080
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1  # processes that serve
    worker_timeout_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 30.0  # one that hangs so long is replaced
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
Surface = Literal["chat", "completions", "embeddings", "messages", "responses"]  # what an engine speaks itself
KeyHeader = Literal["authorization", "x-api-key"]
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
    key_header: KeyHeader = "authorization"  # where the key goes, there as a bearer
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
