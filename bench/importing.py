"""How long imports take, each in a fresh interpreter that has started already."""

import subprocess
import sys

from bench.figures import Budget, Figure, Size
from bench.report import progress

MODULES = {"confide": Budget(150), "confide.client.http": None, "confide.gateway.service": None}
TIMED = "import time; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"


def measure(size: Size) -> list[Figure]:
    """The package itself, and the two rooms that bring the most with them."""
    progress("imports")
    return [
        Figure.of(f"import {module}", [import_ms(module) for _ in range(size.imports)], "ms", budget)
        for module, budget in MODULES.items()
    ]


def import_ms(module: str) -> float:
    """One import, in milliseconds."""
    command = [sys.executable, "-c", TIMED.format(module)]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout) * 1e3
