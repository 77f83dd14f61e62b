"""The simulated attester is taken where there is no TEE or where it was asked for by name, never in silence."""

from pathlib import Path

import pytest

from confide.attester.selection import DEVICES, find_tee_device, open_attester
from confide.errors import ConfigError

NOW = 1_800_000_000


def now() -> int:
    return NOW


def never() -> str | None:
    raise AssertionError("an attester that was named needs no probe")


@pytest.mark.parametrize("device", DEVICES)
def test_every_sign_of_a_tee_is_found(tmp_path: Path, device: str) -> None:
    (tmp_path / device).parent.mkdir(parents=True)
    (tmp_path / device).touch()
    assert find_tee_device(tmp_path, {}) == str(tmp_path / device)


def test_a_guest_agent_in_the_environment_is_found_and_its_address_not_repeated(tmp_path: Path) -> None:
    found = find_tee_device(tmp_path, {"DSTACK_SIMULATOR_ENDPOINT": "http://agent.example"})
    assert found == "DSTACK_SIMULATOR_ENDPOINT"


def test_a_machine_without_a_tee_shows_none(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    assert find_tee_device(tmp_path, {"DSTACK_SIMULATOR_ENDPOINT": ""}) is None


def test_auto_refuses_to_simulate_on_a_machine_with_a_tee(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="/dev/tdx_guest") as caught:
        open_attester("auto", tmp_path, now=now, probe=lambda: "/dev/tdx_guest")
    assert "no hardware attester" in caught.value.message
    assert 'kind = "simulated"' in str(caught.value.remedy)
    assert "no protection" in str(caught.value.remedy)
    assert list(tmp_path.iterdir()) == []


def test_auto_takes_the_simulated_attester_where_there_is_no_tee(tmp_path: Path) -> None:
    attester = open_attester("auto", tmp_path, now=now, probe=lambda: None)
    assert (attester.kind, attester.tee_type, attester.simulated) == ("simulated", "tdx", True)


def test_simulated_is_taken_when_it_is_named(tmp_path: Path) -> None:
    assert open_attester("simulated", tmp_path, now=now, probe=never).simulated is True
