"""A worker whose event loop does not turn is ended and started again; one that is late is left alone (ADR 25)."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from confide.gateway.reload import read_result
from confide.protocol.sse import DONE
from crew import (
    CHAT,
    LOCAL,
    Asker,
    Engine,
    answers,
    busy,
    callers,
    engine,
    is_running,
    log_lines,
    parent_of,
    pids,
    prompt,
    prove,
    served_by,
    until,
)
from running import CONFIDE, Running, running

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc"),
]

BOUND_S = 6.0  # where all must be left alone: a machine that is busy may hold a worker up for a while
END = b"end\n"
SHORT_S = 4.0  # where one does not turn any more


@pytest.fixture
def upstream() -> Iterator[Engine]:
    with engine() as found:
        yield found


@contextmanager
def serving(base: Path, upstream: Engine, bound_s: float, *, drain_s: float = 20) -> Iterator[Running]:
    home = base / "home"
    home.mkdir(mode=0o700, exist_ok=True)
    server = f"worker_timeout_s = {bound_s}\ndrain_s = {drain_s}"
    with running(home, config=LOCAL.format(workers=2, server=server, rest="", port=upstream.port)) as service:
        yield service


@contextmanager
def stopped(*processes: int) -> Iterator[None]:
    """These are stopped; they go on when the block ends, as far as they are still there."""
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


def hung(service: Running) -> list[int]:
    """The workers that were found not to turn, in order."""
    return [line["worker"] for line in log_lines(service) if line["event"] == "worker.hung"]


def ended(service: Running) -> list[tuple[int, int]]:
    """The workers that have ended, in order, each with its exit status."""
    return [(line["worker"], line["exit_status"]) for line in log_lines(service) if line["event"] == "worker.exited"]


def test_a_stopped_worker_is_replaced_and_the_other_goes_on(tmp_path: Path, upstream: Engine) -> None:
    with serving(tmp_path, upstream, SHORT_S) as service:
        first = pids(service)
        with busy(service, 8) as askers:
            worker_of = {asker: served_by(service, asker.exchanged[0].receipt_id) for asker in askers}
            assert set(worker_of.values()) == {1, 2}
            with stopped(first[1]):
                since, at = time.time(), len(answers(askers))
                until(lambda: len(answers(askers)) > at + 40, "the other goes on")
                with httpx2.Client(base_url=service.url, timeout=60) as new:
                    assert new.get("/health/ready").json() == {"status": "ready"}
                    assert new.post(CHAT, json=prompt()).status_code == 200
                until(lambda: pids(service)[1] != first[1], "it is replaced")
            until(lambda: all(asker.cuts for asker in askers if worker_of[asker] == 1), "its connections are cut off")
            after = [len(asker.exchanged) for asker in askers]
            until(lambda: all(len(a.exchanged) > n for a, n in zip(askers, after, strict=True)), "all are served again")
            with callers(service):
                pass  # the new one serves
        assert [asker.cuts for asker in askers] == [1 if worker_of[asker] == 1 else 0 for asker in askers]
        assert not is_running(first[1])
        assert pids(service)[2] == first[2]
        prove(service, answers(askers))
        assert hung(service) == [1]
        assert ended(service) == [(1, -signal.SIGKILL)]
        late, found = [line for line in log_lines(service) if line["event"] in ("worker.late", "worker.hung")]
        assert (late["pid"], found["pid"]) == (first[1], first[1])
        assert SHORT_S / 2 < late["at"] - since < found["at"] - since
        assert json.loads(doctor(service).stdout)["status"] == "ok"


def doctor(service: Running) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, "CONFIDE_HOME": str(service.home)}
    command: list[str | Path] = [CONFIDE, "doctor", "--json", "--config", service.home / "confide.toml"]
    return subprocess.run(command, capture_output=True, text=True, env=environ, check=False)


def test_a_call_that_does_not_return_blocks_the_workers_until_they_are_replaced(
    tmp_path: Path, upstream: Engine
) -> None:
    """A file that a reload names is a pipe in which nothing comes, and workers read it in their event loop. Nobody runs
    by that configuration: who was ended instead of answering has not agreed.
    """
    with serving(tmp_path, upstream, SHORT_S) as service:
        before = pids(service)
        pipe, file = service.home / "upstream.key", service.home / "confide.toml"
        os.mkfifo(pipe)
        good = file.read_text()
        file.write_text(good.replace("cache_salt", f'key_file = "{pipe}"\ncache_salt') + 'aliases = ["also"]\n')
        service.process.send_signal(signal.SIGHUP)
        pipe.write_text("secret\n")  # for the parent, which looks whether it is a key; workers read after it
        result = until(lambda: read_result(service.home))
        assert "does not answer" in result.error
        until(lambda: all(pids(service)[number] != before[number] for number in before))
        assert sorted(hung(service)) == [1, 2]
        assert sorted(ended(service)) == [(1, -signal.SIGKILL), (2, -signal.SIGKILL)]
        with callers(service) as by_worker:
            for client in by_worker.values():
                assert client.post(CHAT, json=prompt(model="also")).status_code == 404


def test_a_worker_that_is_late_again_and_again_is_left_alone(tmp_path: Path, upstream: Engine) -> None:
    """Longer than the bound altogether: what counts is how long it does not turn at a time."""
    with serving(tmp_path, upstream, BOUND_S) as service, callers(service) as by_worker:
        first = pids(service)
        for _ in range(3):
            with stopped(first[1]):
                time.sleep(BOUND_S / 2)
            assert by_worker[1].post(CHAT, json=prompt()).status_code == 200
        assert pids(service) == first
        assert not hung(service)
        assert not ended(service)


@pytest.mark.parametrize("who", ["the parent", "all"])
def test_a_parent_that_was_stopped_itself_condemns_nobody(tmp_path: Path, upstream: Engine, who: str) -> None:
    """Longer than the bound, as when somebody looks at it in a debugger, or a machine sleeps."""
    with serving(tmp_path, upstream, BOUND_S) as service, callers(service) as by_worker:
        first = pids(service)
        processes = [service.process.pid]
        if who == "all":
            processes += [parent_of(first[1]), *first.values()]
        with stopped(*processes):
            time.sleep(1.5 * BOUND_S)
        goes_on_until = time.monotonic() + 1.5 * BOUND_S  # whom it suspected it would have ended by then
        while time.monotonic() < goes_on_until:
            for client in by_worker.values():
                assert client.post(CHAT, json=prompt()).status_code == 200
        assert pids(service) == first
        assert not hung(service)
        assert not ended(service)


def test_a_log_that_nobody_reads_for_a_while_ends_nobody(tmp_path: Path, upstream: Engine) -> None:
    """All wait until they can write a line, the parent to say that its workers are late. Once it is read, all go on."""
    log = tmp_path / "home" / "stderr.txt"
    log.parent.mkdir(mode=0o700)
    with (
        reading(log) as (may_read, lines),
        serving(tmp_path, upstream, BOUND_S) as service,
        busy(service, 8) as askers,
    ):
        may_read.clear()
        until(lambda: is_at_a_standstill(askers))
        before = len(answers(askers))
        time.sleep(1.5 * BOUND_S)
        assert len(answers(askers)) == before
        may_read.set()
        until(lambda: len(answers(askers)) > before + 40)
        assert not any(asker.cuts for asker in askers)
    events = {json.loads(line)["event"] for line in lines if line.startswith(b"{")}
    assert "worker.late" in events
    assert "worker.hung" not in events


@contextmanager
def reading(log: Path) -> Iterator[tuple[threading.Event, list[bytes]]]:
    """A log that is read while the event is set, as it is at first, and otherwise takes what a pipe holds.

    All its lines are there when the block has ended.
    """
    may_read, lines = threading.Event(), list[bytes]()
    may_read.set()

    def read() -> None:
        for line in iter(pipe.readline, END):
            lines.append(line)
            may_read.wait()

    os.mkfifo(log)
    with open(os.open(log, os.O_RDWR), "rb") as pipe:  # open for writing too, so that it has no end
        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield may_read, lines
        finally:
            may_read.set()
            os.write(pipe.fileno(), END)
            reader.join()


def is_at_a_standstill(askers: list[Asker]) -> bool:
    before = len(answers(askers))
    time.sleep(1)
    return len(answers(askers)) == before


def test_a_worker_that_does_not_turn_holds_up_no_drain(tmp_path: Path, upstream: Engine) -> None:
    """The others have all the time that there is for their answers; the service ends with the last of them."""
    with serving(tmp_path, upstream, SHORT_S, drain_s=3600) as service, callers(service) as by_worker:
        upstream.go_on.clear()
        with ExitStack() as closing:
            stream = closing.enter_context(by_worker[2].stream("POST", CHAT, json=prompt(stream=True)))
            parts = stream.iter_raw()
            received = next(parts)
            closing.enter_context(stopped(pids(service)[1]))
            service.process.send_signal(signal.SIGTERM)
            until(lambda: ended(service) == [(1, -signal.SIGKILL)])
            upstream.go_on.set()
            assert (received + b"".join(parts)).endswith(DONE)
        assert service.process.wait(30) == 0
        assert hung(service) == [1]
