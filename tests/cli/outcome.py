"""Run a command in this process, and look at how it ended."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from confide.cli.main import app
from confide.errors import ConfideError, VerificationError

SIMULATED = "SIMULATED TEE: no hardware protection"


@dataclass
class Outcome:
    """How the command ended."""

    status: int
    stdout: str
    error: ConfideError | None

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.stdout)
        return document

    @property
    def names(self) -> list[str]:
        """The checks of the table, in order."""
        start = next(number for number, line in enumerate(self.lines) if line.split()[:2] == ["check", "status"])
        return [line.split()[0] for line in self.lines[start + 1 : self.lines.index("", start)]]

    @property
    def check(self) -> str | None:
        """The check that the error names."""
        return self.error.check if isinstance(self.error, VerificationError) else None

    @property
    def remedy(self) -> str:
        return "" if self.error is None else self.error.remedy or ""

    def status_of(self, check: str) -> str:
        return next(line.split()[1] for line in self.lines if line.split()[:1] == [check])


async def run(*command: str, home: Path, **variables: str) -> Outcome:
    """The command in this process; what it raises is what `main` turns into words and an exit status."""
    environ = {"CONFIDE_HOME": str(home), "CONFIDE_API_KEY": None, **variables}
    result = await asyncio.to_thread(CliRunner().invoke, app, list(command), env=environ)
    if result.exception is None or isinstance(result.exception, SystemExit):
        return Outcome(result.exit_code, result.stdout, None)
    assert isinstance(result.exception, ConfideError), result.exception
    return Outcome(result.exception.exit_status, result.stdout, result.exception)
