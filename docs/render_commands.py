"""Write `docs/commands.md` from the program's own help; `--check` fails when the file is out of date instead."""

import contextlib
import io
import os
import sys
from pathlib import Path

from rendering import keep_current

os.environ |= {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}  # read as it is imported

from confide.cli.main import app

PAGE = Path(__file__).parent / "commands.md"
COMMANDS = (
    ("serve",),
    ("ask",),
    ("verify",),
    ("audit",),
    ("proxy",),
    ("doctor",),
    ("evidence", "inspect"),
    ("evidence", "verify"),
    ("evidence", "fetch"),
    ("simulate", "dstack"),
    ("simulate", "tsm"),
    ("simulate", "pccs"),
    ("simulate", "quote"),
    ("simulate", "snp"),
    ("simulate", "gpu"),
    ("keys", "create"),
    ("keys", "list"),
    ("keys", "revoke"),
    ("tls", "csr"),
    ("models", "list"),
    ("models", "pull"),
    ("models", "add"),
    ("models", "remove"),
)
HEAD = """# Commands

Exit status: 0 verified or done; 1 not verified, or a check failed; 2 wrong usage, or start refused; 3 could not find
out (network, missing collateral); 130 on Ctrl-C, 141 where the reader of the output went away.

This page is made by `docs/render_commands.py`; `make docs` compares it with the program.
"""


def help_of(command: tuple[str, ...]) -> str:
    """What `confide COMMAND --help` prints on a terminal of 100 columns, without colour."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        app([*command, "--help"], prog_name="confide")
    return "\n".join(line.rstrip() for line in shown.getvalue().strip().splitlines())


def page() -> str:
    """The whole document."""
    parts = [f"\n## `confide {' '.join(command)}`\n\n```text\n{help_of(command)}\n```\n" for command in COMMANDS]
    return HEAD + "".join(parts)


if __name__ == "__main__":
    sys.exit(keep_current(PAGE, page()))
