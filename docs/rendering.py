"""What the scripts share that make a page from the program: they write it, or say that it is out of date."""

import sys
from pathlib import Path


def keep_current(page: Path, rendered: str) -> int:
    """Write the page; with `--check` compare instead. The exit status: 1 for a page that is out of date, else 0."""
    if "--check" not in sys.argv:
        page.write_text(rendered)
        return 0
    if page.read_text() == rendered:
        return 0
    print(f"docs/{page.name} is out of date; run `.venv/bin/python docs/{Path(sys.argv[0]).name}`")
    return 1
