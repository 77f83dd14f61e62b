"""`confide doctor`: it names what is wrong and how to mend it, and leaves everything as it was."""

import asyncio
import contextlib
import json
import os
import pty
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from confide.attester.gpu_sources import GpuFailed
from confide.attester.keys import WorkloadKeys
from confide.attester.seed import load_seed
from confide.attester.selection import TSM, Kind
from confide.cli import doctor_machine as machine
from confide.cli import doctor_service as service
from confide.cli import doctor_state as state
from confide.cli.finding import Finding
from confide.config import Config, Engine, Model, Server, Store
from confide.engine import local
from confide.engine.progress import silent
from confide.store import lock_state, open_keys, open_store
from gguf_writer import PAIRS, U32, Typed, gguf_bytes
from running import CONFIDE, home_with_weights, running
from tls_files import issued, self_signed_pem

GEOMETRY = {
    "llama.block_count": Typed(U32, 30),
    "llama.embedding_length": Typed(U32, 576),
    "llama.attention.head_count": Typed(U32, 9),
    "llama.attention.head_count_kv": Typed(U32, 3),
}

Tree = dict[str, tuple[int, int, int, bytes]]


def environment(home: Path, **variables: str) -> dict[str, str]:
    """Only these settings, on a port that is free."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("CONFIDE_")}
    return {**keep, "CONFIDE_HOME": str(home), "CONFIDE_SERVER_PORT": "0", **variables}


def run(home: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [str(CONFIDE), "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(home, **variables), check=False)


def findings(home: Path, *arguments: str, **variables: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit status, and the checks by name."""
    done = run(home, "--json", *arguments, **variables)
    document = json.loads(done.stdout)
    assert document["status"] == ("fail" if done.returncode else "ok")
    return done.returncode, {found["check"]: found for found in document["checks"]}


def tree(root: Path) -> Tree:
    """Everything below `root`: mode, size, time of change, contents."""
    paths = [root, *sorted(root.rglob("*"))]
    return {str(path): (*facts(path), path.read_bytes() if path.is_file() else b"") for path in paths}


