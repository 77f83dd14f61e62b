"""The supervisor with real child processes: what they are given, and what is left when they end. No model is loaded."""

import asyncio
import io
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from confide.engine.supervisor import (
    EngineLoadFailed,
    Supervisor,
    default_threads,
    new_api_key,
    remove_socket,
    socket_directory,
    worker_environment,
)
from confide.engine.worker import Settings
from confide.errors import NotReady, VerificationError
from confide.telemetry.logs import Log


def settings(directory: Path, **changes: object) -> Settings:
    values = {
        "model_path": str(directory / "missing.gguf"),
        "socket_path": str(directory / "engine.sock"),
        "api_key": "k" * 8,
        "slots": 1,
        "context_length": 512,
        "batch": 64,
        "threads": 1,
    }
    return Settings(**{**values, **changes})  # type: ignore[arg-type]  # of mixed types by name


def nothing() -> None:
    """Weights that need no check."""


def supervised(directory: Path, log: io.StringIO, **changes: object) -> Supervisor:
    return Supervisor([settings(directory, **changes)], before_start=nothing, log=Log(log))


async def test_a_model_that_cannot_be_loaded_is_an_error_with_a_remedy_and_leaves_no_process(tmp_path: Path) -> None:
    engine = supervised(tmp_path, io.StringIO())
    with pytest.raises(EngineLoadFailed, match="could not load the model: failed model RuntimeError") as raised:
        await engine.start()
    assert raised.value.remedy is not None
    assert str(tmp_path) not in raised.value.message
    assert not engine.is_ready
    assert engine.pid is None
    await engine.stop()


async def test_settings_that_the_worker_does_not_take_end_it_at_once(tmp_path: Path) -> None:
    engine = supervised(tmp_path, io.StringIO(), slots="many")
    with pytest.raises(EngineLoadFailed, match="it ended at once"):
        await engine.start()


async def test_weights_that_are_not_the_recorded_ones_are_never_loaded(tmp_path: Path) -> None:
    def changed() -> None:
        raise VerificationError("the weights changed", check="weights.sha256")

    engine = Supervisor([settings(tmp_path)], before_start=changed, log=Log(io.StringIO()))
    with pytest.raises(VerificationError):
        await engine.start()
    assert engine._process is None


async def test_while_the_engine_is_down_callers_learn_when_to_come_back(tmp_path: Path) -> None:
    engine = supervised(tmp_path, io.StringIO())
    with pytest.raises(NotReady) as raised:
        engine.check_ready()
    assert raised.value.retry_after_s is not None
    assert raised.value.retry_after_s >= 1


async def test_a_failed_restart_is_logged_by_type_and_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child is a stand-in that says it is ready and ends; the weights change after the first start."""
    checks = 0

    def changed_after_the_first_start() -> None:
        nonlocal checks
        checks += 1
        if checks > 1:
            raise VerificationError("the weights changed", check="weights.sha256")

    standing_in(tmp_path, monkeypatch, "echo ready")
    log = io.StringIO()
    engine = Supervisor([settings(tmp_path)], before_start=changed_after_the_first_start, log=Log(log))
    await engine.start()
    async with asyncio.timeout(10):
        while log.getvalue().count("engine.start_failed") < 2:
            await asyncio.sleep(0.01)
    assert not engine.is_ready
    with pytest.raises(NotReady):
        engine.check_ready()
    await engine.stop()
    events = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [event["event"] for event in events[:3]] == ["engine.ready", "engine.exited", "engine.start_failed"]
    assert events[2]["error"] == "VerificationError"
    assert "the weights changed" not in log.getvalue()


async def test_an_engine_that_ends_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standing_in(tmp_path, monkeypatch, "echo ready; [ -e second ] || { touch second; exit 3; }; cat >/dev/null")
    log = io.StringIO()
    engine = supervised(tmp_path, log)
    await engine.start()
    async with asyncio.timeout(10):
        while not (engine.restarts and engine.is_ready):
            await asyncio.sleep(0.01)
    engine.check_ready()
    assert engine.pid is not None
    await engine.stop()
    assert not is_running(engine.pid)
    assert '"exit_status":3' in log.getvalue()


async def test_stop_ends_a_child_that_does_not_listen_and_removes_its_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing_in(tmp_path, monkeypatch, "trap '' TERM INT; echo ready; exec sleep 60")
    directory = tmp_path / "run"
    directory.mkdir()
    engine = supervised(directory, io.StringIO())
    await engine.start()
    pid = engine.pid
    (directory / "engine.sock").touch()
    await engine.stop()
    assert not is_running(pid)
    assert not directory.exists()


async def test_what_the_child_writes_to_standard_error_reaches_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    standing_in(tmp_path, monkeypatch, "echo a prompt >&2; echo ready; cat >/dev/null")
    log = io.StringIO()
    engine = supervised(tmp_path, log)
    await engine.start()
    await engine.stop()
    assert "prompt" not in log.getvalue() + "".join(capfd.readouterr())


async def test_the_child_stands_in_a_session_of_its_own_so_that_a_terminals_ctrl_c_passes_it_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing_in(tmp_path, monkeypatch, "echo ready; cat >/dev/null")
    engine = supervised(tmp_path, io.StringIO())
    await engine.start()
    assert engine.pid is not None
    assert os.getsid(engine.pid) != os.getsid(0)
    await engine.stop()


def standing_in(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A shell script in place of Python: it gets the worker's arguments, settings and environment."""
    path = directory / "stand-in"
    path.write_text(f'#!/bin/sh\ncd "{directory}"\nread settings\n{script}\n')
    path.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(path))


def is_running(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    "name", ["CONFIDE_API_KEY", "CONFIDE_STORE_URL", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "LLAMA_ARG_HOST"]
)
def test_no_setting_and_no_key_of_the_parent_is_inherited(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "secret")
    assert name not in worker_environment()


def test_what_libraries_need_is_inherited_and_threads_sleep_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/lib")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert worker_environment()["LD_LIBRARY_PATH"] == "/lib"
    assert worker_environment()["PATH"] == os.environ["PATH"]
    assert worker_environment()["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert worker_environment()["OMP_WAIT_POLICY"] == "active"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_sockets_directory_is_private_even_where_one_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o777)
    (tmp_path / "run").chmod(0o777)
    assert mode(socket_directory(tmp_path)) == 0o700


def test_a_path_too_long_for_a_socket_gives_way_to_a_private_temporary_directory(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    directory = socket_directory(deep)
    assert mode(directory) == 0o700
    assert len(os.fsencode(directory)) < 80
    directory.rmdir()


def test_the_sockets_directory_stays_while_another_models_socket_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "other.sock").touch()
    remove_socket(tmp_path / "engine.sock")
    assert (tmp_path / "other.sock").exists()


def test_keys_are_long_and_differ() -> None:
    assert len(new_api_key()) >= 43
    assert new_api_key() != new_api_key()


@pytest.mark.parametrize(("cores", "threads"), [(None, 1), (1, 1), (2, 1), (8, 7)])
def test_one_core_is_left_to_the_gateway(cores: int | None, threads: int) -> None:
    assert default_threads(cores) == threads
