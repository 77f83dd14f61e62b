"""What the verifying client costs: a call of the official SDK through it and without it, and a bundle checked again."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import httpx2
from openai import OpenAI

import confide
from bench.answers import MODEL, SHORT, question
from bench.figures import Budget, Figure, Size
from bench.load import BenchFailed
from bench.processes import Target, stage
from bench.report import progress

BUNDLE_MS = Budget(10)
BUNDLES = 50
WARM_UP = 8


def measure(size: Size) -> list[Figure]:
    """Both over plain HTTP on loopback, taken in turns; the proof's receipt is a second request on every call."""
    with stage() as scripted, scripted.service() as target:
        assert target.home is not None
        policy = confide.Policy(trust_roots=(target.home / "simulator" / "root.pem",), require_channel=False)
        plain, proven = sdk(target, httpx2.Client()), sdk(target, confide.Client(policy))
        plain_ms, proven_ms = [], []
        for number in range(size.rounds):
            progress(f"client: round {number + 1} of {size.rounds}")
            plain_ms.append(call_ms(lambda: ask(plain), size.requests // 8))
            proven_ms.append(call_ms(lambda: ask(proven), size.requests // 8))
        written = confide.proof(ask(proven)).bundle(target.home / "answer.json")
        plain.close()
        proven.close()
        audits_ms = [audit_ms(written, policy) for _ in range(size.rounds)]
    pairs = list(zip(plain_ms, proven_ms, strict=True))
    return [
        Figure.of(
            "buffered call of the SDK, confide.Client / plain client", [mine / bare for bare, mine in pairs], "×"
        ),
        Figure.of("buffered call of the SDK: added by confide.Client", [mine - bare for bare, mine in pairs], "ms"),
        Figure.of("buffered call of the SDK: plain client", plain_ms, "ms"),
        Figure.of("bundle checked offline (report, quote, receipt)", audits_ms, "ms", BUNDLE_MS),
    ]


def sdk(target: Target, http_client: httpx2.Client) -> OpenAI:
    """The official SDK on this client; it retries nothing."""
    assert target.key is not None
    url = f"http://127.0.0.1:{target.address}/v1"
    return OpenAI(base_url=url, api_key=target.key, http_client=http_client, max_retries=0)


def ask(client: OpenAI) -> str:
    """One buffered call; the answer's id."""
    asked = json.loads(question(SHORT, stream=False))
    return client.chat.completions.create(model=MODEL, messages=asked["messages"]).id


def call_ms(call: Callable[[], str], count: int) -> float:
    """Median of so many calls."""
    times = []
    for number in range(WARM_UP + count):
        began = time.perf_counter()
        call()
        if number >= WARM_UP:
            times.append((time.perf_counter() - began) * 1e3)
    return median(times)


def audit_ms(path: Path, policy: confide.Policy) -> float:
    """Mean over the whole check, the file read anew each time. Raises BenchFailed where it does not hold."""
    began = time.perf_counter()
    for _ in range(BUNDLES):
        if not confide.verify_bundle(path, policy).ok:
            raise BenchFailed("a bundle of this very service does not verify")
    return (time.perf_counter() - began) * 1e3 / BUNDLES