def facts(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mode, found.st_size, found.st_mtime_ns


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A state directory that was used: a database with a key, the simulator's seed, and small weights."""
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    open_keys(None, path).create_key("laptop")
    load_seed(path / "simulator")
    file = tmp_path / "tiny.gguf"
    file.write_bytes(gguf_bytes({**PAIRS, **GEOMETRY}))
    local.add(path, file, copy=True)
    return path


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A configuration file that serves the small weights."""
    path = tmp_path / "confide.toml"
    path.write_text('[[model]]\nid = "tiny"\nupstream_model = "tiny"\n')
    return str(path)


TINY = Model(id="tiny", upstream_model="tiny")


def test_a_fresh_machine_has_nothing_wrong_and_stays_as_it_is(tmp_path: Path) -> None:
    status, found = findings(tmp_path / "home")
    assert status == 0, found
    expected = ["Python", "platform", "libgomp", "engine", "clock", "configuration", "TEE", "GPU", "state directory"]
    weights = ["weights smollm2-135m", "weights all-minilm-l6-v2"]
    assert list(found) == [*expected, "files", "port", "store", "API keys", *weights, "cores", "memory"]
    assert (found["weights smollm2-135m"]["status"], found["engine"]["status"]) == ("warn", "ok")
    assert "confide models pull smollm2-135m" in found["weights smollm2-135m"]["remedy"]
    assert list(tmp_path.iterdir()) == []


def test_a_used_state_directory_stays_as_it_is(home: Path, config: str) -> None:
    before = tree(home)
    status, found = findings(home, "--config", config)
    assert status == 0, found
    assert found["weights tiny"]["found"].endswith("SHA-256 as recorded")
    assert found["API keys"]["found"] == "1 active, 0 revoked"
    assert tree(home) == before


def test_the_state_of_a_killed_server_stays_as_it_is_and_is_read_to_its_last_commit(home: Path) -> None:
    program = (
        "import os, sys, pathlib; from confide.store import open_keys\n"
        "from confide.store.database import connect\n"
        "home = pathlib.Path(sys.argv[1]); held = connect(home / 'confide.db'); held.execute('SELECT * FROM keys')\n"
        "open_keys(None, home).create_key('second'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(home)], check=False)
    assert (home / "confide.db-wal").stat().st_size
    before = tree(home)
    assert keys(home).found == "2 active, 0 revoked"
    assert state.store(None, home).status == "ok"
    assert tree(home) == before


async def test_it_works_beside_a_running_store_and_sees_its_newest_keys(home: Path) -> None:
    store = open_store(None, home, Store())
    store.create_key("second")
    names = sorted(path.name for path in home.iterdir())
    found = await asyncio.to_thread(keys, home)
    assert found.found == "2 active, 0 revoked"
    assert sorted(path.name for path in home.iterdir()) == names
    store.create_key("third")
    await store.close()


@pytest.mark.engine
def test_it_works_while_a_server_runs_on_the_same_state_directory(tmp_path: Path, engine_home: Path) -> None:
    home = home_with_weights(tmp_path, engine_home)
    with running(home) as server:
        number = server.url.rpartition(":")[2]
        status, found = findings(home, CONFIDE_SERVER_PORT=number)
        assert status == 0, found
        assert f"process {server.process.pid} serves" in found["port"]["found"]
        assert found["weights smollm2-135m"]["status"] == found["weights all-minilm-l6-v2"]["status"] == "ok"
        assert server.terminate() == 0


def test_the_table_is_plain_when_piped_and_coloured_on_a_terminal(tmp_path: Path) -> None:
    done = run(tmp_path / "home")
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[0].split() == ["check", "status", "found", "what", "to", "do"]
    assert "SIMULATED TEE: no hardware protection" in done.stdout
    assert done.stdout.endswith("nothing failed\n")
    drawn = on_terminal(tmp_path / "home")
    assert b"\x1b[" in drawn
    assert b"nothing failed" in drawn


def on_terminal(home: Path) -> bytes:
    ours, theirs = pty.openpty()
    environ = {**environment(home), "TERM": "xterm"}
    command = subprocess.Popen([CONFIDE, "doctor"], env=environ, stdout=theirs, stderr=subprocess.DEVNULL)
    os.close(theirs)
    drawn = b"".join(iter(lambda: read_terminal(ours), b""))
    os.close(ours)
    assert command.wait(30) == 0
    return drawn


def read_terminal(descriptor: int) -> bytes:
    """What is there; nothing once the other side is closed, which Linux reports as an error."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


def test_a_configuration_that_does_not_load_is_a_finding_and_the_machine_is_still_looked_at(tmp_path: Path) -> None:
    status, found = findings(tmp_path / "home", CONFIDE_SERVER_PRT="1")
    assert status == 1
    assert (found["configuration"]["status"], found["engine"]["status"]) == ("fail", "ok")
    assert "CONFIDE_SERVER_PRT" in found["configuration"]["found"]
    assert list(tmp_path.iterdir()) == []


def test_wrong_weights_fail_with_a_remedy(home: Path, config: str) -> None:
    weights = home / "models" / "tiny" / "tiny.gguf"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    done = run(home, "--config", config)
    assert done.returncode == 1
    assert "1 failed" in done.stdout
    found = service.weights(TINY, home, silent)
    assert found.status == "fail"
    assert "SHA-256" in found.found
    assert "confide models remove tiny" in str(found.remedy)


def test_missing_and_unknown_weights_fail_with_a_remedy(home: Path) -> None:
    (home / "models" / "tiny" / "tiny.gguf").unlink()
    assert_failed(service.weights(TINY, home, silent), "no file at", "confide models remove tiny")
    other = Model(id="b", upstream_model="gpt-9")
    assert_failed(service.weights(other, home, silent), "unknown weights 'gpt-9'", "confide models add")


def assert_failed(found: Finding, words: str, remedy: str) -> None:
    assert found.status == "fail", found
    assert words in found.found
    assert remedy in str(found.remedy)


def test_a_port_that_another_program_uses_fails(home: Path) -> None:
    with taken_port() as number:
        assert_failed(service.port(Config(server=Server(port=number)), home), f"port {number}", "--port PORT")


def test_a_port_that_our_server_uses_does_not(home: Path) -> None:
    with taken_port() as number, lock_state(home):
        found = service.port(Config(server=Server(port=number)), home)
    assert found.status == "ok"
    assert f"process {os.getpid()} serves this state directory" in found.found


def test_asking_who_serves_does_not_keep_a_server_out(home: Path) -> None:
    lock_state(home).release()
    assert state.server_of(home) is None
    with lock_state(home):
        assert state.server_of(home) == str(os.getpid())


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def keys(home: Path, host: str = "127.0.0.1", *, is_loopback: bool = True) -> Finding:
    return state.api_keys(None, home, host=host, is_loopback=is_loopback)


def test_an_open_service_is_for_this_machine_alone(tmp_path: Path, home: Path) -> None:
    assert keys(tmp_path).status == "ok"
    assert_failed(keys(tmp_path, "0.0.0.0", is_loopback=False), "refuses to start", "confide keys create")
    assert keys(home, "0.0.0.0", is_loopback=False).status == "ok"


def test_keys_that_are_all_revoked_are_a_warning(home: Path) -> None:
    table = open_keys(None, home)
    table.revoke_key(table.list_keys()[0].id)
    assert keys(home).status == "warn"
    assert "all revoked" in keys(home).found


def test_a_database_that_is_not_ours_or_damaged_fails(home: Path) -> None:
    path = home / "confide.db"
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes(len(whole) - 100))
    assert_failed(state.store(None, home), "confide.db", "Move the file away")
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE other (x)")
    assert_failed(state.store(None, home), "another program's", "Move the file away")
    path.write_text("text")
    assert_failed(state.store(None, home), "not a database", "Move the file away")


