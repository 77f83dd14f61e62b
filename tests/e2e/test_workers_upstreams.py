"""Workers in front of an attested upstream: one verification for all, and a session is the same at each of them."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from crew import CHAT, LOCAL, Engine, callers, engine, log_lines, prompt, until
from running import Running, running

ATTESTED = 'tls = "attested"'
AGGREGATOR = """
[server]
workers = 2
[[upstream]]
name = "second"
kind = "aci"
base_url = "{url}/v1"
trust_roots = [{roots}]
[[model]]
id = "worked/model"
upstream = "second"
"""


@pytest.fixture
def upstream() -> Iterator[Engine]:
    with engine() as found:
        yield found


class Attested:
    """A service with an attested TLS key that can be started, and be another's at the same address."""

    def __init__(self, base: Path, upstream: Engine, name: str) -> None:
        self.home = base / name
        self.home.mkdir(mode=0o700)
        self._config = LOCAL.format(workers=1, server=ATTESTED, rest="", port=upstream.port)

    def running(self, *arguments: str) -> Any:
        """It, started."""
        return running(self.home, *arguments, config=self._config)

    @property
    def root(self) -> str:
        return f'"{self.home / "simulator" / "root.pem"}"'


def aggregating(base: Path, inner: Running, *roots: str) -> Any:
    home = base / "outer"
    home.mkdir(mode=0o700)
    return running(home, config=AGGREGATOR.format(url=inner.url, roots=", ".join(roots)))


def session_at(client: httpx2.Client) -> str:
    """The id of the one session that this worker sends prompts in."""
    [listed] = client.get("/v1/aci/sessions").json()["sessions"]
    return str(listed["session_id"])


def pinned(session_id: str) -> dict[str, Any]:
    return prompt(provider={"aci_session_ids": [session_id]})


def test_a_session_that_one_worker_lists_is_accepted_by_another(tmp_path: Path, upstream: Engine) -> None:
    service = Attested(tmp_path, upstream, "inner")
    with service.running() as inner, aggregating(tmp_path, inner, service.root) as outer, callers(outer) as by_worker:
        sessions = {session_at(client) for client in by_worker.values()}
        assert len(sessions) == 1
        [session_id] = sessions
        assert [line["session"] for line in log_lines(outer) if line["event"] == "upstream"] == [session_id]
        for client in by_worker.values():
            answer = client.post(CHAT, json=pinned(session_id))
            assert answer.status_code == 200
            receipt = client.get(f"/v1/aci/receipts/{answer.headers['x-receipt-id']}").json()
            cited = [event["session_id"] for event in receipt["event_log"] if event["type"] == "upstream.verified"]
            assert cited == [session_id]
            assert client.get(f"/v1/aci/sessions/{session_id}").status_code == 200
            refused = client.post(CHAT, json=pinned("0" * 64))
            assert (refused.status_code, refused.json()["error"]["type"]) == (412, "session_not_accepted")


def test_a_key_that_one_worker_finds_wrong_is_wrong_for_all(tmp_path: Path, upstream: Engine) -> None:
    """The upstream comes back with another key, which it can prove. One worker meets it; both get the new session."""
    first, second = Attested(tmp_path, upstream, "first"), Attested(tmp_path, upstream, "second")
    with second.running():
        pass  # it has its root from now on
    with ExitStack() as closing:
        before = closing.enter_context(first.running())
        port = before.url.rsplit(":", 1)[1]
        outer = closing.enter_context(aggregating(tmp_path, before, first.root, second.root))
        by_worker = closing.enter_context(callers(outer))
        old = session_at(by_worker[1])
        assert before.terminate() == 0
        closing.enter_context(second.running("--port", port))
        answer = until(lambda: asked_again(by_worker[1]), "the first worker found the new key")
        receipt = by_worker[2].get(f"/v1/aci/receipts/{answer.headers['x-receipt-id']}").json()
        [new] = [event["session_id"] for event in receipt["event_log"] if event["type"] == "upstream.verified"]
        assert new != old
        assert by_worker[2].post(CHAT, json=pinned(new)).status_code == 200
        refused = by_worker[2].post(CHAT, json=pinned(old))
        assert refused.status_code == 412
        assert [session_at(client) for client in by_worker.values()] == [new, new]


def asked_again(client: httpx2.Client) -> httpx2.Response | None:
    answer = client.post(CHAT, json=prompt())
    return answer if answer.status_code == 200 else None


def test_a_reload_brings_a_worker_an_upstream_that_it_verifies_with_the_others(
    tmp_path: Path, upstream: Engine
) -> None:
    first, second = Attested(tmp_path, upstream, "first"), Attested(tmp_path, upstream, "second")
    with (
        first.running() as one,
        second.running() as other,
        aggregating(tmp_path, one, first.root) as outer,
        callers(outer) as by_worker,
    ):
        old = session_at(by_worker[1])
        file = outer.home / "confide.toml"
        text = file.read_text()
        file.write_text(text.replace(one.url, other.url).replace(first.root, second.root))
        outer.process.send_signal(signal.SIGHUP)
        until(lambda: any(line["event"] == "reload" for line in log_lines(outer)))
        for client in by_worker.values():
            assert client.post(CHAT, json=prompt()).status_code == 200
        sessions = {session_at(client) for client in by_worker.values()}
        assert len(sessions) == 1
        assert sessions != {old}
        # Each worker opens it anew for this, and the one who verifies does not.
        file.write_text(file.read_text().replace('kind = "aci"', 'kind = "aci"\nprobe = "none"'))
        outer.process.send_signal(signal.SIGHUP)
        until(lambda: sum(line["event"] == "reload" for line in log_lines(outer)) == 2)
        for client in by_worker.values():
            assert client.post(CHAT, json=prompt()).status_code == 200
        assert {session_at(client) for client in by_worker.values()} == sessions
