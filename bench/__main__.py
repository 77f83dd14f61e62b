"""Measure the budgets: `python -m bench [--only overhead] [--quick] [--json]`.

It exits with 0 also when a budget is missed, with 1 when what was measured gave a wrong answer, with 2 where it cannot
run.
"""

import argparse
import importlib
import sys
from dataclasses import replace
from pathlib import Path

from bench import report
from bench.figures import FULL, QUICK, Figure, Size, Skipped
from bench.load import BenchFailed
from confide.errors import CannotTell

BENCHES = {
    "local": "bench.local",
    "overhead": "bench.overhead",
    "workers": "bench.workers",
    "open-streams": "bench.open_streams",
    "client": "bench.client",
    "imports": "bench.importing",
    "embedded": "bench.embedded",
    "vectors": "bench.vectors",
}
BY_NAME = {**BENCHES, "peers": "bench.peers", "million": "bench.million"}  # the last two only when asked for


def options(arguments: list[str]) -> argparse.Namespace:
    """What the command line asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the budgets of docs/performance.md.")
    parser.add_argument("--only", choices=BY_NAME, action="append", help="this one; may be given several times")
    parser.add_argument(
        "--million", dest="only", action="append_const", const="million", help="a million requests, watching memory"
    )
    parser.add_argument(
        "--within", type=float, default=3600.0, metavar="S", help="stop --million after so many seconds"
    )
    parser.add_argument("--quick", action="store_true", help="as little as shows that all works; no figure to quote")
    parser.add_argument("--rounds", type=int, help="so many rounds; the median is taken over them")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser.parse_args(arguments)


def measure(names: list[str], size: Size) -> tuple[list[Figure], list[Skipped]]:
    """The figures of each bench; skipped is what needs something that is not here."""
    figures: list[Figure] = []
    skipped: list[Skipped] = []
    for name in names:
        try:
            found = importlib.import_module(BY_NAME[name]).measure(size)
        except CannotTell as error:
            found = [Skipped(name, str(error))]
        figures += [each for each in found if isinstance(each, Figure)]
        skipped += [each for each in found if isinstance(each, Skipped)]
    return figures, skipped


def main() -> int:
    """The exit status."""
    asked = options(sys.argv[1:])
    if not Path("/proc/self/statm").exists():
        sys.stderr.write("bench: needs Linux: processes are pinned to cores and watched through /proc\n")
        return 2
    began_on = report.machine()
    try:
        size = replace(QUICK if asked.quick else FULL, within_s=asked.within)
        size = replace(size, rounds=asked.rounds or size.rounds)
        figures, skipped = measure(asked.only or list(BENCHES), size)
    except BenchFailed as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    show = report.show_json if asked.json else report.show_table
    show(figures, skipped, began_on)
    return 0


if __name__ == "__main__":
    sys.exit(main())
