"""Write `docs/commands.md` from the program's own help; `--check` fails when the file is out of date instead."""

import os
import subprocess
import sys
from pathlib import Path

from rendering import keep_current

CONFIDE = Path(sys.executable).parent / "confide"
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
    plain = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}
    shown = subprocess.run([CONFIDE, *command, "--help"], capture_output=True, text=True, check=True, env=plain).stdout
    return "\n".join(line.rstrip() for line in shown.strip().splitlines())


def page() -> str:
    """The whole document."""
    parts = [f"\n## `confide {' '.join(command)}`\n\n```text\n{help_of(command)}\n```\n" for command in COMMANDS]
    return HEAD + "".join(parts)


if __name__ == "__main__":
    sys.exit(keep_current(PAGE, page()))
