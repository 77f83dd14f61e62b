"""One engine for all workers: its slots and its queue are bounded over all of them, and all know whether it serves."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from crew import CHAT, callers, log_lines, pids, prompt, until
from e2e.engine_process import engines_of, needs_proc
from running import Running, home_with_weights, running

pytestmark = [pytest.mark.engine, needs_proc]

MODEL, VECTORS = "confide/smollm2-135m", "confide/all-minilm-l6-v2"
EMBEDDINGS, COUNT = "/v1/embeddings", "/v1/messages/count_tokens"
ONE_SLOT = """
[server]
workers = 2
worker_timeout_s = 10
[engine]
slots = 1
[limits]
queue = 1
queue_timeout_s = 60
"""
ENDLESS = {"model": MODEL, "logit_bias": {"2": -100}, "max_tokens": 3000, "stream": True}
SHORT = {"model": MODEL, "max_tokens": 2}


@pytest.fixture
def service(engine_home: Path, tmp_path: Path) -> Iterator[Running]:
    with running(home_with_weights(tmp_path, engine_home), config=ONE_SLOT) as service:
        yield service


@contextmanager
def streaming(client: httpx2.Client) -> Iterator[Iterator[bytes]]:
    """A stream without an end, once its first bytes are here."""
    with client.stream("POST", CHAT, json=prompt(**ENDLESS)) as response:
        assert response.status_code == 200
        parts = response.iter_raw()
        next(parts)
        yield parts


@contextmanager
def asking(client: httpx2.Client) -> Iterator["Future[httpx2.Response]"]:
    """A short question beside what follows."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(client.post, CHAT, json=prompt(**SHORT), timeout=60)


def refused_by(service: Running) -> set[int]:
    """Ask once, on a connection of its own; the workers that have turned somebody away since the start."""
    with contextlib.suppress(httpx2.ReadTimeout):  # there was room, and it leaves again
        httpx2.post(service.url + CHAT, json=prompt(**SHORT), timeout=0.5)
    return {line["worker"] for line in log_lines(service) if line.get("status") == 429}


def test_slots_and_queue_are_bounded_over_all_workers(service: Running) -> None:
    assert len(engines_of(service)) == 1
    with callers(service, model=MODEL) as by_worker:
        with streaming(by_worker[1]), asking(by_worker[2]) as waiting:
            until(lambda: refused_by(service) == {1, 2}, "each worker knows that slot and queue are full")
            assert not waiting.done()
            by_worker[1].close()
            assert waiting.result().status_code == 200
        with callers(service, model=MODEL) as again:
            for client in again.values():
                too_many = client.post(CHAT, json=prompt(**SHORT, n=3))
                assert (too_many.status_code, too_many.json()["error"]["param"]) == (400, "n")


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)])
def test_the_slot_of_a_worker_that_was_killed_or_hangs_is_free(service: Running, how: signal.Signals) -> None:
    with callers(service, model=MODEL) as by_worker, asking(by_worker[2]) as first:
        assert first.result().status_code == 200
        killed = pids(service)[1]
        with streaming(by_worker[1]) as parts:
            with asking(by_worker[2]) as waiting:
                time.sleep(0.3)
                assert not waiting.done()
                os.kill(killed, how)
                assert waiting.result().status_code == 200
            with pytest.raises(httpx2.RemoteProtocolError):
                b"".join(parts)
        until(lambda: pids(service)[1] != killed)
        with callers(service, model=MODEL):
            assert len(engines_of(service)) == 1


def test_every_worker_counts_tokens_and_they_take_turns(service: Running) -> None:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "hello world " * 2000}]}
    with callers(service, model=MODEL) as by_worker:
        answers = [client.post(COUNT, json=asked, timeout=60) for client in by_worker.values()]
        assert {answer.status_code for answer in answers} == {200}
        with ThreadPoolExecutor(12) as pool:
            posted = [pool.submit(httpx2.post, service.url + COUNT, json=asked, timeout=60) for _ in range(12)]
            flood = [future.result() for future in posted]
        assert 200 in {answer.status_code for answer in flood} <= {200, 429}  # the queue has one place
        assert len({answer.content for answer in [*answers, *flood] if answer.status_code == 200}) == 1
        again = [client.post(COUNT, json=asked, timeout=60).status_code for client in by_worker.values()]
        assert again == [200, 200]


def test_every_worker_knows_whether_the_engine_serves(service: Running) -> None:
    def states() -> list[str]:
        return [client.get("/health/ready").json()["status"] for client in by_worker.values()]

    with callers(service, model=MODEL) as by_worker:
        assert states() == ["ready", "ready"]
        [engine] = engines_of(service)
        os.kill(engine, signal.SIGKILL)
        until(lambda: states() == ["degraded", "degraded"])
        refused = by_worker[1].post(CHAT, json=prompt(**SHORT))
        if refused.status_code != 200:  # unless it was back already
            assert (refused.status_code, refused.json()["error"]["type"]) == (503, "service_unavailable")
        until(lambda: states() == ["ready", "ready"])
        for client in by_worker.values():
            assert client.post(CHAT, json=prompt(**SHORT)).status_code == 200


@pytest.mark.long
def test_vectors_are_the_same_at_every_worker_and_large_requests_let_others_through(service: Running) -> None:
    """Between two batches a request gives its slot to whoever waits, also one of another worker."""
    asked = {"model": VECTORS, "input": ["a sentence about trees"]}
    many = {
        "model": VECTORS,
        "input": [f"a sentence about trees, number {n}, and what grows on them" for n in range(400)],
    }
    with callers(service, model=MODEL) as by_worker:
        answers = [client.post(EMBEDDINGS, json=asked, timeout=60).json()["data"] for client in by_worker.values()]
        assert answers[0] == answers[1]
        with ThreadPoolExecutor(4) as pool:
            large = [pool.submit(httpx2.post, service.url + EMBEDDINGS, json=many, timeout=100) for _ in range(3)]
            small = [pool.submit(client.post, EMBEDDINGS, json=asked, timeout=100) for client in by_worker.values()]
            done = [future.result() for future in (*large, *small)]
        assert {answer.status_code for answer in done} <= {200, 429}  # the queue has one place
        assert 200 in {answer.status_code for answer in done[:3]}
        for client in by_worker.values():
            assert client.post(EMBEDDINGS, json=asked, timeout=60).status_code == 200
