"""The GGUF header: what is read, and that nothing odd or oversized gets through."""

import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.engine import gguf
from confide.engine.gguf import GgufError, read_metadata
from confide.errors import ConfigError
from gguf_writer import ARRAY, BOOL, FLOAT, I32, PAIRS, STRING, U32, Typed, gguf_bytes, numbers, string, strings


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes())
    return path


def read(path: Path, content: bytes) -> gguf.GgufMetadata:
    path.write_bytes(content)
    return read_metadata(path)


def test_the_header_is_read(written: Path) -> None:
    metadata = read_metadata(written)
    assert (metadata.version, metadata.architecture, metadata.name) == (3, "llama", "Tiny")
    assert (metadata.context_length, metadata.chat_template) == (2048, "{{ messages }}")
    assert (metadata.tokenizer_model, metadata.split_count) == ("gpt2", 1)
    assert metadata.min_size_bytes == written.stat().st_size


def test_special_tokens_are_control_and_user_defined_ones(written: Path) -> None:
    assert read_metadata(written).special_tokens == ("<|end|>", "<tool>")


def test_version_2_is_read_and_absent_facts_are_none(tmp_path: Path) -> None:
    content = gguf_bytes({"general.architecture": PAIRS["general.architecture"]}, version=2)
    metadata = read(tmp_path / "bare.gguf", content)
    assert (metadata.version, metadata.name, metadata.context_length, metadata.chat_template) == (2, None, None, None)
    assert metadata.special_tokens == ()


def test_context_length_is_the_architecture_s_own(tmp_path: Path) -> None:
    pairs = {"clip.context_length": Typed(U32, 77), **PAIRS}
    assert read(tmp_path / "two.gguf", gguf_bytes(pairs)).context_length == 2048


def test_larger_alignment_moves_the_data(tmp_path: Path) -> None:
    pairs = {"general.alignment": Typed(U32, 4096), **PAIRS}
    with pytest.raises(GgufError, match="truncated"):  # the writer pads to 32
        read(tmp_path / "aligned.gguf", gguf_bytes(pairs))


def test_every_prefix_is_refused(tmp_path: Path) -> None:
    whole, path = gguf_bytes(), tmp_path / "cut.gguf"
    for length in range(len(whole)):
        with pytest.raises(GgufError):
            read(path, whole[:length])


def odd(key: str, kind: int, raw: bytes) -> bytes:
    """A file whose last pair has a hand-made value."""
    return gguf_bytes(extra=string(key) + struct.pack("<I", kind) + raw)


HUGE = struct.pack("<Q", 2**63)
ODD = {
    "another format": (b"PK\x03\x04" + bytes(64), "not a GGUF file"),
    "version 1": (gguf_bytes(version=1), "GGUF version 1"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(64), "GGUF version"),
    "a tensor count that lies": (b"GGUF" + struct.pack("<I", 3) + HUGE + bytes(64), "tensors"),
    "a pair count that lies": (b"GGUF" + struct.pack("<IQ", 3, 0) + HUGE + bytes(64), "metadata pairs"),
    "a string length that lies": (odd("x", STRING, HUGE), "the header reaches"),
    "an array count that lies": (odd("x", ARRAY, struct.pack("<I", U32) + HUGE), "elements in x"),
    "a string count that lies": (odd("x", ARRAY, struct.pack("<I", STRING) + HUGE), "strings in x"),
    "an array of arrays": (odd("x", ARRAY, struct.pack("<IQ", ARRAY, 1) + bytes(64)), "value type 9"),
    "an unknown type": (odd("x", 13, bytes(64)), "value type 13"),
    "a boolean of 2": (odd("x", BOOL, b"\x02"), "boolean"),
    "a key twice": (odd("general.name", STRING, string("y")), "twice"),
    "a key that is not printable": (odd("x\n", STRING, string("y")), "printable"),
    "no architecture": (gguf_bytes({}), "general.architecture"),
    "an architecture with escapes": (gguf_bytes({"general.architecture": Typed(STRING, "\x1b[2J")}), "architecture"),
    "a template that is no text": (gguf_bytes({**PAIRS, "tokenizer.chat_template": Typed(STRING, b"\xff")}), "UTF-8"),
    "a template that is a number": (gguf_bytes({**PAIRS, "tokenizer.chat_template": Typed(U32, 1)}), "not a string"),
    "a context that is no number": (gguf_bytes({**PAIRS, "llama.context_length": Typed(FLOAT, 1.5)}), "whole number"),
    "a negative context": (gguf_bytes({**PAIRS, "llama.context_length": Typed(I32, -1)}), "whole number"),
    "an alignment of 3": (gguf_bytes({**PAIRS, "general.alignment": Typed(U32, 3)}), "general.alignment"),
    "types without tokens": (
        gguf_bytes({key: value for key, value in PAIRS.items() if key != "tokenizer.ggml.tokens"}),
        "do not go together",
    ),
    "fewer types than tokens": (gguf_bytes({**PAIRS, "tokenizer.ggml.token_type": numbers([1])}), "do not go together"),
    "types that are texts": (gguf_bytes({**PAIRS, "tokenizer.ggml.token_type": strings(["1"])}), "do not go together"),
}