def test_a_database_of_a_newer_version_fails(home: Path) -> None:
    with contextlib.closing(sqlite3.connect(home / "confide.db")) as db:
        db.execute("PRAGMA user_version = 99")
    assert_failed(state.store(None, home), "schema version 99", "upgrade")


def test_a_store_elsewhere_is_looked_at_where_it_is(home: Path, tmp_path: Path) -> None:
    assert "elsewhere.db, made at the first start" in state.store(f"sqlite:///{tmp_path}/elsewhere.db", home).found
    assert_failed(state.store(f"sqlite:///{tmp_path}/tiny.gguf", home), "tiny.gguf", "Move the file away")


@pytest.mark.parametrize(
    ("name", "mode", "status"),
    [
        ("simulator/seed", 0o640, "fail"),
        ("simulator", 0o755, "fail"),
        ("confide.db", 0o644, "warn"),
        (".", 0o755, "warn"),
    ],
)
def test_what_others_can_read_is_named_with_the_command_that_mends_it(
    home: Path, name: str, mode: int, status: str
) -> None:
    assert [found.status for found in state.state_directory(home)] == ["ok"]
    (home / name).chmod(mode)
    (found,) = state.state_directory(home)
    assert found.status == status
    assert found.remedy == f"Run: chmod {0o700 if (home / name).is_dir() else 0o600:o} {home / name}"
    assert (home / name).stat().st_mode & 0o777 == mode


def test_a_state_directory_that_is_a_file_or_below_one_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        assert_failed(state.state_directory(tmp_path / name)[0], "file", "CONFIDE_HOME")


