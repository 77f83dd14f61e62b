"""The documents are true: links resolve, settings are all described with their defaults, commands exist."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from confide.config import Config

REPOSITORY = Path(__file__).parent.parent.parent
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)")
CONFIDE = Path(sys.executable).parent / "confide"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_to_a_file_resolves(document: Path) -> None:
    targets = [target for target in LINK.findall(document.read_text()) if "://" not in target]
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("section", [field.name for field in msgspec.structs.fields(Config)])
def test_every_setting_is_described_with_its_default(section: str) -> None:
    text = (REPOSITORY / "docs" / "configuration.md").read_text()
    heading = f"## `[[{section}]]`" if section == "model" else f"## `[{section}]`"
    table = text.partition(heading)[2].partition("\n## ")[0]
    described = dict(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*?) \|", table, re.MULTILINE))
    rows = {name: default for names, default in described.items() for name in re.findall(r"`(\w+)`", names)}
    default_type = Config().model[0] if section == "model" else getattr(Config(), section)
    fields = {field.name: field for field in msgspec.structs.fields(type(default_type))}
    assert set(rows) == set(fields)
    for name, field in fields.items():
        literal = re.fullmatch(r"`([^`]+)`", rows[name])
        if literal and field.default is not msgspec.NODEFAULT:
            value = tomllib.loads(f"v = {literal[1]}")["v"]
            assert msgspec.convert(value, field.type) == field.default, name


def test_the_readme_shows_commands_that_exist() -> None:
    text = "".join(document.read_text() for document in DOCUMENTS)
    offered = subprocess.run([CONFIDE, "--help"], capture_output=True, text=True, check=True).stdout
    for command in sorted(set(re.findall(r"`?(?:\.venv/bin/)?confide (serve|ask|keys|models|doctor|\w+) ", text))):
        if command in ("refuses", "needs", "server", "is"):
            continue
        assert command in offered, command


def test_the_makefile_has_the_targets_that_the_documents_name() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    named = {name for document in DOCUMENTS for name in re.findall(r"`make (\w+)", document.read_text())}
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
