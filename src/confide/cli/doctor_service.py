"""What `confide doctor` asks of the configured service: its address, its weights, and what they take."""

import os
from collections.abc import Sequence
from pathlib import Path

from confide import config as configuration
from confide.attester.keys import WorkloadKeys, require_leaf
from confide.attester.seed import read_seed
from confide.cli.doctor_state import server_of
from confide.cli.finding import Finding, ok, refused, size, warn
from confide.cli.serve import check_tls
from confide.config import Config, Engine, Model
from confide.engine import catalogue, disk, gguf
from confide.engine.manifest import Weights
from confide.engine.progress import Progress
from confide.engine.supervisor import default_threads
from confide.errors import ConfideError, ConfigError
from confide.gateway.engines import check_kind
from confide.gateway.listening import bound_socket

KEY_OR_VALUE_BYTES = 2  # an element of the KV cache, f16
AROUND_BYTES = 250_000_000  # the gateway, and the engine's buffers (measured: 100 MB and 60 MB for small models)
WORKER_BYTES, LOOKING_AFTER_BYTES = 30_000_000, 50_000_000  # (measured: 25 MB each; 69 MB, of which one has 57 too)
GEOMETRY = ("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv")


def port(config: Config, home: Path) -> Finding:
    """Whether `[server] host` and `port` can be bound, as the service does it."""
    server = config.server
    try:
        with bound_socket(config):
            return ok("port", f"{server.host} port {server.port or 'of its own choice'} is free")
    except ConfigError as error:
        if holder := server_of(home):
            return ok(
                "port", f"{server.host} port {server.port} is in use; process {holder} serves this state directory"
            )
        return refused("port", error)


def files(config: Config, home: Path) -> Finding:
    """The files that the configuration names."""
    try:
        configuration.check_files(config)
        check_tls(config)
        if config.server.tls == "attested":
            return attested_chain(config, home)
    except ConfigError as error:
        return refused("files", error)
    return ok("files", "TLS certificate and key go together" if config.server.tls_cert else "TLS is off")


def attested_chain(config: Config, home: Path) -> Finding:
    """Whether the chain, if one is named, is for the key that this state directory attests to. Raises ConfigError."""
    if config.server.tls_cert is None:
        return ok("files", "TLS with the attested key, in a certificate that it signs itself")
    seed = home / "simulator" / "seed"
    if not seed.exists():
        return warn("files", "the attested TLS key is made at the first start, and a chain for it is named already")
    key = WorkloadKeys.derive(read_seed(seed)).tls
    require_leaf(Path(config.server.tls_cert).read_bytes(), key.spki_sha256)
    return ok("files", "TLS with the attested key, in a chain that was issued for it")


def weights(model: Model, home: Path, progress: Progress) -> Finding:
    """Whether the weights are here and hold the recorded bytes; hashing them takes a second for each gigabyte or so."""
    check = f"weights {model.weights}"
    try:
        installed = catalogue.verify_weights(catalogue.find(home, model.weights), progress)
        metadata = gguf.read_metadata(installed.path)
        check_kind(model, metadata)
    except catalogue.NotInstalled as missing:
        return to_fetch(check, missing.weights, home)
    except ConfideError as error:
        return refused(check, error)
    return ok(check, f"{size(installed.weights.size)}, {metadata.architecture}, SHA-256 as recorded")


def to_fetch(check: str, wanted: Weights, home: Path) -> Finding:
    """Not here yet: the first start fetches them, if the disk has room."""
    needed = wanted.size + (wanted.package.size if wanted.package else 0)
    try:
        disk.require_room(next(path for path in (home, *home.parents) if path.exists()), needed)
    except ConfigError as error:
        return refused(check, error)
    remedy = f"Fetch them now with `confide models pull {wanted.id}`."
    return warn(check, f"not installed; `confide serve` fetches them ({size(needed)} of disk while it does)", remedy)


