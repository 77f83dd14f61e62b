"""A tiny BERT model as its trainers would publish it, and the GGUF file that it has to become.

Both are written here from the formats' descriptions, not with the converter.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf_writer import BOOL, FLOAT, STRING, U32, Typed, encode, numbers, string, strings

WIDE, HIGH, LAYERS, POSITIONS = 4, 8, 2, 16
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "##ing", "[", "é")
CONFIG: Mapping[str, Any] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": WIDE,
    "intermediate_size": HIGH,
    "num_attention_heads": 2,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "vocab_size": len(VOCABULARY),
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "architectures": ["BertModel"],
}
Shapes = Sequence[tuple[str, str | None, tuple[int, ...]]]


def layer(number: int) -> Shapes:
    """Published name, GGUF's name, shape; of the parts with a weight and a bias only the weight's shape."""
    square, vector = (WIDE, WIDE), (WIDE,)
    parts = (
        ("attention.output.LayerNorm", "attn_output_norm", vector),
        ("attention.output.dense", "attn_output", square),
        ("attention.self.key", "attn_k", square),
        ("attention.self.query", "attn_q", square),
        ("attention.self.value", "attn_v", square),
        ("intermediate.dense", "ffn_up", (HIGH, WIDE)),
        ("output.LayerNorm", "layer_output_norm", vector),
        ("output.dense", "ffn_down", (WIDE, HIGH)),
    )
    return [
        (
            f"encoder.layer.{number}.{ours}.{end}",
            f"blk.{number}.{theirs}.{end}",
            shape if end == "weight" else shape[:1],
        )
        for ours, theirs, shape in parts
        for end in ("bias", "weight")
    ]


SHAPES: Shapes = [
    ("embeddings.LayerNorm.bias", "token_embd_norm.bias", (WIDE,)),
    ("embeddings.LayerNorm.weight", "token_embd_norm.weight", (WIDE,)),
    ("embeddings.position_embeddings.weight", "position_embd.weight", (POSITIONS, WIDE)),
    ("embeddings.token_type_embeddings.weight", "token_types.weight", (2, WIDE)),
    ("embeddings.word_embeddings.weight", "token_embd.weight", (len(VOCABULARY), WIDE)),
    *(each for number in range(LAYERS) for each in layer(number)),
    ("pooler.dense.bias", None, (WIDE,)),
    ("pooler.dense.weight", None, (WIDE, WIDE)),
]


@dataclass(frozen=True)
class Published:
    """The three files: model.safetensors, config.json, vocab.txt."""

    tensors: bytes
    config: bytes
    vocabulary: bytes


def elements(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def data_of(position: int, shape: tuple[int, ...]) -> bytes:
    """Different numbers for each tensor."""
    return struct.pack(f"<{elements(shape)}f", *(position + index / 1000 for index in range(elements(shape))))


def safetensors(described: Mapping[str, object], data: bytes) -> bytes:
    head = json.dumps(described).encode()
    return struct.pack("<Q", len(head)) + head + data


def published(
    shapes: Shapes = SHAPES, config: Mapping[str, object] = CONFIG, vocabulary: Sequence[str] = VOCABULARY
) -> Published:
    """The files of a model with these tensors, the position ids in front as they are in real ones."""
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = struct.pack(f"<{POSITIONS}q", *range(POSITIONS))
    described["embeddings.position_ids"] = {"dtype": "I64", "shape": [1, POSITIONS], "data_offsets": [0, len(data)]}
    for position, (name, _, shape) in enumerate(shapes):
        piece = data_of(position, shape)
        offsets = [len(data), len(data) + len(piece)]
        described[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        data += piece
    lines = "".join(f"{token}\n" for token in vocabulary)
    return Published(safetensors(described, data), json.dumps(config).encode(), lines.encode())


def gguf() -> bytes:
    """What `published()` has to become under the name "tiny"."""
    pairs = {
        "general.architecture": Typed(STRING, "bert"),
        "general.name": Typed(STRING, "tiny"),
        "general.file_type": Typed(U32, 0),
        "bert.context_length": Typed(U32, POSITIONS),
        "bert.embedding_length": Typed(U32, WIDE),
        "bert.feed_forward_length": Typed(U32, HIGH),
        "bert.block_count": Typed(U32, LAYERS),
        "bert.attention.head_count": Typed(U32, 2),
        "bert.attention.layer_norm_epsilon": Typed(FLOAT, 1e-12),
        "bert.attention.causal": Typed(BOOL, 0),
        "bert.pooling_type": Typed(U32, 1),
        "tokenizer.ggml.model": Typed(STRING, "bert"),
        "tokenizer.ggml.token_type_count": Typed(U32, 2),
        "tokenizer.ggml.tokens": strings(
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u2581hello", "ing", "\u2581[", "\u2581é"]
        ),
        "tokenizer.ggml.token_type": numbers([3, 2, 3, 3, 3, 1, 1, 1, 1]),
        "tokenizer.ggml.padding_token_id": Typed(U32, 0),
        "tokenizer.ggml.unknown_token_id": Typed(U32, 1),
        "tokenizer.ggml.cls_token_id": Typed(U32, 2),
        "tokenizer.ggml.seperator_token_id": Typed(U32, 3),
        "tokenizer.ggml.mask_token_id": Typed(U32, 4),
    }
    tensors, data = b"", b""
    kept = [(name, position, shape) for position, (_, name, shape) in enumerate(SHAPES) if name is not None]
    for name, position, shape in kept:
        sizes = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        tensors += string(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", 0, len(data))
        piece = data_of(position, shape)
        data += piece + bytes(-len(piece) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(kept), len(pairs))
    head += b"".join(
        string(key) + struct.pack("<I", each.kind) + encode(each.kind, each.value) for key, each in pairs.items()
    )
    head += tensors
    return head + bytes(-len(head) % 32) + data
