"""The benchmarks measure what they say, on as few requests as show it. Nothing is said about time."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the benchmarks need Linux")


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """`python -m bench` with small counts."""
    return subprocess.run(
        [sys.executable, "-m", "bench", "--quick", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def measured(*names: str) -> list[dict[str, Any]]:
    """The figures of these benches, in order."""
    run = bench("--json", *(argument for name in names for argument in ("--only", name)))
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert document["skipped"] == []
    rows: list[dict[str, Any]] = document["figures"]
    return rows


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """One run of all that need no model."""
    return measured("imports", "client", "open-streams", "overhead")


@pytest.fixture(scope="module")
def figures(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same by name."""
    return {row["name"]: row for row in rows}


@pytest.mark.parametrize("kind", ["buffered", "50-chunk stream"])
def test_service_and_floor_are_compared_in_the_same_run(figures: dict[str, dict[str, Any]], kind: str) -> None:
    ratio = figures[f"CPU a request, service / floor: {kind}, 32 connections"]

    assert ratio["budget"] == {"limit": 2.0, "at_least": False}
    assert ratio["is_met"] is (ratio["value"] <= 2.0)
    assert 0 < ratio["least"] <= ratio["value"] <= ratio["greatest"]
    assert figures[f"{kind}, 32 connections: floor, CPU"]["value"] > 0
    assert figures[f"{kind}, 1 connection: service, p99 latency"]["value"] > 0
    assert f"added median latency: {kind}, 1 connection" in figures


def test_ratios_come_first_and_what_has_no_budget_last(rows: list[dict[str, Any]]) -> None:
    ranks = [2 if row["budget"] is None else 0 if row["unit"] == "×" else 1 for row in rows]

    assert ranks == sorted(ranks)
    assert set(ranks) == {0, 1, 2}


def test_open_streams_all_end_with_the_same_bytes(figures: dict[str, dict[str, Any]]) -> None:
    assert figures["20 open streams on one core: complete and byte-identical"]["value"] == 1.0
    assert figures["memory an open stream (20 open)"]["unit"] == "KiB"


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


@pytest.mark.engine
def test_embedded_model_writes_the_same_through_the_service_as_alone(engine_home: Path) -> None:
    ratio, *speeds = measured("embedded")

    assert ratio["name"] == "embedded model, tokens/s: service / engine alone"
    assert ratio["budget"] == {"limit": 0.97, "at_least": True}
    assert all(speed["value"] > 0 for speed in speeds)
