"""From a BERT encoder as its trainers publish it (safetensors, config.json, vocab.txt) to one GGUF file.

The tensors go through as they are, bit for bit, in the order in which they stand; only their names change and what is
not needed for embeddings (the pooler, the position ids) stays behind. So the same input gives the same file, byte for
byte, and the file can be pinned. Layout of GGUF: see gguf.py; names of keys and tensors: llama.cpp, architecture
`bert`.

What llama.cpp wants of a WordPiece vocabulary: a token that begins a word has U+2581 before it, one that goes on has
nothing where vocab.txt has `##`.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from typing import IO, Annotated, Final

import msgspec

from confide.engine.gguf import ARRAY, BOOL, MAGIC, MAX_TOKENS, STRING
from confide.engine.progress import Progress, silent
from confide.engine.safetensors import Tensor, exactly, read_head
from confide.errors import ConfigError

VERSION = 3
ALIGNMENT = 32
U32, I32, FLOAT = 4, 5, 6
F32 = 0  # the tensor type
CHUNK_BYTES = 1024 * 1024
MEAN = 1  # llama.cpp's pooling types: 0 none, 1 mean, 2 first token, 3 last token
NORMAL, UNKNOWN, CONTROL = 1, 2, 3
WORD_START = "▁"
SPECIAL: Final = {
    "[PAD]": "padding",
    "[UNK]": "unknown",
    "[CLS]": "cls",
    "[SEP]": "seperator",  # as llama.cpp spells it
    "[MASK]": "mask",
}

NAMES: Final = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm": "token_embd_norm",
}
LAYER_NAMES: Final = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
LAYER = re.compile(r"encoder\.layer\.(\d{1,3})\.([A-Za-z.]+)\.(weight|bias)")
LEFT_OUT: Final = {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}


class ConversionError(ConfigError):
    """The model is not one that is converted here."""


Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class BertConfig(msgspec.Struct, frozen=True):
    """What is needed of config.json; lengths in tokens and elements."""

    model_type: str
    hidden_act: str
    hidden_size: Count
    intermediate_size: Count
    num_attention_heads: Count
    num_hidden_layers: Annotated[int, msgspec.Meta(ge=1, le=999)]
    max_position_embeddings: Count
    type_vocab_size: Count
    vocab_size: Count
    layer_norm_eps: Annotated[float, msgspec.Meta(gt=0, le=1)]
    position_embedding_type: str = "absolute"


def convert(
    *,
    name: str,
    config: bytes,
    vocabulary: bytes,
    source: IO[bytes],
    target: IO[bytes],
    progress: Progress = silent,
) -> None:
    """Write the GGUF file of a model with mean pooling. `config`, `vocabulary`: the bytes of config.json and vocab.txt.
    `source`: the safetensors file, read forward once.

    Raises ConversionError for another kind of model, SafetensorsError for tensors that do not fit their description.
    """
    facts = read_config(config)
    tokens = read_vocabulary(vocabulary, facts.vocab_size)
    tensors = read_head(source)
    named = [(tensor, tensor_name(tensor, facts)) for tensor in tensors]
    kept = [(tensor, new) for tensor, new in named if new is not None]
    check_complete(facts, [new for _, new in kept])
    target.write(head(pairs(name, facts, tokens), kept))
    total = tensors[-1].end if tensors else 0
    for tensor, new in named:
        copy(tensor, new, source, target)
        progress("convert", tensor.end, total)


def read_config(raw: bytes) -> BertConfig:
    """Raises ConversionError."""
    try:
        config = msgspec.json.decode(raw, type=BertConfig)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConversionError("config.json does not describe a BERT model") from error
    got = (config.model_type, config.hidden_act, config.position_embedding_type)
    if got != ("bert", "gelu", "absolute"):
        raise ConversionError(f"got a model of type {', '.join(got)}, expected bert, gelu, absolute")
    return config


def read_vocabulary(raw: bytes, size: int) -> list[str]:
    """The tokens of vocab.txt, one a line. Raises ConversionError unless there are `size`, special ones among them."""
    try:
        tokens = raw.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ConversionError("vocab.txt is not UTF-8") from error
    if len(tokens) != size or size > MAX_TOKENS or len(set(tokens)) != size or not SPECIAL.keys() <= set(tokens):
        raise ConversionError(f"vocab.txt: expected {size} different tokens, {', '.join(SPECIAL)} among them")
    return tokens


def tensor_name(tensor: Tensor, config: BertConfig) -> str | None:
    """Its name in GGUF; None for what is left out. Raises ConversionError for one that is not of such a model."""
    if tensor.name in LEFT_OUT:
        return None
    if tensor.dtype != "F32":
        raise ConversionError(f"a tensor of type {tensor.dtype}, expected F32: nothing is rounded here")
    module, _, kind = tensor.name.rpartition(".")
    found = NAMES.get(tensor.name) or (f"{NAMES[module]}.{kind}" if kind and module in NAMES else None)
    if layer := LAYER.fullmatch(tensor.name):
        part = LAYER_NAMES.get(layer[2])
        found = f"blk.{int(layer[1])}.{part}.{layer[3]}" if part else None
    if found is None or tensor.shape != shape_of(found, config):
        raise ConversionError("a tensor that a BERT model of this configuration does not have")
    return found


def shape_of(name: str, config: BertConfig) -> tuple[int, ...] | None:
    """What the configuration demands of a tensor; None where it has none of this name."""
    wide, high = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (config.vocab_size, wide),
        "position_embd.weight": (config.max_position_embeddings, wide),
        "token_types.weight": (config.type_vocab_size, wide),
        "ffn_up.weight": (high, wide),
        "ffn_up.bias": (high,),
        "ffn_down.weight": (wide, high),
        **{f"attn_{part}.weight": (wide, wide) for part in ("q", "k", "v", "output")},
    }
    part = re.sub(r"^blk\.\d+\.", "", name)
    return shapes.get(part, (wide,))


def check_complete(config: BertConfig, names: Sequence[str]) -> None:
    """That there is every tensor of every layer, once. Raises ConversionError."""
    ends = ("weight", "bias")
    expected = {NAMES[each] for each in NAMES if each.endswith(".weight")}
    expected |= {f"token_embd_norm.{end}" for end in ends}
    for layer in range(config.num_hidden_layers):
        expected |= {f"blk.{layer}.{part}.{end}" for part in LAYER_NAMES.values() for end in ends}
    if sorted(names) != sorted(expected):
        raise ConversionError("not the tensors of a BERT model with this number of layers")


def pairs(name: str, config: BertConfig, tokens: Sequence[str]) -> Iterator[bytes]:
    """The metadata, in the order in which it is written."""
    yield pair("general.architecture", STRING, string("bert"))
    yield pair("general.name", STRING, string(name))
    yield number("general.file_type", 0)  # every tensor F32
    yield number("bert.context_length", config.max_position_embeddings)
    yield number("bert.embedding_length", config.hidden_size)
    yield number("bert.feed_forward_length", config.intermediate_size)
    yield number("bert.block_count", config.num_hidden_layers)
    yield number("bert.attention.head_count", config.num_attention_heads)
    yield pair("bert.attention.layer_norm_epsilon", FLOAT, struct.pack("<f", config.layer_norm_eps))
    yield pair("bert.attention.causal", BOOL, b"\0")
    yield number("bert.pooling_type", MEAN)
    yield pair("tokenizer.ggml.model", STRING, string("bert"))
    yield number("tokenizer.ggml.token_type_count", config.type_vocab_size)
    yield pair("tokenizer.ggml.tokens", ARRAY, array(STRING, [string(spelled(token)) for token in tokens]))
    kinds = [struct.pack("<i", kind_of(token)) for token in tokens]
    yield pair("tokenizer.ggml.token_type", ARRAY, array(I32, kinds))
    for token, role in SPECIAL.items():
        yield number(f"tokenizer.ggml.{role}_token_id", tokens.index(token))


def spelled(token: str) -> str:
    """A token of vocab.txt as llama.cpp has it."""
    if token in SPECIAL:
        return token
    return token[2:] if token.startswith("##") else WORD_START + token


def kind_of(token: str) -> int:
    """A special token in a text stands for itself, as it does for the model's own tokenizer."""
    role = SPECIAL.get(token)
    if role is None:
        return NORMAL
    return UNKNOWN if role == "unknown" else CONTROL


