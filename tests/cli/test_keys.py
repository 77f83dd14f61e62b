"""`confide keys`, as a person or a script uses it."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from confide.cli.keys import app
from confide.errors import ConfigError
from confide.store import lock_state, open_keys


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path))
    monkeypatch.delenv("CONFIDE_CONFIG", raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_create_prints_the_token_alone_and_says_that_it_is_not_shown_again(home: Path) -> None:
    result = run("create", "laptop")
    assert result.exit_code == 0
    assert re.fullmatch(r"cfd_[A-Za-z0-9_-]{43}\n", result.stdout)
    assert "not shown again" in result.stderr
    assert result.stdout.strip() not in result.stderr


def test_create_as_json_is_one_document_with_the_token(home: Path) -> None:
    made = json.loads(run("create", "laptop", "--json").stdout)
    assert made["name"] == "laptop"
    assert made["token"].startswith("cfd_")
    assert open_keys(None, home).list_keys()[0].id == made["id"]


def test_list_shows_every_key_with_its_state_and_no_token(home: Path) -> None:
    tokens = [run("create", name).stdout.strip() for name in ("laptop", "[bold]desk")]
    first, second = open_keys(None, home).list_keys()
    run("revoke", first.id)
    result = run("list")
    lines = {line.split()[1]: line for line in result.stdout.splitlines() if "key_" in line}
    assert "laptop" in lines[first.id]
    assert "revoked" in lines[first.id]
    assert "[bold]desk" in lines[second.id]
    assert "never" in lines[second.id]
    assert "active" in lines[second.id]
    assert not any(token in result.output for token in tokens)


def test_list_as_json_has_ids_times_and_states(home: Path) -> None:
    token = run("create", "laptop").stdout.strip()
    result = run("list", "--json")
    (key,) = json.loads(result.stdout)
    assert set(key) == {"id", "name", "created_at", "last_used_at", "revoked_at", "state"}
    assert (key["name"], key["state"], key["last_used_at"], key["revoked_at"]) == ("laptop", "active", None, None)
    assert token not in result.output


def test_list_without_keys_says_what_that_means(home: Path) -> None:
    assert "answers anyone" in run("list").stderr
    assert json.loads(run("list", "--json").stdout) == []


def test_revoke_says_what_happens(home: Path) -> None:
    run("create", "laptop")
    (record,) = open_keys(None, home).list_keys()
    result = run("revoke", record.id)
    assert result.exit_code == 0
    assert "laptop" in result.stderr
    assert open_keys(None, home).list_keys()[0].revoked_at is not None


def test_an_unknown_id_is_an_error_with_a_remedy(home: Path) -> None:
    result = run("revoke", "key_000000000000")
    assert isinstance(result.exception, ConfigError)
    assert result.exception.remedy


def test_a_file_that_is_not_ours_is_an_error_with_a_remedy(home: Path) -> None:
    (home / "confide.db").write_bytes(b"not a database, " * 300)
    result = run("list")
    assert isinstance(result.exception, ConfigError)
    assert result.exception.remedy


def test_keys_go_to_the_store_that_the_configuration_names(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIDE_STORE_URL", "sqlite:///other.db")
    run("create", "laptop")
    assert [record.name for record in open_keys("sqlite:///other.db", home).list_keys()] == ["laptop"]
    assert not (home / "confide.db").exists()


def test_the_command_works_while_a_server_runs(home: Path) -> None:
    with lock_state(home):
        assert run("create", "laptop").exit_code == 0
