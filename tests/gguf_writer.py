"""Writes small GGUF files, and broken ones, from the layout in the specification (not from our reader)."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

U32, I32, FLOAT, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class Typed:
    """A value of an explicit GGUF type: a scalar, a string, or (element type, elements) for an array."""

    kind: int
    value: object


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def strings(texts: Sequence[str]) -> Typed:
    return Typed(ARRAY, (STRING, texts))


def numbers(values: Sequence[int]) -> Typed:
    return Typed(ARRAY, (I32, values))


def encode(kind: int, value: object) -> bytes:
    if kind == STRING:
        assert isinstance(value, str | bytes)
        return string(value)
    if kind == ARRAY:
        assert isinstance(value, tuple)
        element, items = value
        return struct.pack("<IQ", element, len(items)) + b"".join(encode(element, item) for item in items)
    return struct.pack({U32: "<I", I32: "<i", FLOAT: "<f", BOOL: "<B"}[kind], value)


PAIRS: Mapping[str, Typed] = {
    "general.architecture": Typed(STRING, "llama"),
    "general.name": Typed(STRING, "Tiny"),
    "llama.context_length": Typed(U32, 2048),
    "llama.rope.freq_base": Typed(FLOAT, 10000.0),
    "tokenizer.ggml.add_bos_token": Typed(BOOL, 0),
    "tokenizer.ggml.model": Typed(STRING, "gpt2"),
    "tokenizer.ggml.tokens": strings(["a", "<|end|>", "b", "<tool>", ""]),
    "tokenizer.ggml.token_type": numbers([1, 3, 1, 4, 6]),
    "tokenizer.ggml.merges": strings(["a b", "b a"]),
    "tokenizer.chat_template": Typed(STRING, "{{ messages }}"),
}


def gguf_bytes(
    pairs: Mapping[str, Typed] = PAIRS, *, version: int = 3, data: bytes = bytes(range(128)), extra: bytes = b""
) -> bytes:
    """A file with one F32 tensor that holds `data` (a multiple of 4 bytes); `extra` is appended to the pairs."""
    header = b"GGUF" + struct.pack("<IQQ", version, 1, len(pairs) + bool(extra))
    body = b"".join(
        string(key) + struct.pack("<I", typed.kind) + encode(typed.kind, typed.value) for key, typed in pairs.items()
    )
    tensor = string("token_embd.weight") + struct.pack("<IQIQ", 1, len(data) // 4, 0, 0)
    head = header + body + extra + tensor
    return head + bytes(-len(head) % 32) + data
