"""The documents of this repository, `docs/*.md`, as they ship: found, indexed, and read when they are asked for."""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parent.parent.parent
SHIPPED, IN_A_CHECKOUT = PACKAGE / "docs", PACKAGE.parent.parent / "docs"
DECISIONS = "adr/"
HEADING = re.compile(r"^# (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
SENTENCE = re.compile(r"[.:]\Z|\.(?=\s)")
NOT_PROSE = "#|-<!:1"  # what tables, lists and the like begin with
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


class Document(NamedTuple):
    """`name`: as it is asked for below `/docs/`. `about`: its first sentence."""

    name: str
    title: str
    about: str
    path: Path

    def text(self) -> str:
        """All of it, Markdown."""
        return self.path.read_text("utf-8")


@cache
def documents() -> dict[str, Document]:
    """Those there are, by name. Empty in a package that was made without them."""
    found = SHIPPED if SHIPPED.is_dir() else IN_A_CHECKOUT
    paths = sorted(found.glob("*.md")) + sorted(found.glob("integrations/*.md")) + sorted(found.glob("adr/*.md"))
    return {document.name: document for document in (read(path, found) for path in paths)}


def read(path: Path, below: Path) -> Document:
    """Title and first sentence of a document."""
    text = path.read_text("utf-8")
    heading = HEADING.search(text)
    prose = FENCE.sub("", text[heading.end() :] if heading else text)
    paragraph = next((part for part in map(str.strip, prose.split("\n\n")) if part and part[0] not in NOT_PROSE), "")
    sentence = LINK.sub(r"\1", SENTENCE.split(" ".join(paragraph.split()))[0])
    title = heading[1] if heading else path.stem
    return Document(path.relative_to(below).as_posix(), title, sentence, path)


def decisions() -> str:
    """An index of the decisions, which the documents link as a directory."""
    lines = [
        f"- [{each.title}]({each.name.removeprefix(DECISIONS)})" for each in documents().values() if is_decision(each)
    ]
    return "# Decisions\n\n" + "\n".join(lines) + "\n"


def is_decision(document: Document) -> bool:
    return document.name.startswith(DECISIONS)
