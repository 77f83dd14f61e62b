"""The documents are true: links resolve, settings are all described with their defaults, commands exist."""

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx2
import msgspec
import pytest

from confide.config import Config, Model, Upstream
from running import home_with_weights, running

REPOSITORY = Path(__file__).parent.parent.parent
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)")
LISTS: dict[str, type[msgspec.Struct]] = {"model": Model, "upstream": Upstream}
CONFIDE = Path(sys.executable).parent / "confide"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_to_a_file_resolves(document: Path) -> None:
    targets = [target for target in LINK.findall(document.read_text()) if "://" not in target]
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("section", [field.name for field in msgspec.structs.fields(Config)])
def test_every_setting_is_described_with_its_default(section: str) -> None:
    text = (REPOSITORY / "docs" / "configuration.md").read_text()
    heading = f"## `[[{section}]]`" if section in LISTS else f"## `[{section}]`"
    table = text.partition(heading)[2].partition("\n## ")[0]
    described = dict(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*?) \|", table, re.MULTILINE))
    rows = {name: default for names, default in described.items() for name in re.findall(r"`(\w+)`", names)}
    described_type = LISTS.get(section) or type(getattr(Config(), section))
    fields = {field.name: field for field in msgspec.structs.fields(described_type)}
    assert set(rows) == set(fields)
    for name, field in fields.items():
        literal = re.fullmatch(r"`([^`]+)`", rows[name])
        if literal and field.default is not msgspec.NODEFAULT:
            value = tomllib.loads(f"v = {literal[1]}")["v"]
            assert msgspec.convert(value, field.type) == field.default, name


def test_every_command_that_the_documents_name_exists() -> None:
    text = "".join(document.read_text() for document in DOCUMENTS)
    named = set(re.findall(r"(?:`|\$ |^)(?:\.venv/bin/)?confide ([a-z]+)\b", text, re.MULTILINE))
    offered = subprocess.run([CONFIDE, "--help"], capture_output=True, text=True, check=True).stdout
    assert named
    assert [command for command in sorted(named) if f" {command} " not in offered] == []


def test_the_makefile_has_the_targets_that_the_documents_name() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    named = set(re.findall(r"(?:`|^|^\$ |=\w+ )make ([\w-]+)", text, re.MULTILINE))
    named |= {name for listed in re.findall(r"make ([\w-]+(?: \| [\w-]+)+)", text) for name in listed.split(" | ")}
    assert named >= {"serve", "test", "lint", "type", "coverage", "fuzz"}
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.engine
def test_the_readme_example_answers(engine_home: Path, tmp_path: Path) -> None:
    """The README's own curl line, run by a shell, against the real service; then its Python."""
    readme = (REPOSITORY / "README.md").read_text()
    curl = next(block for block in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL) if "chat/completions" in block)
    python = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert python is not None
    with running(home_with_weights(tmp_path, engine_home)) as service:
        there = "http://127.0.0.1:8080"
        answered = subprocess.run(
            ["sh", "-c", curl.replace(there, service.url)], capture_output=True, text=True, check=True
        )
        document = json.loads(answered.stdout)
        assert document["choices"][0]["message"]["content"]
        printed = subprocess.run(
            [sys.executable, "-c", python[1].replace(there, service.url)], capture_output=True, text=True, check=True
        )
        assert printed.stdout.strip()
        signature = httpx2.get(f"{service.url}/v1/signature/{document['id']}").json()
        assert signature["text"].endswith(hashlib.sha256(answered.stdout.encode()).hexdigest())


@pytest.mark.parametrize("script", ["render_commands.py", "render_api.py"])
def test_a_page_that_is_made_is_what_the_program_says(script: str) -> None:
    rendered = subprocess.run([sys.executable, REPOSITORY / "docs" / script, "--check"], capture_output=True, text=True)
    assert rendered.returncode == 0, rendered.stdout
