"""The benchmarks measure what they say, on as few requests as show it. Nothing is said about time."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench.answers import MODEL
from bench.floor import Engines
from bench.peers import Peer
from bench.processes import Stage
from bench.proving import Asked, Proving

from confide.errors import CannotTell
from confide.protocol.receipt import RETURNED, parse_receipt

REPOSITORY = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the benchmarks need Linux")


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """`python -m bench` with small counts."""
    return subprocess.run(
        [sys.executable, "-m", "bench", "--quick", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def measured(*names: str, options: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The figures of these benches, in order."""
    run = bench("--json", *options, *(argument for name in names for argument in ("--only", name)))
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert document["skipped"] == []
    rows: list[dict[str, Any]] = document["figures"]
    return rows


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """One run of all that need no model."""
    return measured("imports", "client", "open-streams", "overhead", "local", "workers", "million")


@pytest.fixture(scope="module")
def figures(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same by name, with whose it is in brackets where the same was measured of several."""
    return {row["name"] + (f" [{row['target']}]" if row["target"] else ""): row for row in rows}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["buffered", "50-chunk stream"])
def test_service_and_floor_are_compared_in_the_same_run(figures: dict[str, dict[str, Any]], kind: str) -> None:
    ratio = figures[f"CPU a request, service / floor: {kind}, 32 connections"]

    assert ratio["budget"] == {"limit": 2.0, "at_least": False}
    assert ratio["is_met"] is (ratio["value"] <= 2.0)
    assert 0 < ratio["least"] <= ratio["value"] <= ratio["greatest"]
    assert figures[f"{kind}, 32 connections: floor, CPU"]["value"] > 0
    assert figures[f"{kind}, 1 connection: service, p99 latency"]["value"] > 0
    assert f"added median latency: {kind}, 1 connection" in figures


@pytest.mark.long
@pytest.mark.parametrize("kind", ["buffered", "50-chunk stream"])
def test_workers_are_compared_in_the_same_run(figures: dict[str, dict[str, Any]], kind: str) -> None:
    case = f"{kind}, 32 connections"
    for workers in ("1 worker", "2 workers"):
        assert figures[f"{case}: requests a second [{workers}]"]["value"] > 0
        assert figures[f"{case}: CPU [{workers}]"]["value"] > 0
        assert figures[f"{case}: CPU of load and engine [{workers}]"]["value"] > 0
    assert figures[f"CPU a request, 2 workers / 1: {case}"]["value"] > 0


@pytest.mark.long
@pytest.mark.parametrize("kind", ["buffered", "50-chunk stream", "1,000-chunk stream"])
@pytest.mark.parametrize("connections", ["1 connection", "32 connections"])
def test_an_upstream_is_measured_against_both_floors(
    figures: dict[str, dict[str, Any]], kind: str, connections: str
) -> None:
    case = f"{kind}, {connections}"
    raw = figures[f"local, CPU a request, Confide / raw relay: {case}"]
    proving = figures[f"local, CPU a request, Confide / relay that proves: {case}"]

    is_budgeted = kind != "1,000-chunk stream" and connections == "32 connections"
    assert raw["budget"] == ({"limit": 2.0, "at_least": False} if is_budgeted else None)
    assert proving["budget"] is None
    assert min(raw["value"], proving["value"]) > 0
    for target in ("raw relay", "relay that proves", "Confide"):
        assert figures[f"{case}: CPU [{target}]"]["value"] > 0
        assert figures[f"{case}: median latency [{target}]"]["unit"] == "ms"


@pytest.mark.long
def test_streams_through_an_upstream_all_end_with_the_same_bytes(figures: dict[str, dict[str, Any]]) -> None:
    assert figures["local, 20 open streams on one core: complete and byte-identical"]["value"] == 1.0
    assert figures["local, memory an open stream (20 open)"]["unit"] == "KiB"


@pytest.mark.long
def test_memory_is_reported_along_the_way_to_a_million(figures: dict[str, dict[str, Any]]) -> None:
    marks = [row for name, row in figures.items() if name.startswith("local, resident memory after ")]
    first, last = figures["local, resident memory after 100"], figures["local, resident memory after 1,000"]

    assert len(marks) == 11  # ten, and the ratio
    ratio = figures["local, resident memory after 1,000 requests / after 100"]
    assert ratio["value"] == pytest.approx(last["value"] / first["value"])


def test_a_million_stops_when_its_time_is_over() -> None:
    rows = measured("million", options=("--within", "0.001"))

    assert [row["name"] for row in rows if row["unit"] == "MiB"] != []
    assert not any("1,000" in row["name"] for row in rows)


def test_the_floor_that_proves_signs_what_a_receipt_is(tmp_path: Path) -> None:
    proving = Proving(Engines("unused"))
    proving._asked, proving._received, proving._returned = Asked(MODEL), "0" * 64, hashlib.sha256(b"answer")

    receipt = parse_receipt(proving._receipt(1, 1_750_000_000).encode())

    assert receipt.body_hash(RETURNED) == f"sha256:{hashlib.sha256(b'answer').hexdigest()}"
    proving.key.public_key().verify(bytes.fromhex(receipt.members.signature), receipt.signing_input)


def test_a_peer_that_cannot_be_installed_is_named_with_the_reason(tmp_path: Path) -> None:
    peer = Peer("Peer 1", lambda _: [["false"]], lambda *_: ["false"], {}, lambda _: (), scratch=tmp_path)

    with pytest.raises(CannotTell, match="false ended with status 1"):
        peer.install()
    with pytest.raises(CannotTell, match="false ended with status 1"):
        peer.install()  # a second time too: nothing was kept of the first


def test_a_peer_that_does_not_listen_is_named_with_what_it_said(tmp_path: Path) -> None:
    said = ["sh", "-c", "echo no such option; exit 3"]
    peer = Peer("Peer 1", lambda _: [["true"]], lambda *_: said, {}, lambda _: (), scratch=tmp_path)
    peer.install()

    with pytest.raises(CannotTell, match=r"status 3.*no such option"), peer.serve(Stage(tmp_path, "unused", 1, 1)):
        pytest.fail("it was served")


@pytest.mark.long
def test_ratios_come_first_and_what_has_no_budget_last(rows: list[dict[str, Any]]) -> None:
    ranks = [0 if row["unit"] == "×" else 2 if row["budget"] is None else 1 for row in rows]

    assert ranks == sorted(ranks)
    assert set(ranks) == {0, 1, 2}


@pytest.mark.long
def test_open_streams_all_end_with_the_same_bytes(figures: dict[str, dict[str, Any]]) -> None:
    assert figures["20 open streams on one core: complete and byte-identical"]["value"] == 1.0
    assert figures["memory an open stream (20 open)"]["unit"] == "KiB"


@pytest.mark.long
def test_the_verifying_client_is_compared_with_the_plain_sdk(figures: dict[str, dict[str, Any]]) -> None:
    assert figures["buffered call of the SDK, confide.Client / plain client"]["value"] > 1
    bundle = figures["bundle checked offline (report, quote, receipt)"]
    assert bundle["budget"] == {"limit": 10, "at_least": False}
    assert bundle["is_met"] is (bundle["value"] <= 10)


def test_the_table_says_which_budgets_were_met_and_on_what_machine() -> None:
    run = bench("--only", "imports")

    assert run.returncode == 0
    row = next(line for line in run.stdout.splitlines() if "import confide " in line)
    assert "≤ 150" in row
    assert "met" in row or "missed" in row
    assert "uvloop" in run.stdout.splitlines()[-1]
    assert "Traceback" not in run.stderr


def test_a_bench_that_does_not_exist_is_refused_with_those_that_do() -> None:
    run = bench("--only", "everything")

    assert run.returncode == 2
    assert "overhead" in run.stderr


@pytest.mark.long
@pytest.mark.engine
def test_embedded_model_writes_the_same_through_the_service_as_alone(engine_home: Path) -> None:
    ratio, *speeds = measured("embedded")

    assert ratio["name"] == "embedded model, tokens/s: service / engine alone"
    assert ratio["budget"] == {"limit": 0.97, "at_least": True}
    assert all(speed["value"] > 0 for speed in speeds)


@pytest.mark.long
@pytest.mark.engine
def test_embedded_vectors_are_the_same_through_the_service_as_alone(engine_home: Path) -> None:
    rows = measured("vectors")

    ratios = [row for row in rows if row["unit"] == "×"]
    assert [row["budget"] for row in ratios] == [{"limit": 0.97, "at_least": True}] * 2
    assert all(row["value"] > 0 for row in rows)