def cores(engine: Engine, count: int | None = None) -> Finding:
    """Engine threads against cores."""
    count = count or usable_cores()
    threads = engine.threads or default_threads(os.cpu_count())
    found = f"cores: {count}, engine threads: {threads}"
    if threads > count:
        return warn("cores", found, f"Set [engine] threads = {max(1, count - 1)}: its threads wait for each other.")
    if threads == count > 1:
        return warn("cores", found, f"Set [engine] threads = {count - 1}: the gateway needs a core too.")
    return ok("cores", found)


def workers(number: int, count: int | None = None) -> Sequence[Finding]:
    """Worker processes against cores, where there are several of them. `count`: of cores, as found by default."""
    count = count or usable_cores()
    if number == 1:
        return []
    found = f"worker processes: {number}, cores: {count}"
    if number > count:
        return [warn("workers", found, f"Set [server] workers = {count}: more of them wait for each other.")]
    return [ok("workers", found)]


def usable_cores() -> int:
    """Those this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory(config: Config, home: Path, available_bytes: int | None) -> Finding:
    """Weights and KV cache of every model against what is free. `available_bytes` None: this system does not tell."""
    try:
        needed = AROUND_BYTES + worker_bytes(config.server.workers)
        needed += sum(model_bytes(each, config.engine, home) for each in config.model if config.is_embedded(each))
    except ConfideError:
        return warn("memory", "not known until the weights are here and whole")
    found = f"about {size(needed)} needed for {config.engine.slots} slots of {config.engine.context_length} tokens"
    if available_bytes is None:
        return ok("memory", found)
    found += f", {size(available_bytes)} available"
    if server_of(home):
        return ok("memory", f"{found} beside the running server")
    if needed > available_bytes:
        return warn("memory", found, "Set fewer slots or a shorter context_length in [engine], or free memory.")
    return ok("memory", found)


def worker_bytes(workers: int) -> int:
    """What several processes take beyond one: each of them, and the two that look after them."""
    return 0 if workers == 1 else workers * WORKER_BYTES + LOOKING_AFTER_BYTES


def model_bytes(model: Model, engine: Engine, home: Path) -> int:
    """Weights, and where text is generated a KV cache of slots × context. Raises ConfideError where the weights cannot
    be read.
    """
    installed = catalogue.find(home, model.weights)
    metadata = gguf.read_metadata(installed.path)
    if metadata.makes_vectors:
        return installed.weights.size
    tokens = engine.slots * min(engine.context_length, metadata.context_length or engine.context_length)
    return installed.weights.size + tokens * kv_bytes_a_token(installed.path)


def kv_bytes_a_token(path: Path) -> int:
    """One key and one value a layer and KV head; 0 where the file does not say how many there are."""
    found = numbers(path, GEOMETRY)
    if not all(found.get(name) for name in GEOMETRY[:3]):
        return 0
    layers, width, heads = (found[name] for name in GEOMETRY[:3])
    kv_heads = found.get("attention.head_count_kv", heads)
    return 2 * layers * kv_heads * (width // heads) * KEY_OR_VALUE_BYTES


def numbers(path: Path, names: tuple[str, ...]) -> dict[str, int]:
    """The u32 values of `<architecture>.<name>` in a GGUF file; other types count as not there."""
    found: dict[str, int] = {}
    with path.open("rb") as file:
        cursor = gguf.Cursor(file, path.stat().st_size)
        cursor.take(16)  # magic, version, tensors
        for _ in range(cursor.count("metadata pairs", gguf.MAX_PAIRS)):
            key, at = cursor.text("a key"), cursor.at
            gguf.read_value(cursor, key)
            name = key.partition(".")[2]
            if name in names and cursor.at - at == 8:  # a u32 type, and a value of 4 bytes
                cursor.at = at + 4
                found[name] = cursor.number(gguf.U32)
    return found


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that programs can still have here: the kernel's estimate, or the container's limit where that is less."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    try:
        limit = (root / "sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        limit = "max"
    return min(free, int(limit)) if free is not None and limit.isdigit() else free
