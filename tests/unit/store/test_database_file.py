"""Which files are taken for a store, and what is said of the others."""

import re
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from confide import config
from confide.errors import ConfigError
from confide.store import open_keys, open_store
from store_builders import opened, proof

OPEN_ON_CUE = """
import sys
from pathlib import Path
from confide.store import open_keys
print("ready", flush=True)
sys.stdin.readline()
for number in range(10):
    home = Path(sys.argv[1], str(number))
    home.mkdir(exist_ok=True)
    open_keys(None, home)
"""


def refusal(home: Path, url: str | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        open_store(url, home, config.Store())
    assert caught.value.remedy
    return caught.value


def test_a_text_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "confide.db"
    file.write_bytes(b"Dear diary, " * 1000)
    file.chmod(0o644)
    assert "cannot be read as a Confide database" in refusal(tmp_path).message
    assert file.read_bytes() == b"Dear diary, " * 1000
    assert file.stat().st_mode & 0o777 == 0o644


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "confide.db"
    with closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE proofs (id INTEGER)")
    before = file.read_bytes()
    assert "another program's" in refusal(tmp_path).message
    assert file.read_bytes() == before


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    open_keys(None, tmp_path)
    with closing(sqlite3.connect(tmp_path / "confide.db")) as db:
        db.execute("PRAGMA user_version = 4")
    assert "schema version 4, expected at most 3" in refusal(tmp_path).message


async def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for number in range(100):
            await store.commit(proof(f"id-{number}"))
    file = tmp_path / "confide.db"
    file.write_bytes(file.read_bytes()[: 2 * 4096])
    assert "malformed" in refusal(tmp_path).message


def test_a_directory_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "confide.db").mkdir(mode=0o755)
    assert "cannot be used" in refusal(tmp_path).message
    assert (tmp_path / "confide.db").stat().st_mode & 0o777 == 0o755


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    assert "No such file or directory" in refusal(tmp_path, "sqlite:///no/such/store.db").message


@pytest.mark.parametrize("url", ["postgresql://db/confide", "sqlite:///", "store.db"])
def test_a_url_of_another_kind_is_refused(tmp_path: Path, url: str) -> None:
    assert re.search("expected sqlite:///FILE", refusal(tmp_path, url).message)


def test_a_relative_url_is_below_home_and_an_absolute_one_is_not(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    open_keys("sqlite:///mine.db", home)
    open_keys(f"sqlite:///{tmp_path}/elsewhere.db", home)
    assert [path.name for path in home.iterdir()] == ["mine.db"]
    assert (tmp_path / "elsewhere.db").is_file()


def test_many_processes_may_create_the_file_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPEN_ON_CUE, str(tmp_path)]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(4)
        ]
        assert [process.stdout.readline() for process in processes if process.stdout] == ["ready\n"] * 4
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        assert [process.wait() for process in processes] == [0] * 4
    open_keys(None, tmp_path / "9").create_key("works")
