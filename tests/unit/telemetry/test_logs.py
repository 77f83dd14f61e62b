"""What a line of the log may hold, and what happens when it cannot be written."""

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest

from confide.telemetry.logs import ALLOWED, Log, keep_allowed


def lines(written: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in written.getvalue().removesuffix("\n").split("\n")]


def test_a_line_is_one_json_object_with_its_time() -> None:
    written = io.StringIO()
    log = Log(written, now=lambda: 1_790_000_000.123456)
    log.write("request", outcome="complete", ms=1.5, stream=False, reason=None)
    log.write("engine.ready", restarts=0)
    assert lines(written) == [
        {"at": 1790000000.123, "event": "request", "outcome": "complete", "ms": 1.5, "stream": False, "reason": None},
        {"at": 1790000000.123, "event": "engine.ready", "restarts": 0},
    ]


@pytest.mark.parametrize("name", ["prompt", "content", "messages", "authorization", "key", "user", "Model", "model "])
def test_a_field_that_is_not_allowed_is_not_written(name: str) -> None:
    written = io.StringIO()
    Log(written).write("request", **{name: "secret", "outcome": "complete"})
    assert "secret" not in written.getvalue()
    assert lines(written)[0]["outcome"] == "complete"


def test_every_allowed_field_is_written() -> None:
    assert keep_allowed(dict.fromkeys(ALLOWED, 1)) == dict.fromkeys(ALLOWED, 1)


def test_a_value_cannot_begin_a_line_of_its_own() -> None:
    written = io.StringIO()
    Log(written).write("request", model='m"\n{"event":"request","outcome":"complete"}\r\u2028')
    (line,) = lines(written)
    assert line["model"] == 'm"\n{"event":"request","outcome":"complete"}\r\u2028'


def test_each_line_is_there_at_once(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        Log(file).write("engine.ready")
        assert (tmp_path / "log").read_text().endswith('"event":"engine.ready"}\n')


def test_without_a_stream_it_is_the_standard_error_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    log, replaced = Log(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", replaced)
    log.write("engine.ready")
    assert lines(replaced)[0]["event"] == "engine.ready"


def test_a_full_disk_under_the_log_fails_nobody() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no device that is always full")
    with contextlib.suppress(OSError), full.open("w") as device:  # closing tries once more
        Log(device).write("request", outcome="complete")
        wrote = True
    assert wrote


def test_a_log_that_was_closed_fails_nobody(tmp_path: Path) -> None:
    file = (tmp_path / "log").open("w")
    file.close()
    Log(file).write("request", outcome="complete")
