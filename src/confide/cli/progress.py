"""How a transfer looks to a person: bars on a terminal, a line every tenth where the output is kept."""

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from confide.engine.progress import Progress, Step

LABELS: dict[Step, str] = {
    "wait": "another process works on these weights; waiting for it",
    "download": "downloading",
    "extract": "unpacking",
    "convert": "converting",
    "check": "checking SHA-256",
}


@contextlib.contextmanager
def reporting() -> Iterator[Progress]:
    """A Progress that writes to standard error, and cleans up behind itself."""
    if not sys.stderr.isatty():
        yield TenthLines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        yield BarLines(bars)


class TenthLines:
    """`downloading: 30 % of 93 MB`, once for each tenth; the quick steps only say that they begin."""

    def __init__(self) -> None:
        self._shown: tuple[Step, int] | None = None

    def __call__(self, step: Step, done_bytes: int, total_bytes: int) -> None:
        tenths = done_bytes * 10 // total_bytes if total_bytes and step == "download" else 0
        if self._shown == (step, tenths):
            return
        self._shown = (step, tenths)
        share = f": {tenths * 10} % of {megabytes(total_bytes)}" if step == "download" else ""
        print(f"{LABELS[step]}{share}", file=sys.stderr, flush=True)


class BarLines:
    """One bar for each step."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[Step, TaskID] = {}

    def __call__(self, step: Step, done_bytes: int, total_bytes: int) -> None:
        if step not in self._tasks:
            self._tasks[step] = self._bars.add_task(LABELS[step], total=total_bytes or None)
        self._bars.update(self._tasks[step], completed=done_bytes, total=total_bytes or None)


def megabytes(size_bytes: int) -> str:
    """Decimal, as disks and indexes count."""
    return f"{size_bytes / 1e6:.0f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"
