"""Files that collateral is kept in: whole or not at all, for this user alone, and no trouble when they are broken."""

import os
from pathlib import Path

import msgspec
import pytest

from confide.collateral import cache
from confide.collateral.cache import MAX_ENTRY_BYTES, FileCache, Kept, MemoryCache

ENTRY = Kept(name="tdx-x", source="https://x", fetched_at=1, content="{}")


@pytest.fixture
def files(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path / "deep" / "cache")


def path_of(tmp_path: Path, name: str = "tdx-x") -> Path:
    return tmp_path / "deep" / "cache" / f"{name}.json"


def test_an_entry_comes_back_in_another_process(files: FileCache, tmp_path: Path) -> None:
    assert files.get("tdx-x") is None
    files.put(ENTRY)
    assert FileCache(tmp_path / "deep" / "cache").get("tdx-x") == ENTRY
    newer = msgspec.structs.replace(ENTRY, fetched_at=2)
    files.put(newer)
    assert files.get("tdx-x") == newer
    assert [path.name for path in path_of(tmp_path).parent.iterdir()] == ["tdx-x.json"]


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 5000,
        msgspec.json.encode(ENTRY)[:-1],
        msgspec.json.encode(msgspec.structs.replace(ENTRY, name="tdx-y")),
        msgspec.json.encode(msgspec.structs.replace(ENTRY, version=2)),
        b'{"name":"tdx-x","source":"","fetched_at":1,"content":"","more":1}',
        bytes(MAX_ENTRY_BYTES + 1),
    ],
    ids=range(9),
)
def test_a_broken_entry_counts_as_absent_and_is_replaced(files: FileCache, tmp_path: Path, broken: bytes) -> None:
    files.put(ENTRY)
    path_of(tmp_path).write_bytes(broken)
    assert files.get("tdx-x") is None
    files.put(ENTRY)
    assert files.get("tdx-x") == ENTRY


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_counts_as_absent(files: FileCache, tmp_path: Path, mode: int) -> None:
    files.put(ENTRY)
    path_of(tmp_path).chmod(mode)
    assert files.get("tdx-x") is None


def test_a_link_a_pipe_and_a_directory_count_as_absent(files: FileCache, tmp_path: Path) -> None:
    files.put(ENTRY)
    link, pipe, directory = (path_of(tmp_path, f"tdx-{name}") for name in ("link", "pipe", "directory"))
    link.symlink_to(path_of(tmp_path))
    os.mkfifo(pipe)
    directory.mkdir()
    assert [files.get(f"tdx-{name}") for name in ("link", "pipe", "directory")] == [None, None, None]


def test_what_cannot_be_written_is_not_kept_and_no_trouble(
    files: FileCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    files.put(ENTRY)
    with monkeypatch.context() as patching:
        patching.setattr(os, "fsync", full)
        files.put(msgspec.structs.replace(ENTRY, fetched_at=2))
    assert files.get("tdx-x") == ENTRY
    assert len(list(path_of(tmp_path).parent.iterdir())) == 1, "no draft is left"
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    FileCache(in_the_way).put(ENTRY)
    assert FileCache(in_the_way).get("tdx-x") is None


def test_what_is_too_large_is_not_kept(files: FileCache) -> None:
    files.put(msgspec.structs.replace(ENTRY, content="x" * MAX_ENTRY_BYTES))
    assert files.get("tdx-x") is None


@pytest.mark.parametrize("kind", ["files", "memory"])
def test_the_oldest_go_when_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(cache, "MAX_ENTRIES", 3)
    kept = FileCache(tmp_path) if kind == "files" else MemoryCache()
    for number in range(5):
        kept.put(msgspec.structs.replace(ENTRY, name=f"tdx-{number}"))
        for age, path in enumerate(sorted(tmp_path.glob("*.json"))):
            os.utime(path, (age, age))
    assert [number for number in range(5) if kept.get(f"tdx-{number}")] == [2, 3, 4]


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", "a.b", "-a", "a" * 152, "a\0"])
def test_a_name_never_leads_elsewhere(files: FileCache, name: str) -> None:
    with pytest.raises(ValueError, match="no name for an entry"):
        files.get(name)
