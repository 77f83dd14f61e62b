"""The configfs-tsm reader: its own directory, one report, nobody else's; and what it says when that cannot be had."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from confide.attester.tsm_report import (
    ATTEMPTS,
    MAX_BLOB_BYTES,
    SNP,
    TDX,
    KernelFiles,
    TsmBusy,
    TsmError,
    TsmMissing,
    TsmReader,
)
from confide.simulator.configfs import ConfigfsFaults, SimulatedConfigfs

DIRECTORY = Path("/sys/kernel/config/tsm/report")
REPORT_DATA = bytes(range(64))


class Pauses(list[float]):
    """Records how long it would have waited."""

    def __call__(self, pause_s: float) -> None:
        self.append(pause_s)


def configfs(*, provider: str | None = TDX, auxblob: bytes | None = None, **faults: int) -> SimulatedConfigfs:
    """A platform that gives back what it was given, behind a word of its own."""
    made = ConfigfsFaults(**faults)
    return SimulatedConfigfs(lambda data: b"quote of " + data, provider=provider, auxblob=auxblob, faults=made)


def reader(files: SimulatedConfigfs, privlevel: int | None = None, pauses: Pauses | None = None) -> TsmReader:
    return TsmReader(files, DIRECTORY, privlevel=privlevel, pause=Pauses() if pauses is None else pauses)


def test_a_report_is_what_the_platform_made_of_the_report_data() -> None:
    files = configfs(auxblob=b"table")
    report = reader(files).report(REPORT_DATA, provider=TDX)
    assert (report.provider, report.outblob, report.auxblob) == (TDX, b"quote of " + REPORT_DATA, b"table")
    assert reader(configfs()).report(REPORT_DATA, provider=TDX).auxblob == b""


def test_each_report_has_a_directory_of_its_own_which_is_taken_away() -> None:
    files = configfs()
    for _ in range(20):
        reader(files).report(REPORT_DATA, provider=TDX)
    assert len(set(files.made)) == 20
    assert {path.parent for path in files.made} == {DIRECTORY}
    assert files.reports == {}


@pytest.mark.parametrize("length", [0, 32, 63, 65])
def test_report_data_has_64_bytes(length: int) -> None:
    files = configfs()
    with pytest.raises(ValueError, match=f"got {length}"):
        reader(files).report(b"r" * length, provider=TDX)
    assert files.made == []


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EIO, errno.ETIMEDOUT, errno.EINTR, errno.EWOULDBLOCK])
def test_a_platform_that_is_busy_is_asked_again_later_in_another_directory(number: int) -> None:
    files, pauses = configfs(busy=3, busy_with=number), Pauses()
    assert reader(files, pauses=pauses).report(REPORT_DATA, provider=TDX).outblob
    assert pauses == [0.05, 0.1, 0.2]
    assert len(set(files.made)) == 4
    assert files.reports == {}


def test_a_platform_that_stays_busy_is_given_up() -> None:
    files, pauses = configfs(busy=1000), Pauses()
    with pytest.raises(TsmBusy, match=r"6 attempts .* EBUSY"):
        reader(files, pauses=pauses).report(REPORT_DATA, provider=TDX)
    assert len(files.made) == ATTEMPTS
    assert sum(pauses) < 2
    assert files.reports == {}


def test_a_report_that_somebody_else_wrote_into_is_thrown_away() -> None:
    files = configfs(interference=2)
    assert reader(files).report(REPORT_DATA, provider=TDX).outblob == b"quote of " + REPORT_DATA
    assert len(files.made) == 3
    with pytest.raises(TsmBusy, match="the generation went from 0 to 2, expected 1"):
        reader(configfs(interference=1000)).report(REPORT_DATA, provider=TDX)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EFBIG, errno.ENOTTY])
def test_another_failure_is_not_repeated_and_leaves_no_directory(number: int) -> None:
    files = configfs(busy=1, busy_with=number)
    with pytest.raises(TsmError, match=errno.errorcode[number]):
        reader(files).report(REPORT_DATA, provider=TDX)
    assert len(files.made) == 1
    assert files.reports == {}


def test_a_padded_outblob_is_passed_on_as_it_is_and_one_beyond_the_limit_is_refused() -> None:
    quote = len(b"quote of ") + 64
    files = configfs(padding=MAX_BLOB_BYTES - quote)
    assert len(reader(files).report(REPORT_DATA, provider=TDX).outblob) == MAX_BLOB_BYTES
    with pytest.raises(TsmError, match="EFBIG"):
        reader(configfs(padding=MAX_BLOB_BYTES - quote + 1)).report(REPORT_DATA, provider=TDX)


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (errno.ENOENT, "there is no configfs-tsm"),
        (errno.EROFS, "mounted read-only"),
        (errno.EACCES, "this user may not"),
        (errno.EPERM, "this user may not"),
    ],
)
def test_an_interface_that_cannot_be_used_says_why_and_is_not_asked_again(number: int, word: str) -> None:
    pauses = Pauses()
    with pytest.raises(TsmMissing, match=word):
        reader(configfs(refuses=number), pauses=pauses).report(REPORT_DATA, provider=TDX)
    assert pauses == []


def test_a_machine_without_a_platform_says_so() -> None:
    with pytest.raises(TsmMissing, match="no platform is registered"):
        reader(configfs(provider=None)).provider()


def test_the_provider_is_known_without_a_report() -> None:
    files = configfs(provider=SNP)
    assert reader(files).provider() == SNP
    assert files.reports == {}


def test_a_report_of_another_platform_is_refused() -> None:
    with pytest.raises(TsmError, match="the provider is 'sev_guest', expected 'tdx_guest'"):
        reader(configfs(provider=SNP)).report(REPORT_DATA, provider=TDX)


@pytest.mark.parametrize(("provider", "level", "generation"), [(SNP, 2, 2), (SNP, None, 1), (TDX, 2, 1)])
def test_the_privilege_level_is_written_where_it_was_set_and_there_are_levels(
    provider: str, level: int | None, generation: int
) -> None:
    files = configfs(provider=provider)
    kept: list[tuple[int | None, int]] = []
    original = files.rmdir

    def noting(path: Path) -> None:
        kept.append((files.reports[path].privlevel, files.reports[path].generation))
        original(path)

    files.rmdir = noting  # type: ignore[method-assign]  # looked at before it goes
    reader(files, privlevel=level).report(REPORT_DATA, provider=provider)
    assert kept == [(level if provider == SNP else None, generation)]


def test_the_fake_follows_the_kernels_rules() -> None:
    files, path = configfs(), DIRECTORY / "one"
    files.mkdir(path)
    refusals: list[tuple[int, Callable[[], object]]] = [
        (errno.EINVAL, lambda: files.read(path / "outblob", 100)),  # before the report data
        (errno.EINVAL, lambda: files.write(path / "inblob", b"r" * 65)),
        (errno.EACCES, lambda: files.write(path / "outblob", b"x")),
        (errno.EACCES, lambda: files.read(path / "inblob", 100)),
        (errno.ENOENT, lambda: files.write(path / "privlevel", b"0")),  # TDX has no levels
        (errno.ENOENT, lambda: files.read(path / "auxblob", 100)),
        (errno.EEXIST, lambda: files.mkdir(path)),
        (errno.ENOENT, lambda: files.rmdir(DIRECTORY / "two")),
    ]
    for number, act in refusals:
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == number
    assert files.read(path / "generation", 100) == b"0\n"
    files.write(path / "inblob", REPORT_DATA)
    assert files.read(path / "generation", 100) == b"1\n"
    with pytest.raises(OSError, match="too large"):
        files.read(path / "outblob", 10)


def test_the_machines_own_files_are_read_to_their_end_and_no_further_than_the_limit(tmp_path: Path) -> None:
    files = KernelFiles()
    files.mkdir(tmp_path / "report")
    (tmp_path / "report" / "inblob").touch()
    files.write(tmp_path / "report" / "inblob", REPORT_DATA)
    assert files.read(tmp_path / "report" / "inblob", 64) == REPORT_DATA
    with pytest.raises(OSError) as caught:
        files.read(tmp_path / "report" / "inblob", 63)
    assert caught.value.errno == errno.EFBIG
    with pytest.raises(FileNotFoundError):
        files.write(tmp_path / "report" / "outblob", b"never made here")
    (tmp_path / "report" / "inblob").unlink()
    files.rmdir(tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_configfs_is_told(tmp_path: Path) -> None:
    with pytest.raises(TsmMissing, match="there is no configfs-tsm"):
        TsmReader(directory=tmp_path / "absent").provider()
