"""Which attester starts: what the machine has, or what was named; the simulated one never in silence."""

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from confide.attester import selection
from confide.attester.dstack_agent import SOCKETS
from confide.attester.selection import DEVICES, TSM, choose, find_tee_device, lacks, open_attester
from confide.attester.tsm_report import TsmReader
from confide.errors import ConfigError
from confide.simulator.configfs import SimulatedConfigfs
from confide.simulator.configfs_socket import SimulatedConfigfsSocket
from confide.simulator.guest_agent import SimulatedGuestAgent, serving
from confide.simulator.kms import SimulatedKms
from confide.simulator.tdx import SimulatedTdxPlatform

NOW = 1_800_000_000
SEED = b"\x33" * 32


def now() -> int:
    return NOW


def never(_: Path) -> bool:
    return False


def always(_: Path) -> bool:
    return True


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine that shows nothing yet."""
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def short_root() -> Iterator[Path]:
    """The same, with a path that leaves room for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="c-", dir="/tmp") as path:
        yield Path(path)


def show(root: Path, *paths: str) -> None:
    """Put these on the machine: directories for configfs, else files."""
    for path in paths:
        if path == TSM:
            (root / path).mkdir(parents=True)
        else:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()


@pytest.mark.parametrize("device", DEVICES)
def test_every_sign_of_a_tee_is_found(root: Path, device: str) -> None:
    show(root, device)
    assert find_tee_device(root, {}) == str(root / device)


def test_a_guest_agent_in_the_environment_is_found_and_its_address_not_repeated(root: Path) -> None:
    found = find_tee_device(root, {"DSTACK_SIMULATOR_ENDPOINT": "http://agent.example"})
    assert found == "DSTACK_SIMULATOR_ENDPOINT"


def test_a_machine_without_a_tee_shows_none(root: Path) -> None:
    (root / "dev").mkdir()
    assert find_tee_device(root, {"DSTACK_SIMULATOR_ENDPOINT": ""}) is None
    assert choose(root, {}, may_write=never) == "simulated"
    assert lacks(root, may_write=never) == {}


@pytest.mark.parametrize("path", SOCKETS)
def test_auto_takes_the_guest_agent_before_anything_else(short_root: Path, path: str) -> None:
    show(short_root, "dev/tdx_guest", TSM)
    (short_root / path).parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_root / path))
        assert choose(short_root, {}, may_write=always) == "dstack"


@pytest.mark.parametrize("device", ["dev/tdx_guest", "dev/sev-guest", None])
def test_auto_takes_configfs_where_there_is_no_agent(root: Path, device: str | None) -> None:
    show(root, TSM, *([device] if device else []))
    assert choose(root, {}, may_write=always) == "tsm"


@pytest.mark.parametrize("device", DEVICES)
async def test_auto_refuses_to_simulate_on_a_machine_with_a_tee(root: Path, tmp_path: Path, device: str) -> None:
    show(root, device)
    with pytest.raises(ConfigError, match="cannot be used: ") as caught:
        await open_attester("auto", tmp_path, now=now, root=root, environ={}, may_write=never)
    assert str(root / device) in caught.value.message
    assert 'kind = "simulated"' in str(caught.value.remedy)
    assert "no protection" in str(caught.value.remedy)
    assert list(tmp_path.iterdir()) == [root]


@pytest.mark.parametrize(
    ("shown", "reason", "remedy"),
    [
        (("dev/tdx_guest",), "and .*tsm/report is not", "load the module tdx_guest"),
        (("dev/sev-guest",), "and .*tsm/report is not", "load the module sev-guest"),
        (("dev/tdx_guest", TSM), "this user may not write", "Run as root"),
        ((SOCKETS[0],), "is no socket", "guest agent"),
        ((SOCKETS[0], "dev/tdx_guest"), "is no socket; .*is not", "guest agent"),
    ],
)
def test_a_refusal_says_what_is_lacking(root: Path, shown: tuple[str, ...], reason: str, remedy: str) -> None:
    show(root, *shown)
    with pytest.raises(ConfigError, match=reason) as caught:
        choose(root, {}, may_write=never)
    assert remedy in str(caught.value.remedy)


async def test_auto_takes_the_simulated_attester_where_there_is_no_tee(root: Path, tmp_path: Path) -> None:
    attester = await open_attester("auto", tmp_path, now=now, root=root, environ={}, may_write=never)
    assert (attester.kind, attester.tee_type, attester.simulated) == ("simulated", "tdx", True)


async def test_simulated_is_taken_when_it_is_named(root: Path, tmp_path: Path) -> None:
    show(root, *DEVICES[:3])
    assert (await open_attester("simulated", tmp_path, now=now, root=root, environ={})).simulated is True