def head(metadata: Iterator[bytes], tensors: Sequence[tuple[Tensor, str]]) -> bytes:
    """Everything before the data, padded to where it begins."""
    written = list(metadata)
    described, offset = [], 0
    for tensor, name in tensors:
        reverse = tensor.shape[::-1]  # GGUF names the fastest dimension first
        sizes = struct.pack(f"<{len(reverse)}Q", *reverse)
        described.append(string(name) + struct.pack("<I", len(reverse)) + sizes + struct.pack("<IQ", F32, offset))
        offset += padded(tensor.end - tensor.begin)
    counts = struct.pack("<IQQ", VERSION, len(described), len(written))
    whole = b"".join((MAGIC, counts, *written, *described))
    return whole + bytes(padded(len(whole)) - len(whole))


def copy(tensor: Tensor, name: str | None, source: IO[bytes], target: IO[bytes]) -> None:
    """Take its bytes from `source`; write them with what fills up to the alignment, unless it is left out."""
    left = size = tensor.end - tensor.begin
    while left:
        chunk = exactly(source, min(CHUNK_BYTES, left))
        left -= len(chunk)
        if name is not None:
            target.write(chunk)
    if name is not None:
        target.write(bytes(padded(size) - size))


def padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def array(kind: int, items: Sequence[bytes]) -> bytes:
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def pair(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def number(key: str, value: int) -> bytes:
    return pair(key, U32, struct.pack("<I", value))