@pytest.mark.parametrize("now_s", [0, 1_767_225_599, 2_366_841_600, 4e12])
def test_a_clock_outside_of_its_years_fails(now_s: float) -> None:
    assert_failed(machine.clock(now_s, (1.0, 2.0)), "2026", "NTP")


def test_a_clock_that_goes_on_is_fine_and_one_that_goes_back_is_not() -> None:
    assert machine.clock(1_767_225_600, (1.0, 1.0)).status == "ok"
    assert machine.clock(1_800_000_000, (2.0, 1.0)).status == "fail"


def test_an_old_python_fails() -> None:
    assert_failed(machine.python((3, 10, 9)), "3.10.9", "3.11")
    assert machine.python((3, 12, 0)).status == "ok"


@pytest.mark.parametrize(
    ("system", "architecture", "libc", "status"),
    [
        ("linux", "x86_64", "glibc 2.36", "ok"),
        ("linux", "aarch64", "glibc 2.31", "ok"),
        ("darwin", "arm64", "", "ok"),
        ("linux", "x86_64", "", "fail"),
        ("linux", "x86_64", "musl 1.2", "fail"),
        ("linux", "riscv64", "glibc 2.36", "fail"),
    ],
)
def test_platforms_without_a_build_of_the_engine_fail(system: str, architecture: str, libc: str, status: str) -> None:
    assert machine.libc(system, architecture, libc).status == status


def test_a_missing_library_fails_with_the_package_that_has_it() -> None:
    assert_failed(machine.libgomp("linux", "libabsent.so.1"), "libabsent.so.1", "apt-get install libgomp1")
    assert machine.libgomp("darwin").status == "ok"


