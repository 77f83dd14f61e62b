"""Measure the budgets: `python -m bench [--only overhead] [--quick] [--json]`.

It exits with 0 also when a budget is missed, with 1 when what was measured gave a wrong answer, with 2 where it cannot
run.
"""

import argparse
import importlib
import sys
from pathlib import Path

from bench import report
from bench.figures import FULL, QUICK, Figure, Size, Skipped
from bench.load import BenchFailed
from confide.errors import CannotTell

BENCHES = {
    "overhead": "bench.overhead",
    "open-streams": "bench.open_streams",
    "client": "bench.client",
    "imports": "bench.importing",
    "embedded": "bench.embedded",
}


def options(arguments: list[str]) -> argparse.Namespace:
    """What the command line asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the budgets of docs/performance.md.")
    parser.add_argument("--only", choices=BENCHES, action="append", help="this one; may be given several times")
    parser.add_argument("--quick", action="store_true", help="as little as shows that all works; no figure to quote")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser.parse_args(arguments)


def measure(names: list[str], size: Size) -> tuple[list[Figure], list[Skipped]]:
    """The figures of each bench; skipped is what needs something that is not here."""
    figures: list[Figure] = []
    skipped: list[Skipped] = []
    for name in names:
        try:
            figures += importlib.import_module(BENCHES[name]).measure(size)
        except CannotTell as error:
            skipped.append(Skipped(name, str(error)))
    return figures, skipped


def main() -> int:
    """The exit status."""
    asked = options(sys.argv[1:])
    if not Path("/proc/self/statm").exists():
        sys.stderr.write("bench: needs Linux: processes are pinned to cores and watched through /proc\n")
        return 2
    began_on = report.machine()
    try:
        figures, skipped = measure(asked.only or list(BENCHES), QUICK if asked.quick else FULL)
    except BenchFailed as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    show = report.show_json if asked.json else report.show_table
    show(figures, skipped, began_on)
    return 0


if __name__ == "__main__":
    sys.exit(main())
