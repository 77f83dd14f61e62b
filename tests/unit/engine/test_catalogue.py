"""What is installed, what is not, and that changed bytes are refused."""

import hashlib
from pathlib import Path

import pytest

from confide.engine import catalogue, local, manifest
from confide.engine.catalogue import PINNED, NotInstalled, Weights
from confide.engine.gguf import GgufError
from confide.errors import ConfigError, VerificationError
from gguf_writer import PAIRS, U32, Typed, gguf_bytes


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "My Model-Q8.gguf"
    path.write_bytes(gguf_bytes())
    return path


PINNED_ONLY = {"all-minilm-l6-v2": "available", "smollm2-135m": "available"}


def states(home: Path) -> dict[str, str]:
    return {entry.id: entry.state for entry in catalogue.entries(home)}


def test_unknown_weights_are_refused_with_the_known_ids(home: Path, original: Path) -> None:
    local.add(home, original)
    with pytest.raises(ConfigError, match="one of: all-minilm-l6-v2, my-model-q8, smollm2-135m") as refusal:
        catalogue.find(home, "gpt-9")
    assert not isinstance(refusal.value, NotInstalled)
    assert refusal.value.remedy


@pytest.mark.parametrize("name", ["../../etc/passwd", ".partial", "", "A b"])
def test_an_id_that_is_a_path_is_only_unknown(home: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="unknown weights"):
        catalogue.find(home, name)


def test_pinned_weights_that_are_not_here_can_be_pulled(home: Path) -> None:
    with pytest.raises(NotInstalled) as refusal:
        catalogue.find(home, "smollm2-135m")
    assert refusal.value.weights == PINNED[0]
    assert refusal.value.remedy == "Run `confide models pull smollm2-135m`."
    assert refusal.value.exit_status == 2
    assert states(home) == PINNED_ONLY


def test_pinned_weights_are_complete() -> None:
    for weights in PINNED:
        assert manifest.ID.fullmatch(weights.id)
        assert weights.package
        assert weights.package.convert is not None or weights.package.member.endswith(weights.file)
        assert weights.source == f"index:{weights.package.name}=={weights.package.version}"
        assert {len(weights.sha256), len(weights.package.sha256)} == {64}


def test_a_file_is_added_in_place_with_what_it_says_about_itself(home: Path, original: Path) -> None:
    installed = local.add(home, original, licence="MIT")
    assert installed.path == original
    assert installed.weights == Weights(
        id="my-model-q8",
        source=f"file:{original}",
        file=str(original),
        size=original.stat().st_size,
        sha256=hashlib.sha256(original.read_bytes()).hexdigest(),
        licence="MIT",
        context_length=2048,
    )
    assert catalogue.find(home, "my-model-q8") == installed
    assert catalogue.verify_weights(installed) == installed


def test_adding_again_changes_nothing(home: Path, original: Path) -> None:
    assert local.add(home, original) == local.add(home, original)


def test_a_copy_outlives_the_original(home: Path, original: Path) -> None:
    installed = local.add(home, original, id="mine", copy=True)
    original.unlink()
    assert installed.path == home / "models" / "mine" / original.name
    assert catalogue.verify_weights(catalogue.find(home, "mine")) == installed


def test_an_id_keeps_its_bytes(home: Path, original: Path, tmp_path: Path) -> None:
    local.add(home, original, id="mine")
    other = tmp_path / "other.gguf"
    other.write_bytes(gguf_bytes(data=bytes(128)))
    with pytest.raises(ConfigError, match="the id mine: taken") as refusal:
        local.add(home, other, id="mine")
    assert refusal.value.remedy == "Choose another with --id."


def test_a_pinned_id_is_for_the_pinned_bytes_only(home: Path, original: Path) -> None:
    with pytest.raises(ConfigError, match="the id smollm2-135m: taken"):
        local.add(home, original, id="smollm2-135m")


def test_a_record_with_other_bytes_under_a_pinned_id_counts_for_nothing(home: Path, original: Path) -> None:
    installed = local.add(home, original, copy=True)
    (home / "models" / "smollm2-135m").mkdir()
    forged = manifest.Weights(
        id="smollm2-135m", source="index:x==1", file="x.gguf", size=1, sha256=installed.weights.sha256
    )
    manifest.write(home, forged)
    with pytest.raises(NotInstalled):
        catalogue.find(home, "smollm2-135m")


@pytest.mark.engine
def test_pinned_bytes_from_elsewhere_get_the_pinned_id(home: Path, engine_home: Path) -> None:
    elsewhere = catalogue.find(engine_home, "smollm2-135m").path
    installed = local.add(home, elsewhere)
    assert installed.weights.id == "smollm2-135m"
    assert (installed.weights.template, installed.weights.licence) == ("hermes", "Apache-2.0")
    assert catalogue.verify_weights(installed).path == elsewhere


def test_an_id_outside_the_alphabet_is_refused(home: Path, original: Path) -> None:
    with pytest.raises(ConfigError, match="lower-case letters"):
        local.add(home, original, id="../x")
    assert not (home / "models" / "x").exists()


def test_what_is_no_complete_single_gguf_file_is_not_added(home: Path, original: Path, tmp_path: Path) -> None:
    text, short, split = (tmp_path / f"{name}.gguf" for name in ("text", "short", "split"))
    text.write_text("hello")
    short.write_bytes(original.read_bytes()[:-1])
    split.write_bytes(gguf_bytes({**PAIRS, "split.count": Typed(U32, 3)}))
    for path, says in ((text, "not a GGUF file"), (short, "truncated: got"), (split, "one of 3 parts")):
        with pytest.raises(ConfigError, match=says) as refusal:
            local.add(home, path)
        assert isinstance(refusal.value, GgufError) == (path != split)
    assert states(home) == PINNED_ONLY


