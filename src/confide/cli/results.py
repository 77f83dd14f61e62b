"""How a verification is shown: to a person as a table with a verdict, to a program as one JSON object.

Whatever rests on a simulated root says so in its last line.
"""

import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from confide.evidence.result import Check, Status, Verdict, Verification

SIMULATED = "SIMULATED TEE: no hardware protection"
STYLES = {Status.PASS: "green", Status.FAIL: "bold red", Status.SKIP: "yellow"}
VERDICT_STYLES = {Verdict.VERIFIED: "bold green", Verdict.PARTIAL: "bold yellow", Verdict.NOT_VERIFIED: "bold red"}


def show(
    result: Verification, *, pinned: Iterable[Path] = (), bundle: Path | None = None, stderr: bool = False
) -> None:
    """The checks, what they stand on, and the verdict. `pinned`: roots of simulators that the caller named.

    `bundle`: where the proof was written. Plain and one line a check where it is no terminal.
    """
    show_anything()
    console = Console(highlight=False, soft_wrap=True, stderr=stderr)
    if console.is_terminal:
        console.print(table(result.checks), soft_wrap=False)
    else:
        console.print(Text("\n".join(lines(result.checks))))
    console.print()
    for path in pinned:
        console.print(Text(f"pinned: {path}, the root of a simulator"))
    for anchor in result.anchors:
        simulated = " (SIMULATED)" if anchor.simulated else ""
        console.print(Text(f"anchor: {anchor.name}{simulated}, sha256 {anchor.sha256}"))
    if bundle is not None:
        console.print(Text(f"bundle: {bundle}"))
    if result.ok and result.verdict is Verdict.PARTIAL:
        console.print(Text(f"not shown, and accepted by the policy: {', '.join(not_shown(result))}"))
    console.print(Text(verdict_line(result), style=VERDICT_STYLES[result.verdict]))
    if result.simulated:
        console.print(Text(SIMULATED, style="bold yellow"))


def show_anything() -> None:
    """What the terminal's encoding lacks becomes a question mark: an answer may hold it, or a certificate's name."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def table(checks: tuple[Check, ...]) -> Table:
    """For a terminal: reasons are wrapped in their column."""
    drawn = Table("check", "status", "reason", box=None, header_style="bold")
    drawn.columns[0].no_wrap = drawn.columns[1].no_wrap = True
    drawn.columns[2].overflow = "fold"  # a digest that is cut off is of no use
    for check in checks:
        drawn.add_row(Text(check.name), Text(check.status.value, style=STYLES[check.status]), Text(check.reason))
    return drawn


def lines(checks: tuple[Check, ...]) -> Iterable[str]:
    """For grep: a line a check, however long its reason."""
    width = max((len(check.name) for check in checks), default=0)
    yield f"{'check':{width}}  status  reason"
    for check in checks:
        yield f"{check.name:{width}}  {check.status.value:6}  {check.reason}"


def not_shown(result: Verification) -> list[str]:
    """What VERIFIED would promise besides."""
    return sorted(name for name in result.desired if not result.has_passed({name}))


def verdict_line(result: Verification) -> str:
    """The verdict, and whose root it rests on when that is a simulated one."""
    verdict = result.verdict.value
    simulated = [anchor.name for anchor in result.anchors if anchor.simulated]
    return f"{verdict} (SIMULATED ROOT {', '.join(simulated)})" if simulated else verdict


def document(result: Verification) -> dict[str, Any]:
    """The result as JSON. `now`: Unix seconds, as of which was checked."""
    return {
        "verdict": result.verdict.value,
        "ok": result.ok,
        "simulated": result.simulated,
        "now": result.now,
        "checks": msgspec.to_builtins(result.checks),
        "anchors": msgspec.to_builtins(result.anchors),
        "facts": msgspec.to_builtins(result.facts),
    }


def print_json(members: dict[str, Any]) -> None:
    """One JSON object on one line."""
    print(msgspec.json.encode(members).decode())
