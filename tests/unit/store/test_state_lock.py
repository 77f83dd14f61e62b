"""Two servers on one state directory: the second is refused, and told whom to stop."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from confide.errors import ConfigError
from confide.store import lock_state, open_keys

HOLD = """
import sys
from pathlib import Path
from confide.store import lock_state
lock = lock_state(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def holder(home: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_server_is_refused_and_told_the_process(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        with pytest.raises(ConfigError, match=rf"process {first.pid}\b") as caught:
            lock_state(tmp_path)
        assert caught.value.remedy
        first.communicate()


def test_keys_can_be_made_while_a_server_holds_the_lock(tmp_path: Path) -> None:
    with lock_state(tmp_path):
        open_keys(None, tmp_path).create_key("laptop")


def test_the_lock_ends_with_its_process_even_when_it_was_killed(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        first.send_signal(signal.SIGKILL)
    with lock_state(tmp_path):
        assert (tmp_path / "serve.lock").read_text() == f"{os.getpid()}\n"


def test_a_released_lock_can_be_taken_again(tmp_path: Path) -> None:
    lock = lock_state(tmp_path)
    lock.release()
    lock.release()
    lock_state(tmp_path).release()


def test_a_directory_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        lock_state(tmp_path / "missing")