def test_our_own_files_are_not_added_in_place(home: Path, original: Path) -> None:
    ours = local.add(home, original, id="mine", copy=True).path
    with pytest.raises(ConfigError, match="inside the state directory"):
        local.add(home, ours, id="again")


def test_flipped_bytes_are_refused_with_both_digests(home: Path, original: Path) -> None:
    installed = local.add(home, original, id="mine", copy=True)
    content = bytearray(installed.path.read_bytes())
    content[-1] ^= 1
    installed.path.write_bytes(content)
    with pytest.raises(VerificationError) as refusal:
        catalogue.verify_weights(installed)
    assert (refusal.value.check, refusal.value.exit_status) == ("weights.sha256", 1)
    assert hashlib.sha256(content).hexdigest() in refusal.value.message
    assert installed.weights.sha256 in refusal.value.message
    assert "confide models remove mine" in str(refusal.value.remedy)


def test_a_truncated_file_is_refused_with_both_sizes(home: Path, original: Path) -> None:
    installed = local.add(home, original)
    original.write_bytes(original.read_bytes()[:-5])
    size = installed.weights.size
    with pytest.raises(VerificationError, match=f"got {size - 5} bytes, expected {size} bytes"):
        catalogue.verify_weights(installed)


def test_a_missing_original_is_named_and_listed(home: Path, original: Path) -> None:
    local.add(home, original, id="mine")
    original.unlink()
    with pytest.raises(ConfigError, match="no file at") as refusal:
        catalogue.find(home, "mine")
    assert str(original) in refusal.value.message
    assert "confide models remove mine" in str(refusal.value.remedy)
    assert states(home)["mine"] == "missing"


def test_a_damaged_record_says_what_to_do_and_hides_nothing_else(home: Path, original: Path) -> None:
    record = local.add(home, original, id="mine", copy=True).path.parent / "manifest.json"
    record.write_text("{")
    with pytest.raises(ConfigError, match=r"manifest\.json: damaged") as refusal:
        catalogue.find(home, "mine")
    assert "confide models remove mine" in str(refusal.value.remedy)
    assert states(home) == {"mine": "damaged", **PINNED_ONLY}
    assert catalogue.remove(home, "mine") is None
    assert not record.parent.exists()


def test_a_record_cannot_name_a_file_elsewhere_by_climbing(home: Path, original: Path) -> None:
    record = local.add(home, original, id="mine", copy=True).path.parent / "manifest.json"
    record.write_text(record.read_text().replace(original.name, "../../x.gguf"))
    with pytest.raises(ConfigError, match="damaged"):
        catalogue.find(home, "mine")


def test_removing_a_copy_deletes_it(home: Path, original: Path) -> None:
    copied = local.add(home, original, id="mine", copy=True).path
    assert catalogue.remove(home, "mine") is None
    assert not copied.parent.exists()
    assert original.exists()


def test_a_copy_under_any_name_is_ours_to_delete(home: Path, original: Path, tmp_path: Path) -> None:
    for name in ("MODEL.GGUF", "blob"):
        copied = local.add(home, original.rename(tmp_path / name), id="mine", copy=True).path
        catalogue.remove(home, "mine")
        assert not copied.parent.exists()
        original = tmp_path / name


def test_removing_what_was_added_in_place_leaves_the_original(home: Path, original: Path) -> None:
    local.add(home, original, id="mine")
    assert catalogue.remove(home, "mine") == original
    assert original.exists()
    assert states(home) == PINNED_ONLY


def test_removing_leaves_files_that_are_not_ours(home: Path, original: Path) -> None:
    directory = local.add(home, original, id="mine", copy=True).path.parent
    (directory / "notes.txt").write_text("keep")
    catalogue.remove(home, "mine")
    assert [path.name for path in directory.iterdir()] == ["notes.txt"]


def test_removing_what_is_not_installed_is_an_error(home: Path) -> None:
    with pytest.raises(ConfigError, match="not installed: nothing to remove"):
        catalogue.remove(home, "smollm2-135m")
    with pytest.raises(ConfigError, match="unknown weights"):
        catalogue.remove(home, "gpt-9")


def test_an_added_file_that_pools_its_vectors_is_for_embeddings(home: Path, tmp_path: Path) -> None:
    mean, ranking = tmp_path / "mean.gguf", tmp_path / "ranking.gguf"
    mean.write_bytes(gguf_bytes(dict(PAIRS) | {"llama.pooling_type": Typed(U32, 1)}))
    ranking.write_bytes(gguf_bytes(dict(PAIRS) | {"llama.pooling_type": Typed(U32, 4)}))
    assert local.add(home, mean).weights.kind == "embeddings"
    assert local.add(home, ranking).weights.kind == "chat"
    assert catalogue.find(home, "mean").weights.kind == "embeddings"


def test_a_record_from_before_there_were_embeddings_is_one_of_a_chat_model(home: Path, original: Path) -> None:
    local.add(home, original, id="mine")
    path = manifest.directory(home, "mine") / manifest.NAME
    path.write_text(path.read_text().replace(',\n  "kind": "chat"', ""))
    assert "kind" not in path.read_text()
    assert catalogue.find(home, "mine").weights.kind == "chat"
