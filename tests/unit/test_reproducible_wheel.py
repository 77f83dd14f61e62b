"""The wheel is the same to the last bit wherever and whenever it is made, and holds nothing that strayed in.

Whoever audits a release makes it again and compares one SHA-256. So two builds differ here in all that must not matter:
directory, time, umask, time zone, locale, hash seed, the modes and times of the files, and what else lies about.
"""

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
PACKAGE = REPOSITORY / "src" / "confide"
SOURCE_DATE_EPOCH = "1577836800"
INPUTS = ("pyproject.toml", "README.md", "LICENSE", ".gitignore", "src", "docs")
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.egg-info")

# What ships beside the Python files. A file that is not here needs a line in pyproject.toml, and one here.
DOCUMENTS = {f"confide/{path.relative_to(REPOSITORY)}" for path in REPOSITORY.glob("docs/**/*.md")}
DATA = {"confide/py.typed", "confide/engine/hermes.jinja"} | DOCUMENTS
STRAYS = (
    "src/confide/__pycache__/config.cpython-311.pyc",
    "src/confide/config.py.orig",
    "src/confide/.config.py.swp",
    "src/confide/.env",
    "src/confide/engine/model.gguf",
    "src/confide/simulator/seed",
    "src/notes.txt",
    "docs/notes.txt",
    "docs/drafts/page.md",
    "docs/verify.md.orig",
    "tests/test_stray.py",
    "confide.toml",
    "confide.db",
    "dist/old.whl",
)


@dataclass(frozen=True)
class Circumstances:
    """What may differ between two machines."""

    umask: int
    zone: str
    hash_seed: str
    file_mode: int
    modified: float
    strays: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)


HERE = Circumstances(0o022, "UTC", "0", 0o644, time.time())
ELSEWHERE = Circumstances(0o077, "Pacific/Kiritimati", "4711", 0o600, 86_400.0 * 365, STRAYS, {"LC_ALL": "C"})


def lay(directory: Path, at: Circumstances) -> Path:
    """A copy of the source in `directory`."""
    directory.mkdir(parents=True)
    for name in INPUTS:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, directory / name, ignore=NOT_SOURCE)
        else:
            shutil.copy(REPOSITORY / name, directory / name)
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(at.file_mode)
            os.utime(path, (at.modified, at.modified))
    for name in at.strays:
        stray = directory / name
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.write_text("this was not meant to be shipped\n")
    return directory


def build(directory: Path, at: Circumstances) -> Path:
    """The wheel of the source in `directory`, made without a network."""
    environ = {"PATH": os.environ["PATH"], "SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH, "TZ": at.zone}
    environ |= {"PYTHONHASHSEED": at.hash_seed, **at.environ}
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(directory / "made")],
        cwd=directory,
        env=environ,
        umask=at.umask,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (directory / "made").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(lay(tmp_path_factory.mktemp("wheel") / "a", HERE), HERE)


def digest(wheel: Path) -> str:
    return sha256(wheel.read_bytes()).hexdigest()


def sources() -> set[str]:
    """The files of the package as the wheel should name them."""
    found = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(PACKAGE.parent).as_posix() for path in found}


def test_two_builds_are_the_same_to_the_last_bit(wheel: Path, tmp_path: Path) -> None:
    again = build(lay(tmp_path / "quite" / "another place", ELSEWHERE), ELSEWHERE)
    assert again.name == wheel.name
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:  # says what differs, before that it does
        assert second.namelist() == first.namelist()
        assert [name for name in first.namelist() if first.read(name) != second.read(name)] == []
    assert digest(again) == digest(wheel)


def test_another_source_is_another_wheel(wheel: Path, tmp_path: Path) -> None:
    """The twin: the comparison can fail."""
    source = lay(tmp_path / "b", HERE)
    altered = source / "src" / "confide" / "provenance.py"
    altered.write_text(altered.read_text() + "\n")
    assert digest(build(source, HERE)) != digest(wheel)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(set(names)) == len(names)
    shipped = {name for name in names if not name.startswith("confide-")}
    assert shipped >= DATA
    assert {name for name in shipped if not name.endswith(".py")} == DATA
    assert shipped == sources() | DOCUMENTS, (
        "a file that should ship needs a line in pyproject.toml, and one in DATA above"
    )
    metadata = {name.partition("/")[2] for name in names if name.startswith("confide-")}
    assert metadata == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


def test_the_wheel_tells_nothing_of_where_it_was_made(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            assert member.date_time == (2020, 1, 1, 0, 0, 0), member.filename
            assert member.external_attr >> 16 & 0o777 == 0o644, member.filename
            assert str(REPOSITORY).encode() not in archive.read(member), member.filename
            assert str(wheel.parent).encode() not in archive.read(member), member.filename


def test_make_wheel_uses_the_same_epoch() -> None:
    """The Makefile, the Dockerfile and this test name one time, or their wheels would differ."""
    makefile = (REPOSITORY / "Makefile").read_text()
    dockerfile = (REPOSITORY / "deploy" / "Dockerfile").read_text()
    assert re.findall(r"SOURCE_DATE_EPOCH \?= (\d+)", makefile) == [SOURCE_DATE_EPOCH]
    assert set(re.findall(r"SOURCE_DATE_EPOCH=(\d+)", dockerfile)) == {SOURCE_DATE_EPOCH}


def test_the_build_tools_are_those_that_are_tested_here() -> None:
    """The version of hatchling stands in the wheel: the image's and the developer's must be one."""
    pins = {
        name: set(re.findall(r"^([\w.-]+==[\w.]+)", (REPOSITORY / "requirements" / f"{name}.txt").read_text(), re.M))
        for name in ("build", "dev")
    }
    assert pins["build"]
    assert pins["build"] <= pins["dev"]
