"""Fuzz the conversion of published models: any three files become one GGUF file, or are refused."""

import io
import sys

from confide.engine import bert
from confide.errors import ConfigError

CONFIG = b"""{"model_type":"bert","hidden_act":"gelu","hidden_size":2,"intermediate_size":2,"num_attention_heads":1,
"num_hidden_layers":1,"max_position_embeddings":1,"type_vocab_size":1,"vocab_size":5,"layer_norm_eps":1e-12}"""
VOCABULARY = b"".join(token.encode() + b"\n" for token in bert.SPECIAL)


def fuzz_one(data: bytes) -> None:
    """One input: as tensors, as their head with a length that fits, and as each of the other two files."""
    convert(CONFIG, VOCABULARY, data)
    size = len(data) - (data[0] if data else 0)
    convert(CONFIG, VOCABULARY, max(0, size).to_bytes(8, "little") + data[1:])
    convert(data, VOCABULARY, b"")
    convert(CONFIG, data, b"")


def convert(config: bytes, vocabulary: bytes, tensors: bytes) -> None:
    """Nothing but a ConfigError may come of it."""
    target = io.BytesIO()
    try:
        bert.convert(name="m", config=config, vocabulary=vocabulary, source=io.BytesIO(tensors), target=target)
    except ConfigError:
        return
    if not target.getvalue().startswith(b"GGUF"):
        raise AssertionError("a file that is none")


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
