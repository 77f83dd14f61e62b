"""What a bench shows: where it is on standard error, a table or JSON on standard output."""

import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version

import msgspec
from rich.console import Console
from rich.table import Table

from bench.figures import Figure, Skipped

WIDTH_PIPED = 160
LIBRARIES = ("uvicorn", "uvloop", "httptools", "msgspec")


def progress(line: str) -> None:
    """One line; on a terminal the next one takes its place."""
    end = "\r" if sys.stderr.isatty() else "\n"
    sys.stderr.write(("\x1b[2K" if end == "\r" else "") + line + end)
    sys.stderr.flush()


def machine() -> dict[str, object]:
    """What the figures depend on."""
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
        **{name: version(name) for name in LIBRARIES},
    }


def in_order(figures: Sequence[Figure]) -> list[Figure]:
    """Ratios first, then the other budgets, then the rest, each as measured."""
    return sorted(figures, key=lambda figure: figure.rank)


def show_table(figures: Sequence[Figure], skipped: Sequence[Skipped], began_on: dict[str, object]) -> None:
    """The table, in colour on a terminal."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH_PIPED, highlight=False)
    table = Table("what", "median", "min – max", "unit", "budget", "", title="Confide's budgets")
    for column in table.columns[1:3]:
        column.justify = "right"
    shown = in_order([figure for figure in figures if not figure.target])
    for number, figure in enumerate(shown):
        if number and figure.rank != shown[number - 1].rank:
            table.add_section()
        table.add_row(*cells(figure))
    console.print(table)
    if any(figure.target for figure in figures):
        console.print(side_by_side([figure for figure in figures if figure.target]))
    for each in skipped:
        console.print(f"skipped: {each.bench}: {each.reason}", markup=False)
    console.print("machine: " + ", ".join(f"{name} {value}" for name, value in began_on.items()), markup=False)


def side_by_side(figures: Sequence[Figure]) -> Table:
    """What was measured of several: a row for each figure, a column for each of them."""
    targets = list(dict.fromkeys(figure.target for figure in figures))
    table = Table("median", *targets, "unit", title="The same work, side by side")
    for column in table.columns[1:-1]:
        column.justify = "right"
    by_place = {(figure.name, figure.target): figure for figure in figures}
    for name, unit in dict.fromkeys((figure.name, figure.unit) for figure in figures):
        found = [by_place.get((name, target)) for target in targets]
        table.add_row(name, *("" if figure is None else short(figure.value) for figure in found), unit)
    return table


def cells(figure: Figure) -> tuple[str, ...]:
    """One row."""
    verdict = {None: "", True: "[green]met[/]", False: "[bold red]missed[/]"}[figure.is_met]
    spread = f"{short(figure.least)} – {short(figure.greatest)}"
    budget = "" if figure.budget is None else str(figure.budget)
    return (figure.name, short(figure.value), spread, figure.unit, budget, verdict)


def short(value: float) -> str:
    """Three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def show_json(figures: Sequence[Figure], skipped: Sequence[Skipped], began_on: dict[str, object]) -> None:
    """The same as one JSON object."""
    rows = [{**msgspec.to_builtins(figure), "is_met": figure.is_met} for figure in in_order(figures)]
    document = {"machine": began_on, "figures": rows, "skipped": msgspec.to_builtins(skipped)}
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