@pytest.mark.parametrize(("content", "says"), ODD.values(), ids=ODD.keys())
def test_oddities_are_refused_by_name(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(GgufError, match=says) as refusal:
        read(tmp_path / "odd.gguf", content)
    assert refusal.value.exit_status == 2
    assert refusal.value.remedy


def test_a_lie_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "lie.gguf"
    path.write_bytes(odd("x", STRING, struct.pack("<Q", gguf.MAX_METADATA_BYTES - 4096)))
    tracemalloc.start()
    try:
        with pytest.raises(GgufError):
            read_metadata(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * gguf.FIRST_READ_BYTES
    finally:
        tracemalloc.stop()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(gguf_bytes()) - 129), value=st.binary(min_size=1, max_size=8))
def test_overwritten_headers_are_read_or_refused(tmp_path: Path, at: int, value: bytes) -> None:
    content = bytearray(gguf_bytes())
    content[at : at + len(value)] = value
    try:
        read(tmp_path / "mutant.gguf", bytes(content))
    except GgufError:
        return


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.gguf: cannot be read"):
        read_metadata(tmp_path / "absent.gguf")


@pytest.mark.engine
def test_a_real_model_is_read_quickly(engine_home: Path) -> None:
    path = next((engine_home / "models" / "smollm2-135m").glob("*.gguf"))
    spent = []
    for _ in range(5):
        begin = time.process_time()
        metadata = read_metadata(path)
        spent.append(time.process_time() - begin)
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>"} <= set(metadata.special_tokens)
    assert (metadata.context_length, metadata.min_size_bytes) == (8192, 98_362_432)
    assert min(spent) < 0.15


def test_the_whole_vocabulary_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes())
    assert gguf.read_tokens(path) == ("a", "<|end|>", "b", "<tool>", "")
    without = {key: value for key, value in PAIRS.items() if not key.startswith("tokenizer.ggml.token")}
    path.write_bytes(gguf_bytes(without))
    assert gguf.read_tokens(path) == ()
    assert gguf.read_metadata(path).token_count == 0


@pytest.mark.parametrize(("pooling", "makes_vectors"), [(None, False), (0, False), (1, True), (3, True), (4, False)])
def test_a_file_that_pools_its_vectors_is_an_embedding_model(
    tmp_path: Path, pooling: int | None, makes_vectors: bool
) -> None:
    pairs = dict(PAIRS) | {"llama.embedding_length": Typed(U32, 384)}
    if pooling is not None:
        pairs["llama.pooling_type"] = Typed(U32, pooling)
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes(pairs))
    metadata = gguf.read_metadata(path)
    assert (metadata.pooling, metadata.makes_vectors, metadata.embedding_length) == (pooling, makes_vectors, 384)
