"""API keys: shown once, kept as a digest, revoked for good."""

import base64
import hashlib
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from confide.errors import ConfigError, NotReady
from confide.store import open_keys
from store_builders import NOW, opened


def test_a_token_is_32_random_bytes_in_base64url(tmp_path: Path) -> None:
    keys = open_keys(None, tmp_path)
    tokens = {keys.create_key("laptop")[1] for _ in range(20)}
    assert len(tokens) == 20
    for token in tokens:
        assert re.fullmatch(r"cfd_[A-Za-z0-9_-]{43}", token)
        assert len(base64.urlsafe_b64decode(token.removeprefix("cfd_") + "=")) == 32


def test_what_is_kept_is_the_sha256_of_the_whole_token(tmp_path: Path) -> None:
    record, token = open_keys(None, tmp_path).create_key("laptop")
    assert record.sha256 == hashlib.sha256(token.encode()).digest()
    assert open_keys(None, tmp_path).list_keys() == (record,)


async def test_the_token_is_nowhere_in_the_files_or_in_a_repr(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        record, token = store.create_key("laptop")
        shown = repr((record, store, store.list_keys(), await store.keys()))
    assert token not in shown
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert record.sha256 in files
    assert token.encode() not in files
    assert base64.urlsafe_b64decode(token.removeprefix("cfd_") + "=") not in files


def test_keys_are_listed_oldest_first(tmp_path: Path) -> None:
    keys = open_keys(None, tmp_path)
    made = [keys.create_key(f"n{number}")[0] for number in range(5)]
    assert keys.list_keys() == tuple(made)


def test_a_revoked_key_stays_listed_and_keeps_its_first_time(tmp_path: Path) -> None:
    keys = open_keys(None, tmp_path)
    record, _ = keys.create_key("laptop")
    revoked = keys.revoke_key(record.id)
    assert revoked.revoked_at is not None
    assert keys.revoke_key(record.id) == revoked
    assert keys.list_keys() == (revoked,)


def test_an_unknown_id_is_refused_without_repeating_it(tmp_path: Path) -> None:
    keys = open_keys(None, tmp_path)
    _, token = keys.create_key("laptop")
    with pytest.raises(ConfigError, match="no API key has this id") as caught:
        keys.revoke_key(token)
    assert token not in f"{caught.value.message} {caught.value.remedy}"


@pytest.mark.parametrize("name", ["", "   ", "a\nb", "a\x1b[31mb", "x" * 101, "\udcff"])
def test_a_name_that_cannot_be_shown_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="printable"):
        open_keys(None, tmp_path).create_key(name)


async def test_the_version_grows_with_each_change_and_not_with_a_use(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        versions = [await store.keys_version()]
        record, _ = open_keys(None, tmp_path).create_key("laptop")
        versions.append(await store.keys_version())
        open_keys(None, tmp_path).revoke_key(record.id)
        versions.append(await store.keys_version())
        store.note_key_use(record.id, at=NOW)
    async with opened(tmp_path) as store:
        assert (await store.keys()).records[0].last_used_at == NOW
        versions.append(await store.keys_version())
    assert versions == sorted(versions)
    assert len(set(versions)) == 3
    assert versions[2] == versions[3]


@pytest.mark.parametrize(
    "damage",
    ["DELETE FROM meta WHERE name = 'keys_version'", "UPDATE meta SET value = 'x' WHERE name = 'keys_version'"],
    ids=["gone", "no number"],
)
async def test_a_version_that_somebody_damaged_is_a_store_that_cannot_be_read(tmp_path: Path, damage: str) -> None:
    """Whoever watches the keys has to notice: else a key that is revoked from then on stays good."""
    async with opened(tmp_path) as store:
        with closing(sqlite3.connect(tmp_path / "confide.db")) as db, db:
            db.execute(damage)
        with pytest.raises(NotReady):
            await store.keys_version()


async def test_an_earlier_use_that_is_written_later_does_not_count(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        record, _ = store.create_key("laptop")
        store.note_key_use(record.id, at=NOW + 60)
        store.note_key_use(record.id, at=NOW)
    assert open_keys(None, tmp_path).list_keys()[0].last_used_at == NOW + 60
