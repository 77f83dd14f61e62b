"""The program around its commands: quick to start, one line for every failure, a status that means something."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from confide import __version__
from confide.cli.main import COMMANDS
from snp_builders import platform

HEAVY = ("uvicorn", "httpx2", "starlette", "cryptography", "coincurve", "sqlite3", "asyncio", "rich", "confide.gateway")
SECRET = "sk-prompt-or-key"

Completed = subprocess.CompletedProcess[str]
Fail = Callable[[str], Completed]


def confide(*arguments: str) -> Completed:
    command = [sys.executable, "-m", "confide.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def fail(tmp_path: Path) -> Fail:
    """Run the program with one more command, whose body is the given statement."""

    def fail(statement: str) -> Completed:
        (tmp_path / "command.py").write_text(
            f"import errno, os, signal\nfrom confide import errors\n\n\ndef fail():\n    {statement}\n"
        )
        program = "from confide.cli import main; main.COMMANDS['fail'] = ('command:fail', 'Fails.'); main.main()"
        environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", program, "fail"]
        return subprocess.run(command, capture_output=True, text=True, env=environ, check=False)

    return fail


def test_the_version_is_one_line() -> None:
    done = confide("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"confide {__version__}\n", "")


def test_the_program_starts_without_the_rooms_it_may_not_need() -> None:
    program = f"import sys, confide.cli.main; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_lists_every_command_with_its_line() -> None:
    done = confide("--help")
    assert done.returncode == 0
    for name, (_, line) in COMMANDS.items():
        assert name in done.stdout
        assert line in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    done = confide(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: confide {name}" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [("serv",), ("--nonsense",), ("serve", "--nonsense"), ("serve", "--port", "many"), ("keys", "revoke")],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    done = confide(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: confide" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [(), ("keys",), ("models",)], ids=" ".join)
def test_no_command_ends_with_2_and_the_help(arguments: tuple[str, ...]) -> None:
    done = confide(*arguments)
    assert done.returncode == 2
    assert "Commands" in done.stdout


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("VerificationError('other bytes', check='c', remedy='do')", 1),
        ("ConfigError('[server] port', remedy='do')", 2),
        ("CannotTell('no network', remedy='do')", 3),
    ],
)
def test_an_error_is_a_sentence_a_remedy_and_its_status(fail: Fail, error: str, status: int) -> None:
    done = fail(f"raise errors.{error}")
    text = error.split("'")[1]
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"error: {text}\ndo\n")


def test_an_error_without_a_remedy_is_one_line(fail: Fail) -> None:
    assert fail("raise errors.ConfigError('that')").stderr == "error: that\n"


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        (f"raise ValueError('{SECRET}')", "ValueError"),
        (f"{{}}['{SECRET}']", "KeyError"),
        (f"open('{SECRET}')", "FileNotFoundError"),
        (f"raise ExceptionGroup('{SECRET}', [ValueError('{SECRET}')])", "ExceptionGroup"),
    ],
)
def test_a_fault_of_ours_shows_its_type_and_nothing_it_was_given(fail: Fail, statement: str, kind: str) -> None:
    done = fail(statement)
    assert (done.returncode, done.stdout) == (3, "")
    first, second = done.stderr.splitlines()
    assert first.startswith(f"error: unforeseen {kind}")
    assert "report" in second
    assert SECRET not in done.stderr


def test_a_fault_of_ours_names_the_line_it_came_from(fail: Fail) -> None:
    done = fail("from confide.protocol.sse import Framer; Framer().feed(None)")
    assert "unforeseen AttributeError at protocol/sse.py:" in done.stderr


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/somewhere')", "/somewhere: No space left on device"),
        ("raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), '/there')", "/there: Permission denied"),
        ("raise OSError(errno.EROFS, os.strerror(errno.EROFS))", "Read-only file system"),
    ],
)
def test_what_the_system_refuses_ends_with_2_and_is_no_fault(fail: Fail, statement: str, words: str) -> None:
    done = fail(statement)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"error: {words}"


def test_an_interrupt_ends_with_130_and_in_silence(fail: Fail) -> None:
    # A job in the background has it ignored, and so has what it starts.
    done = fail("signal.signal(signal.SIGINT, signal.default_int_handler); os.kill(os.getpid(), signal.SIGINT)")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_reader_that_leaves_is_no_fault() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "confide.cli.main", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "error:" not in done.stderr


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["table", "json"])
def test_a_reader_that_goes_away_is_not_taken_for_not_verified(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "report").write_bytes(platform().report(bytes(64)))
    reading, writing = os.pipe()
    os.close(reading)
    try:
        program = [sys.executable, "-m", "confide.cli.main"]
        command = [*program, "evidence", "inspect", str(tmp_path / "report"), *options]
        ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, "")
