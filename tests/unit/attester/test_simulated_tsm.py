"""The file operations of a simulated configfs-tsm over a unix socket: the kernel's rules, across processes."""

import errno
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from confide.attester.simulated_tsm import SimulatedTsmFiles, find_simulated_tsm
from confide.attester.tsm_report import MAX_BLOB_BYTES, SNP, TDX, TsmBusy, TsmError, TsmReader
from confide.simulator.configfs import ConfigfsFaults, SimulatedConfigfs
from confide.simulator.configfs_socket import SimulatedConfigfsSocket
from confide.simulator.serving import serving
from confide.simulator.snp import SimulatedSnpPlatform
from confide.simulator.tdx import SimulatedTdxPlatform

SEED, NOW = b"\x31" * 32, 1_790_000_000
DATA = bytes(range(64))
REPORT = Path("/anywhere/report")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose name leaves room for a socket's."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


@pytest.fixture
def files(place: Path) -> Iterator[SimulatedTsmFiles]:
    """Those of a TDX guest."""
    simulated = SimulatedConfigfs.tdx(SimulatedTdxPlatform(SEED, now=NOW))
    with serving(SimulatedConfigfsSocket(simulated).app, place / "tsm.sock") as socket:
        yield SimulatedTsmFiles(socket)


def reader(socket: Path) -> TsmReader:
    return TsmReader(SimulatedTsmFiles(socket), socket, pause=lambda _: None)


def test_a_report_is_read_through_the_socket_by_the_kernels_rules(place: Path) -> None:
    platform = SimulatedSnpPlatform(SEED, now=NOW)
    simulated = SimulatedConfigfs.snp(platform)
    with serving(SimulatedConfigfsSocket(simulated).app, place / "tsm.sock") as socket:
        assert reader(socket).provider() == SNP
        report = reader(socket).report(DATA, provider=SNP)
    assert report.outblob == platform.report(DATA)
    assert report.auxblob == platform.certificate_table()
    assert len(simulated.made) == 2
    assert simulated.reports == {}, "each report is taken away"


@pytest.mark.parametrize(
    ("faults", "error", "words"),
    [
        (ConfigfsFaults(busy=99), TsmBusy, "EBUSY"),
        (ConfigfsFaults(interference=99), TsmBusy, "the generation went from 0 to 2, expected 1"),
        (ConfigfsFaults(padding=2 * MAX_BLOB_BYTES), TsmError, "EFBIG"),
        (ConfigfsFaults(refuses=errno.EROFS), TsmError, "mounted read-only"),
    ],
    ids=str,
)
def test_what_the_kernel_would_refuse_arrives_with_its_number(
    place: Path, faults: ConfigfsFaults, error: type[TsmError], words: str
) -> None:
    simulated = SimulatedConfigfs.tdx(SimulatedTdxPlatform(SEED, now=NOW), faults)
    with (
        serving(SimulatedConfigfsSocket(simulated).app, place / "tsm.sock") as socket,
        pytest.raises(error, match=words),
    ):
        reader(socket).report(DATA, provider=TDX)


def test_one_who_interferes_for_a_moment_costs_an_attempt_and_no_report(place: Path) -> None:
    platform = SimulatedTdxPlatform(SEED, now=NOW)
    simulated = SimulatedConfigfs.tdx(platform, ConfigfsFaults(interference=2))
    with serving(SimulatedConfigfsSocket(simulated).app, place / "tsm.sock") as socket:
        assert reader(socket).report(DATA, provider=TDX).outblob == platform.quote(DATA)
    assert len(simulated.made) == 3


def test_the_single_operations_fail_as_files_of_the_kernel_do(files: SimulatedTsmFiles) -> None:
    operations: dict[int, list[Callable[[], object]]] = {
        errno.ENOENT: [
            lambda: files.read(REPORT.with_name("other") / "provider", 99),
            lambda: files.read(REPORT / "auxblob", 99),
            lambda: files.rmdir(REPORT.with_name("other")),
        ],
        errno.EEXIST: [lambda: files.mkdir(REPORT)],
        errno.EINVAL: [lambda: files.read(REPORT / "outblob", 99), lambda: files.write(REPORT / "inblob", bytes(65))],
        errno.EACCES: [lambda: files.read(REPORT / "inblob", 99), lambda: files.write(REPORT / "outblob", b"x")],
        errno.EFBIG: [lambda: files.read(REPORT / "provider", 3)],
    }
    files.mkdir(REPORT)
    for number, calls in operations.items():
        for call in calls:
            with pytest.raises(OSError, match=r"\w") as caught:
                call()
            assert caught.value.errno == number
    files.rmdir(REPORT)


@pytest.mark.parametrize(
    ("status", "body", "number"),
    [
        (409, b"EMADEUP", errno.EPROTO),
        (409, b"E" * 99, errno.EFBIG),
        (500, b"", errno.EPROTO),
        (200, b"x" * 9, errno.EFBIG),
    ],
)
def test_an_answer_that_is_no_simulators_is_an_error_of_the_file(
    place: Path, status: int, body: bytes, number: int
) -> None:
    async def answer(_: Request) -> Response:
        return Response(body, status_code=status)

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "PUT"])])
    with serving(app, place / "tsm.sock") as socket, pytest.raises(OSError, match=r"\w") as caught:
        SimulatedTsmFiles(socket).read(REPORT / "provider", 8)
    assert caught.value.errno == number


def test_a_simulator_that_is_away_is_told_with_its_socket(place: Path) -> None:
    with pytest.raises(TsmError, match=r"ENOTCONN.*tsm\.sock"):
        reader(place / "tsm.sock").provider()


def test_the_environment_names_the_socket_or_nothing_does() -> None:
    assert find_simulated_tsm({"TSM_SIMULATOR_ENDPOINT": "/run/tsm.sock"}) == Path("/run/tsm.sock")
    assert find_simulated_tsm({"TSM_SIMULATOR_ENDPOINT": ""}) is find_simulated_tsm({}) is None
