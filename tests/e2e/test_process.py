"""The program as its operator sees it: signals, exit status, the ready line, and what it writes (architecture 5)."""

import itertools
import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from running import CONFIDE, Running, home_with_weights, running

pytestmark = pytest.mark.engine

DRAIN_S = 1
DONE = b"data: [DONE]\n\n"
HELLO = {"model": "confide/smollm2-135m", "messages": [{"role": "user", "content": "Say hello."}]}
NOT_YET = {"logit_bias": {"2": -100}, "stream": True}  # 2 is the token that ends SmolLM2's turn
CANARY = "zebra-4711-quokka"


@pytest.fixture
def home(engine_home: Path, tmp_path: Path) -> Path:
    return home_with_weights(tmp_path, engine_home)


@contextmanager
def streaming(service: Running, *, max_tokens: int) -> Iterator[Iterator[bytes]]:
    """The rest of a stream of exactly so many tokens, once its first bytes were here."""
    body = {**HELLO, **NOT_YET, "max_tokens": max_tokens}
    with httpx2.stream("POST", service.url + "/v1/chat/completions", json=body, timeout=60) as response:
        assert response.status_code == 200
        parts = response.iter_raw()
        yield itertools.chain([next(parts)], parts)


@pytest.mark.parametrize(
    "signals",
    [[signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]],
    ids=lambda signals: "+".join(number.name for number in signals),
)
def test_running_stream_ends_whole_after_a_signal(home: Path, signals: list[signal.Signals]) -> None:
    with running(home) as service:
        with streaming(service, max_tokens=40) as rest:
            for number in signals:
                service.process.send_signal(number)
            received = b"".join(rest)
        assert service.process.wait(10) == 0
    assert received.endswith(DONE)
    assert b'"finish_reason":"length"' in received
    assert b'"error"' not in received


def test_signals_that_keep_coming_do_not_spoil_the_exit(home: Path) -> None:
    with running(home) as service:
        until = time.monotonic() + 10
        while service.process.poll() is None and time.monotonic() < until:
            service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(1) == 0


def test_stream_that_outlasts_the_drain_window_ends_with_an_error_and_new_prompts_are_refused(home: Path) -> None:
    with (
        running(home, config=f"[server]\ndrain_s = {DRAIN_S}") as service,
        httpx2.Client(base_url=service.url) as other,
        streaming(service, max_tokens=3000) as rest,
    ):
        assert other.get("/health/ready").json() == {"status": "ready"}
        began = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        while other.get("/health/ready").json() != {"status": "draining"}:
            assert time.monotonic() < began + DRAIN_S
        refused = other.post("/v1/chat/completions", json=HELLO)
        received = b"".join(rest)
        assert DRAIN_S <= time.monotonic() - began < DRAIN_S + 5
        assert service.process.wait(10) == 0
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "service_unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    *_, tail, done, after = received.split(b"\n\n")
    assert (done, after) == (b"data: [DONE]", b"")
    error = json.loads(tail.removeprefix(b"data: "))["error"]
    assert (error["type"], error["code"], error["param"]) == ("service_unavailable", 503, None)


def test_output_is_the_ready_line_and_never_a_prompt_or_a_key(home: Path) -> None:
    environ = {"CONFIDE_HOME": str(home), "PATH": ""}
    made = subprocess.run([CONFIDE, "keys", "create", "canary"], env=environ, capture_output=True, check=True)
    token = made.stdout.decode().strip()
    with running(home) as service:
        for status in served_and_refused(service, token):
            assert status in (200, 400, 401, 404)
        assert service.terminate() == 0
    assert re.fullmatch(r"confide: ready on http://127\.0\.0\.1:\d+\n", service.stdout.read_text())
    written = {path: path.read_bytes() for path in home.glob("**/*") if path.is_file() and path.name != "confide.toml"}
    assert b'"outcome":"complete"' in written[service.stderr]
    for path, data in written.items():  # the state directory is the operator's to read, too
        for secret in (CANARY, token, token.removeprefix("cfd_")):
            assert secret.encode() not in data, path.name


def served_and_refused(service: Running, token: str) -> Iterator[int]:
    """The statuses of requests that carry the canary in each place where a client can put it."""
    told = {**HELLO, "messages": [{"role": "user", "content": f"Repeat: {CANARY}"}], "max_tokens": 8}
    refused = [{**told, "temperature": CANARY}, {**told, "model": CANARY}, {**told, CANARY: 1, "n": 0}, CANARY]
    for body in [told, {**told, "stream": True}, {**told, "user": CANARY, "metadata": {"k": CANARY}}, *refused]:
        for key in (token, CANARY):
            headers = {"Authorization": f"Bearer {key}", "X-Note": CANARY, "User-Agent": CANARY}
            yield httpx2.post(service.url + "/v1/chat/completions", json=body, headers=headers, timeout=60).status_code
    yield httpx2.get(f"{service.url}/v1/{CANARY}?note={CANARY}").status_code
    yield httpx2.get(f"{service.url}/v1/signature/{CANARY}?signing_algo={CANARY}").status_code


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="limits are read from Linux' /proc")
def test_a_crash_leaves_no_image_of_keys_and_prompts_and_the_banner_says_what_is_bound(home: Path) -> None:
    with running(home) as service:
        limits = Path(f"/proc/{service.process.pid}/limits").read_text()
        banner = service.stderr.read_text()
    assert re.search(r"Max core file size +[01] +[01] ", limits)
    assert re.search(r"keyset +sha256:[0-9a-f]{64}", banner)
    assert 'unbound: no TLS key in the keyset; [server] tls = "attested" makes one' in banner