def test_an_engine_that_does_not_load_fails_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "broken.py").write_text("raise ImportError('libx.so: cannot open shared object file')")
    (tmp_path / "deadly.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert_failed(machine.engine("broken"), "libx.so: cannot open", "fresh environment")
    assert_failed(machine.engine("deadly"), "instructions this CPU lacks", "AVX2")
    assert machine.engine().status == "ok"
    assert "xllamacpp" not in sys.modules


def never(_: Path) -> bool:
    return False


def show(root: Path, *paths: str) -> None:
    """Put these on the machine: a directory for configfs, else files."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).mkdir() if path == TSM else (root / path).touch()


@pytest.mark.parametrize("device", [path for paths in machine.TEE_SIGNS.values() for path in paths])
def test_a_tee_that_cannot_be_used_is_found_and_what_it_lacks_is_told(tmp_path: Path, device: str) -> None:
    show(tmp_path, device)
    found = machine.tee("auto", tmp_path, {}, may_write=never)
    assert_failed(found, "cannot be used: ", 'kind = "simulated"')
    assert found.found.startswith("found: ")
    assert str(tmp_path / device) in found.found
    assert machine.tee("simulated", tmp_path, {}).status == "warn"


@pytest.mark.parametrize(
    ("kind", "shown", "reason", "remedy"),
    [
        ("auto", ("dev/tdx_guest",), "tsm/report is not", "the module tdx_guest"),
        ("tsm", ("dev/sev-guest",), "tsm/report is not", "the module sev-guest"),
        ("tsm", ("dev/tdx_guest", TSM), "may not write", "Run as root"),
        ("tsm", (), "there is no ", "Start in a TDX or SEV-SNP guest"),
        ("dstack", (), "there is no guest agent", "the agent's socket mounted"),
        ("dstack", ("var/run/dstack.sock",), "is no socket", "the agent's socket mounted"),
        ("auto", ("run/dstack.sock", "dev/tdx_guest"), "is no socket; ", "guest agent"),
    ],
)
def test_each_kind_is_told_what_it_lacks(
    tmp_path: Path, kind: Kind, shown: tuple[str, ...], reason: str, remedy: str
) -> None:
    show(tmp_path, *shown)
    assert_failed(machine.tee(kind, tmp_path, {}, may_write=never), reason, remedy)


def test_a_tee_of_use_is_named(tmp_path: Path) -> None:
    show(tmp_path, "dev/sev-guest", TSM)
    for kind in ("auto", "tsm"):
        found = machine.tee(kind, tmp_path, {})
        assert (found.status, found.remedy) == ("ok", None)
        assert found.found.endswith("takes configfs-tsm")


def test_an_agents_socket_is_of_use(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short, socket.socket(socket.AF_UNIX) as listener:
        root = Path(short)
        (root / "run").mkdir()
        listener.bind(str(root / "run" / "dstack.sock"))
        found = machine.tee("auto", root, {})
    assert (found.status, found.found.partition("; takes ")[2]) == ("ok", "dstack's guest agent")


def test_a_machine_without_a_tee_is_told_what_it_gets(tmp_path: Path) -> None:
    found = machine.tee("auto", tmp_path, {})
    assert found.status == "warn"
    assert found.found.startswith("not found: TDX guest device, SEV-SNP guest device, configfs-tsm, dstack agent;")
    assert found.found.endswith("SIMULATED TEE: no hardware protection")
    found = machine.tee("auto", tmp_path, {"DSTACK_SIMULATOR_ENDPOINT": "http://agent.example"})
    assert found.status == "warn"
    assert "counts as a SIMULATED TEE: no hardware protection" in found.found
    assert "agent.example" not in found.found
    found = machine.tee("tsm", tmp_path, {"TSM_SIMULATOR_ENDPOINT": "/run/elsewhere.sock"})
    assert found.status == "warn"
    assert "found: configfs-tsm; not found: " in found.found
    assert found.found.endswith(
        "TSM_SIMULATOR_ENDPOINT names configfs-tsm, which is a SIMULATED TEE: no hardware protection"
    )
    assert "elsewhere" not in found.found


class Nvml:
    """NVML where the mode is all that matters."""

    NVMLError = RuntimeError

    def __init__(self, mode: int, *, is_broken: bool = False) -> None:
        self.mode = mode
        self.is_broken = is_broken

    def __getattr__(self, name: str) -> Any:
        if self.is_broken and name == "nvmlInit":
            raise RuntimeError("Driver Not Loaded")
        return lambda: SimpleNamespace(ccFeature=self.mode)


@pytest.mark.parametrize(
    ("source", "devices", "mode", "status", "words"),
    [
        ("none", 0, 0, "ok", "none found"),
        ("simulated", 0, 0, "ok", "a SIMULATED TEE"),
        ("nvml", 0, 0, "warn", 'none found, and [attester] gpu = "nvml"'),
        ("none", 2, 1, "warn", "2 found in confidential mode, not shown"),
        ("nvml", 2, 1, "ok", '2 found in confidential mode, shown by gpu = "nvml"'),
        ("none", 1, 0, "warn", "not in confidential mode"),
        ("command", 1, 0, "fail", "not in confidential mode"),
    ],
)
def test_gpus_are_found_and_their_mode_told(
    tmp_path: Path, source: str, devices: int, mode: int, status: str, words: str
) -> None:
    show(tmp_path, *(f"dev/nvidia{number}" for number in range(devices)), "dev/nvidiactl", "dev/nvidia-uvm")
    found = machine.gpu(source, tmp_path, lambda: Nvml(mode))
    assert found.status == status
    assert words in found.found


@pytest.mark.parametrize(("source", "status"), [("nvml", "fail"), ("none", "warn")])
def test_a_mode_that_cannot_be_asked_is_not_guessed(tmp_path: Path, source: str, status: str) -> None:
    show(tmp_path, "dev/nvidia0")

    def absent() -> Nvml:
        raise GpuFailed("nvidia-ml-py is not installed")

    for load, word in ((absent, "not installed"), (lambda: Nvml(1, is_broken=True), "Driver Not Loaded")):
        found = machine.gpu(source, tmp_path, load)
        assert found.status == status
        assert f"not known: {word}" in found.found.replace("nvidia-ml-py is ", "").replace("NVML: ", "")
        assert "confide[gpu]" in str(found.remedy)


@pytest.mark.parametrize(
    ("threads", "count", "status"), [(1, 2, "ok"), (2, 2, "warn"), (3, 2, "warn"), (1, 1, "ok"), (2, 1, "warn")]
)
def test_the_gateway_needs_a_core_of_its_own(threads: int, count: int, status: str) -> None:
    assert service.cores(Engine(threads=threads), count).status == status


@pytest.mark.parametrize(("number", "statuses"), [(1, []), (2, ["ok"]), (3, ["warn"])])
def test_workers_are_held_against_the_cores(number: int, statuses: list[str]) -> None:
    assert [finding.status for finding in service.workers(number, 2)] == statuses


def test_memory_counts_the_processes(home: Path) -> None:
    one, four = (Config(model=(TINY,), server=Server(workers=number)) for number in (1, 4))
    needed = service.AROUND_BYTES + service.model_bytes(TINY, one.engine, home)
    more = service.worker_bytes(4)
    assert service.memory(one, home, needed).status == "ok"
    assert more > 4 * service.WORKER_BYTES
    assert service.memory(four, home, needed + more).status == "ok"
    assert service.memory(four, home, needed + more - 1).status == "warn"


def test_memory_counts_weights_and_a_cache_for_each_slot(home: Path) -> None:
    config = Config(model=(TINY,), engine=Engine(slots=4, context_length=4096))  # the file says 2048 at most
    cache = 4 * 2048 * (2 * 30 * 3 * 64 * 2)
    size = (home / "models" / "tiny" / "tiny.gguf").stat().st_size
    needed = service.AROUND_BYTES + size + cache
    assert service.memory(config, home, needed).status == "ok"
    assert service.memory(config, home, needed - 1).status == "warn"
    assert service.memory(config, home, None).status == "ok"


def test_memory_is_not_judged_while_our_server_has_taken_it(home: Path) -> None:
    with lock_state(home):
        assert service.memory(Config(model=(TINY,)), home, 1).status == "ok"


def test_memory_without_weights_is_not_known(tmp_path: Path) -> None:
    assert service.memory(Config(), tmp_path, 1).status == "warn"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    2000 kB\n"}, 2_048_000),
        ({"proc/meminfo": "MemAvailable: 2000 kB\n", "sys/fs/cgroup/memory.max": "max\n"}, 2_048_000),
        ({"proc/meminfo": "MemAvailable: 2000 kB\n", "sys/fs/cgroup/memory.max": "1000\n"}, 1000),
        ({}, None),
    ],
)
def test_available_memory_is_the_containers_where_that_is_less(
    tmp_path: Path, files: Mapping[str, str], expected: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    assert service.available_memory(tmp_path) == expected


def test_files_that_the_configuration_names_are_looked_at(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.pem")
    both = Config(server=Server(tls_cert=absent, tls_key=absent))
    assert_failed(service.files(both, tmp_path), "absent.pem", "Name a file")
    assert service.files(Config(), tmp_path).status == "ok"


def test_a_chain_is_compared_with_the_attested_key_without_making_one(home: Path, tmp_path: Path) -> None:
    chain = tmp_path / "chain.pem"
    chain.write_bytes(self_signed_pem())
    named = Config(server=Server(tls="attested", tls_cert=str(chain)))
    assert_failed(service.files(named, home), "attested key", "confide tls csr")
    key = WorkloadKeys.derive(load_seed(home / "simulator")).tls
    chain.write_bytes(issued(key.request(["a.example"])).pem)
    assert service.files(named, home).found == "TLS with the attested key, in a chain that was issued for it"
    assert service.files(named, tmp_path / "new").status == "warn"
    assert service.files(Config(server=Server(tls="attested")), home).status == "ok"
    assert not (tmp_path / "new").exists()
