"""The seed is made once, read by everyone who starts, and refused when it may have been seen or damaged."""

import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from confide.attester.seed import create_seed, load_seed
from confide.errors import ConfigError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "simulator"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refusal(directory: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_seed(directory)
    assert str(directory) in caught.value.message
    assert caught.value.remedy
    return caught.value


def test_the_first_start_makes_it_and_the_next_ones_read_it(directory: Path) -> None:
    seed = load_seed(directory)
    assert len(seed) == 32
    assert (directory / "seed").read_bytes() == load_seed(directory) == seed


def test_two_installations_have_different_seeds(tmp_path: Path) -> None:
    assert load_seed(tmp_path / "one") != load_seed(tmp_path / "two")


def test_nobody_else_can_read_it_and_no_draft_is_left(directory: Path) -> None:
    load_seed(directory)
    assert mode(directory) == 0o700
    assert mode(directory / "seed") == 0o600
    assert [path.name for path in directory.iterdir()] == ["seed"]


def test_the_slower_of_two_processes_keeps_the_seed_of_the_faster(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    create_seed(directory / "seed")
    first = (directory / "seed").read_bytes()
    create_seed(directory / "seed")  # as a process does that looked before the first one was done
    assert load_seed(directory) == first
    assert [path.name for path in directory.iterdir()] == ["seed"]


def test_threads_that_start_at_once_read_the_same_seed(directory: Path) -> None:
    barrier, seeds = threading.Barrier(8), []

    def start() -> None:
        barrier.wait()
        seeds.append(load_seed(directory))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seeds) == 8
    assert len(set(seeds)) == 1


def test_processes_that_start_at_once_read_the_same_seed(directory: Path) -> None:
    program = (
        "import sys, pathlib; from confide.attester.seed import load_seed; "
        "print('ready', flush=True); sys.stdin.readline(); print(load_seed(pathlib.Path(sys.argv[1])).hex())"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for child in children:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
    for child in children:  # all are past their imports: the race begins here
        assert child.stdin
        child.stdin.write("go\n")
        child.stdin.flush()
    seeds = {child.communicate()[0].strip() for child in children}
    assert seeds == {(directory / "seed").read_bytes().hex()}


@pytest.mark.parametrize(("content", "got"), [(b"", "0 bytes"), (b"s" * 31, "31 bytes"), (b"s" * 33, "more than 32")])
def test_a_damaged_seed_is_refused_and_never_replaced(directory: Path, content: bytes, got: str) -> None:
    load_seed(directory)
    (directory / "seed").write_bytes(content)
    assert got in refusal(directory).message
    assert (directory / "seed").read_bytes() == content


@pytest.mark.parametrize("loose", [0o640, 0o604, 0o644, 0o620, 0o666])
def test_a_seed_that_others_may_touch_is_refused(directory: Path, loose: int) -> None:
    seed = load_seed(directory)
    (directory / "seed").chmod(loose)
    error = refusal(directory)
    assert f"{loose:o}" in error.message
    assert f"chmod 600 {directory / 'seed'}" in str(error.remedy)
    (directory / "seed").chmod(0o600)
    assert load_seed(directory) == seed


@pytest.mark.parametrize("loose", [0o755, 0o770, 0o701])
def test_a_directory_that_others_may_enter_is_refused(directory: Path, loose: int) -> None:
    directory.mkdir()
    directory.chmod(loose)
    assert f"chmod 700 {directory}" in str(refusal(directory).remedy)
    assert not (directory / "seed").exists()


def test_a_disk_that_does_not_take_it_is_a_clear_refusal(tmp_path: Path) -> None:
    refusal(tmp_path / "missing" / "simulator")
    (tmp_path / "file").touch(mode=0o600)
    refusal(tmp_path / "file")
    (tmp_path / "simulator").mkdir(mode=0o700)
    (tmp_path / "simulator" / "seed").mkdir(mode=0o700)
    refusal(tmp_path / "simulator")


def test_a_refusal_never_shows_the_seed(directory: Path) -> None:
    load_seed(directory)
    (directory / "seed").write_bytes(b"s" * 31)
    error = refusal(directory)
    assert "sss" not in f"{error.message} {error.remedy}"


def test_a_directory_of_everybody_is_not_to_be_closed_to_the_others(tmp_path: Path) -> None:
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o1777)
    error = refusal(directory)
    assert "shared by all users" in error.message
    assert "chmod" not in str(error.remedy)
