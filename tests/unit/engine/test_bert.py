"""A published BERT model becomes one GGUF file, byte for byte the same each time; anything else is refused."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import bert_files
from bert_files import CONFIG, SHAPES, VOCABULARY, Published, Shapes, published
from confide.engine import bert, gguf
from confide.engine.bert import ConversionError
from confide.engine.safetensors import SafetensorsError


def converted(model: Published) -> bytes:
    target = io.BytesIO()
    source = io.BytesIO(model.tensors)
    bert.convert(name="tiny", config=model.config, vocabulary=model.vocabulary, source=source, target=target)
    return target.getvalue()


def test_a_model_becomes_this_file_and_no_other() -> None:
    assert converted(published()) == converted(published()) == bert_files.gguf()


def test_the_file_reads_as_an_embedding_model(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(converted(published()))
    metadata = gguf.read_metadata(path)
    assert metadata.makes_vectors
    assert (metadata.embedding_length, metadata.context_length, metadata.token_count) == (4, 16, len(VOCABULARY))
    assert metadata.special_tokens == ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
    assert gguf.read_tokens(path)[5:8] == ("▁hello", "ing", "▁[")
    assert metadata.min_size_bytes == path.stat().st_size


def test_the_order_of_the_tensors_is_that_of_their_bytes() -> None:
    head_reversed = published(list(reversed(SHAPES)))
    assert converted(head_reversed) != bert_files.gguf()
    assert len(converted(head_reversed)) == len(bert_files.gguf())


def without(name: str) -> Shapes:
    return [each for each in SHAPES if each[0] != name]


def renamed(shape: tuple[int, ...], name: str = "pooler.dense.bias", to: str = "embeddings.LayerNorm.bias") -> Shapes:
    return [(to, None, shape) if each[0] == name else each for each in SHAPES]


@pytest.mark.parametrize(
    "model",
    [
        published(without("embeddings.LayerNorm.bias")),
        published(without("encoder.layer.1.output.dense.weight")),
        published(renamed((4,), to="cls.predictions.bias")),
        published(renamed((4,), to="encoder.layer.0.attention.self.other.weight")),
        published(renamed((4,), to="encoder.layer.2.output.dense.bias")),
        published(renamed((5,), name="embeddings.LayerNorm.bias")),
        published(config={**CONFIG, "num_hidden_layers": 3}),
        published(config={**CONFIG, "model_type": "roberta"}),
        published(config={**CONFIG, "hidden_act": "relu"}),
        published(config={**CONFIG, "position_embedding_type": "relative_key"}),
        published(config={**CONFIG, "hidden_size": "four"}),
        published(config={**CONFIG, "hidden_size": 8}),
        published(config={**CONFIG, "num_attention_heads": 2**40}),
        published(config={**CONFIG, "num_hidden_layers": 2**31}),
        published(config={**CONFIG, "layer_norm_eps": 1e300}),
        published(vocabulary=VOCABULARY[1:]),
        published(vocabulary=(*VOCABULARY[1:], "x")),
        published(vocabulary=(*VOCABULARY[:-1], "hello")),
        Published(published().tensors, b"{", published().vocabulary),
        Published(published().tensors, published().config, b"\xff" + published().vocabulary),
    ],
)
def test_another_kind_of_model_is_refused(model: Published) -> None:
    with pytest.raises(ConversionError):
        converted(model)


def described(change: Callable[[dict[str, dict[str, object]]], object]) -> bytes:
    """The tensors with a head that was changed."""
    raw = published().tensors
    length = int.from_bytes(raw[:8], "little")
    head = json.loads(raw[8 : 8 + length])
    change(head)
    return bert_files.safetensors(head, raw[8 + length :])


NORM = "embeddings.LayerNorm.bias"


@pytest.mark.parametrize(
    "tensors",
    [
        b"",
        (2**40).to_bytes(8, "little"),
        (100).to_bytes(8, "little") + b"{}",
        bert_files.safetensors({"x": {"dtype": "F32"}}, b""),
        described(lambda head: head[NORM].update(dtype="F16")),
        described(lambda head: head[NORM].update(shape=[-1, -4])),
        described(lambda head: head[NORM].update(data_offsets=[128, 160])),
        described(lambda head: head[NORM].update(data_offsets=[120, 136])),
        described(lambda head: head.pop("embeddings.position_ids")),
        published().tensors[:-1],
    ],
)
def test_tensors_that_are_not_as_described_are_refused(tensors: bytes) -> None:
    with pytest.raises(SafetensorsError):
        converted(Published(tensors, published().config, published().vocabulary))


def test_a_rounded_tensor_is_refused() -> None:
    with pytest.raises(ConversionError, match="expected F32"):
        converted(Published(described(integers), published().config, published().vocabulary))


def integers(head: dict[str, dict[str, object]]) -> None:
    head[NORM].update(dtype="I64", shape=[2])


def test_nothing_of_the_tensors_is_held_in_memory() -> None:
    class Counting(io.BytesIO):
        most = 0

        def read(self, size: int | None = -1) -> bytes:
            self.most = max(self.most, size or 0)
            return super().read(size)

    model, source = published(), Counting(published().tensors)
    bert.convert(name="x", config=model.config, vocabulary=model.vocabulary, source=source, target=io.BytesIO())
    assert 0 < source.most <= 1024 * 1024