@pytest.mark.parametrize(("kind", "reason"), [("dstack", "no guest agent"), ("tsm", "there is no .*tsm/report")])
async def test_a_named_attester_that_is_not_there_is_refused(
    root: Path, tmp_path: Path, kind: selection.Kind, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        await open_attester(kind, tmp_path, now=now, root=root, environ={})
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == [root]


async def test_an_agent_that_does_not_answer_is_refused_and_nothing_takes_its_place(
    short_root: Path, tmp_path: Path
) -> None:
    show(short_root, TSM)
    (short_root / SOCKETS[1]).parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_root / SOCKETS[1]))  # nobody listens
        with pytest.raises(ConfigError, match='kind = "dstack"'):
            await open_attester("auto", tmp_path, now=now, root=short_root, environ={}, may_write=always)


async def test_an_interface_without_a_platform_behind_it_is_refused(root: Path, tmp_path: Path) -> None:
    """The directory may be written, but the kernel makes no report in it: here it is a plain one."""
    show(root, TSM)
    with pytest.raises(ConfigError, match='kind = "tsm"') as caught:
        await open_attester("auto", tmp_path, now=now, root=root, environ={}, may_write=always)
    assert "the module tdx_guest or sev-guest" in str(caught.value.remedy)
    assert list((root / TSM).iterdir()) == []


async def test_auto_opens_what_it_chose(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show(root, TSM)
    files = SimulatedConfigfs.tdx(SimulatedTdxPlatform(SEED, now=NOW))
    monkeypatch.setattr(selection, "TsmReader", lambda directory: TsmReader(files, directory))
    attester = await open_attester("auto", tmp_path, now=now, root=root, environ={}, may_write=always)
    assert (attester.kind, attester.tee_type, attester.simulated) == ("tsm", "tdx", False)
    assert {path.parent for path in files.made} == {root / TSM}
    assert list(tmp_path.iterdir()) == [root]  # no key was written anywhere


async def test_an_agent_in_the_environment_is_taken_and_counts_as_simulated(
    root: Path, tmp_path: Path, short_root: Path
) -> None:
    agent = SimulatedGuestAgent(SimulatedTdxPlatform(SEED, now=NOW), SimulatedKms(SEED))
    path = short_root / "agent.sock"
    with serving(agent.app, path):
        environ = {"DSTACK_SIMULATOR_ENDPOINT": str(path)}
        attester = await open_attester("auto", tmp_path, now=now, root=root, environ=environ, may_write=never)
    assert (attester.kind, attester.simulated) == ("dstack", True)


@pytest.mark.parametrize("kind", ["auto", "tsm"])
async def test_a_configfs_in_the_environment_is_taken_and_counts_as_simulated(
    root: Path, tmp_path: Path, short_root: Path, kind: selection.Kind
) -> None:
    files = SimulatedConfigfs.tdx(SimulatedTdxPlatform(SEED, now=NOW))
    path = short_root / "tsm.sock"
    with serving(SimulatedConfigfsSocket(files).app, path):
        environ = {"TSM_SIMULATOR_ENDPOINT": str(path)}
        attester = await open_attester(kind, tmp_path, now=now, root=root, environ=environ, may_write=never)
        evidence = await attester.attest(bytes(64))
    assert (attester.kind, attester.tee_type, attester.simulated) == ("tsm", "tdx", True)
    assert evidence.simulated
    assert evidence.aci_members()["simulated"] is True


@pytest.mark.parametrize("kind", ["auto", "tsm"])
async def test_a_configfs_in_the_environment_that_is_away_is_refused_and_nothing_takes_its_place(
    root: Path, tmp_path: Path, kind: selection.Kind
) -> None:
    show(root, TSM)
    environ = {"TSM_SIMULATOR_ENDPOINT": str(tmp_path / "tsm.sock")}
    with pytest.raises(ConfigError, match=r'kind = "tsm": ENOTCONN.*tsm\.sock') as caught:
        await open_attester(kind, tmp_path, now=now, root=root, environ=environ, may_write=always)
    assert "confide simulate tsm" in str(caught.value.remedy)


def test_a_variable_of_a_simulator_is_a_sign_of_a_tee(root: Path) -> None:
    assert find_tee_device(root, {"TSM_SIMULATOR_ENDPOINT": "/run/tsm.sock"}) == "TSM_SIMULATOR_ENDPOINT"
    assert find_tee_device(root, {"TSM_SIMULATOR_ENDPOINT": ""}) is None


def test_a_directory_that_is_not_there_is_not_writable(root: Path) -> None:
    show(root, TSM)
    assert selection.may_write(root / TSM)
    assert not selection.may_write(root / "absent")
