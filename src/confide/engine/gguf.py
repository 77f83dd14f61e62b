"""A strict, bounded reader of what a GGUF file says about itself. Tensor data is never read.

Layout of versions 2 and 3, little-endian (GGUF specification, "File Structure"):

    "GGUF"  u32 version  u64 tensors  u64 pairs
    pairs:    string key, u32 type, value      a string is u64 length + bytes; an array u32 type, u64 count, elements
    tensors:  string name, u32 dimensions, u64 each, u32 type, u64 offset from the start of the data
    padding to `general.alignment` (32), then the data

The file may lie about every length. A length is believed only as far as the file reaches, and never past
MAX_METADATA_BYTES, so that a lie costs no memory. This is no proof of the tensors: their digest is (catalogue).
"""

import contextlib
import os
import struct
from collections.abc import Iterator
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Final

import msgspec

from confide.errors import ConfigError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_METADATA_BYTES = 128 * 1024 * 1024  # vocabularies of 262,144 tokens stay well below
MAX_PAIRS = 65_536
MAX_TENSORS = 131_072
MAX_STRINGS = 2_097_152  # in one array; a tokenizer's merges are the longest known
MAX_TOKENS = 1_048_576
MAX_KEY_BYTES = 65_535  # specification
MAX_TEXT_BYTES = 1024 * 1024
MAX_DIMENSIONS = 4  # as the engine has it
FIRST_READ_BYTES = 4 * 1024 * 1024

BOOL, STRING, ARRAY = 7, 8, 9
SCALARS: Final = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    BOOL: struct.Struct("<B"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
U32, I32, U64 = SCALARS[4], 5, SCALARS[10]

CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
VECTOR_POOLINGS = (1, 2, 3)  # mean, first token, last token; 4 ranks, and gives no vector

# Elements in a block: {tensor type: bytes of a block}. A type that is missing here counts as empty.
BLOCK_BYTES: Final = {
    1: {0: 4, 1: 2, 24: 1, 25: 2, 26: 4, 27: 8, 28: 8, 30: 2},
    32: {2: 18, 3: 20, 6: 22, 7: 24, 8: 34, 9: 36, 20: 18, 39: 17},
    256: dict(zip(range(10, 20), (84, 110, 144, 176, 210, 292, 66, 74, 98, 50), strict=True))
    | {21: 110, 22: 82, 23: 136, 29: 56, 34: 54, 35: 66},
}
BLOCKS = {kind: (elements, size) for elements, kinds in BLOCK_BYTES.items() for kind, size in kinds.items()}

TEXTS = {"general.architecture", "general.name", "tokenizer.chat_template", "tokenizer.ggml.model"}
NUMBERS = {"general.alignment", "split.count"}
OF_ARCHITECTURE = (".context_length", ".embedding_length", ".pooling_type")  # after `<architecture>`
TOKENS, TOKEN_TYPE = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"

Value = str | int | float | tuple[bytes, ...] | tuple[int, ...] | None


class GgufError(ConfigError):
    """The file is not GGUF as specified, or larger than the bounds above."""


class GgufMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What the header says. `context_length` in tokens; `special_tokens` are texts of CONTROL and USER_DEFINED tokens.

    `pooling`: how one vector is made of those of the tokens, None or 0 for a model that generates text; the vector has
    `embedding_length` elements. `token_count`: of the vocabulary.
    `min_size_bytes` is where the last tensor of a known type ends: a shorter file is truncated.
    """

    version: int
    architecture: str
    name: str | None
    context_length: int | None
    chat_template: str | None
    tokenizer_model: str | None
    special_tokens: tuple[str, ...]
    token_count: int
    embedding_length: int | None
    pooling: int | None
    split_count: int
    min_size_bytes: int

    @property
    def makes_vectors(self) -> bool:
        """Whether it is an embedding model: one that brings along how its vectors are pooled."""
        return self.pooling in VECTOR_POOLINGS


def read_metadata(path: Path) -> GgufMetadata:
    """Read and check the header of `path`. Raises GgufError, also when the file ends before its last tensor does."""
    with opened(path) as cursor:
        metadata, size = parse(cursor), cursor.file_bytes
    if size < metadata.min_size_bytes:
        raise GgufError(
            f"{path}: truncated: got {size} bytes, the header promises at least {metadata.min_size_bytes}",
            remedy="Download the file again.",
        )
    return metadata


def read_tokens(path: Path) -> tuple[str, ...]:
    """The whole vocabulary of `path`, in the order of its ids; () where it has none. Raises GgufError."""
    with opened(path) as cursor:
        _, _, pairs = parse_counts(cursor)
        tokens = dict(read_pairs(cursor, pairs)).get(TOKENS)
        if not isinstance(tokens, tuple):
            return ()
        try:
            return tuple(token.decode() for token in tokens if isinstance(token, bytes))
        except UnicodeDecodeError as error:
            raise GgufError(f"{TOKENS} holds what is not UTF-8") from error


@contextlib.contextmanager
def opened(path: Path) -> Iterator["Cursor"]:
    """A cursor at the begin of the file; what goes wrong while it is used names the file."""
    try:
        with path.open("rb") as file:
            yield Cursor(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except GgufError as error:
        raise GgufError(f"{path}: {error.message}", remedy="Use a complete GGUF file, version 2 or 3.") from error


class Cursor:
    """Reads forward through the head of a file; asking past its end or past the bound is a GgufError."""

    def __init__(self, file: BufferedReader, size_bytes: int) -> None:
        self.file_bytes = size_bytes
        self._file = file
        self._limit = min(size_bytes, MAX_METADATA_BYTES)
        self._data = b""
        self.at = 0

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self._data):
            self._read_to(end)
        taken = self._data[self.at : end]
        self.at = end
        return taken

    def strings(self, count: int, *, keep: bool) -> tuple[bytes, ...]:
        """So many strings in a row; walked in place, since a vocabulary has 100,000 of them."""
        data, at, kept = self._data, self.at, []
        for _ in range(count):
            begin = at + U64.size
            data = data if begin <= len(data) else self._read_to(begin)
            at = begin + U64.unpack_from(data, at)[0]
            data = data if at <= len(data) else self._read_to(at)
            if keep:
                kept.append(data[begin:at])
        self.at = at
        return tuple(kept)

    def _read_to(self, end: int) -> bytes:
        if end > self._limit:
            raise GgufError(f"the header reaches to byte {end}, expected at most {self._limit}")
        wanted = min(max(end, 2 * len(self._data), FIRST_READ_BYTES), self._limit)
        self._data += self._file.read(wanted - len(self._data))
        if len(self._data) < end:
            raise GgufError("the file became shorter while it was read")
        return self._data

    def number(self, layout: struct.Struct) -> int:
        return int(layout.unpack(self.take(layout.size))[0])

    def count(self, what: str, limit: int) -> int:
        """A u64 that says how many of something follow."""
        value = self.number(U64)
        if value > limit:
            raise GgufError(f"got {value} {what}, expected at most {limit}")
        return value

    def text(self, what: str, limit: int = MAX_TEXT_BYTES) -> str:
        try:
            return self.take(self.count(f"bytes in {what}", limit)).decode()
        except UnicodeDecodeError as error:
            raise GgufError(f"{what} is not UTF-8") from error


def parse(cursor: Cursor) -> GgufMetadata:
    """Header, pairs, tensor descriptions, in file order."""
    version, tensors, pairs = parse_counts(cursor)
    values = dict(read_pairs(cursor, pairs))
    architecture = architecture_of(values)
    tokens = values.get(TOKENS)
    return GgufMetadata(
        version=version,
        architecture=architecture,
        name=text_of(values, "general.name"),
        context_length=number_of(values, f"{architecture}.context_length"),
        chat_template=text_of(values, "tokenizer.chat_template"),
        tokenizer_model=text_of(values, "tokenizer.ggml.model"),
        special_tokens=special_tokens(values),
        token_count=len(tokens) if isinstance(tokens, tuple) else 0,
        embedding_length=number_of(values, f"{architecture}.embedding_length"),
        pooling=number_of(values, f"{architecture}.pooling_type"),
        split_count=number_of(values, "split.count") or 1,
        min_size_bytes=min_size(cursor, tensors, number_of(values, "general.alignment") or 32),
    )


def parse_counts(cursor: Cursor) -> tuple[int, int, int]:
    """Version, number of tensors, number of pairs."""
    if (magic := cursor.take(4)) != MAGIC:
        raise GgufError(f"not a GGUF file: begins with {magic!r}, expected {MAGIC!r}")
    if (version := cursor.number(U32)) not in VERSIONS:
        raise GgufError(f"GGUF version {version}, expected one of {VERSIONS}")
    tensors, pairs = cursor.count("tensors", MAX_TENSORS), cursor.count("metadata pairs", MAX_PAIRS)
    return version, tensors, pairs


def read_pairs(cursor: Cursor, count: int) -> Iterator[tuple[str, Value]]:
    """Every pair, in order; the value of a key that nobody asks for is skipped and stands for nothing."""
    seen: set[str] = set()
    for _ in range(count):
        key = cursor.text("a key", MAX_KEY_BYTES)
        if key in seen or not (key.isascii() and key.isprintable()):
            raise GgufError(f"the key {key[:80]!r} is given twice or is not printable ASCII")
        seen.add(key)
        yield key, read_value(cursor, key)


def read_value(cursor: Cursor, key: str) -> Value:
    """The value at the cursor; empty or None for keys that are of no use here."""
    kind = cursor.number(U32)
    if kind == STRING:
        return cursor.text(key) if key in TEXTS else cursor.strings(1, keep=False)
    if kind == ARRAY:
        return read_array(cursor, key)
    (value,) = scalar(kind, key).unpack(cursor.take(scalar(kind, key).size))
    if kind == BOOL and value not in (0, 1):
        raise GgufError(f"{key}: got {value} for a boolean")
    return value if key in NUMBERS or key.endswith(OF_ARCHITECTURE) else None


def read_array(cursor: Cursor, key: str) -> Value:
    """Tokens as bytes, token types as numbers; other arrays are skipped, and empty."""
    kind, limit = cursor.number(U32), MAX_TOKENS if key in (TOKENS, TOKEN_TYPE) else MAX_STRINGS
    if kind == STRING:
        return cursor.strings(cursor.count(f"strings in {key}", limit), keep=key == TOKENS)
    layout = scalar(kind, key)  # an array of arrays ends here: the engine refuses it too
    count = cursor.count(f"elements in {key}", MAX_TOKENS if key == TOKEN_TYPE else MAX_METADATA_BYTES)
    raw = cursor.take(count * layout.size)
    return struct.unpack(f"<{count}i", raw) if key == TOKEN_TYPE and kind == I32 else None


def scalar(kind: int, key: str) -> struct.Struct:
    if kind not in SCALARS:
        raise GgufError(f"{key}: got value type {kind}, expected one of the thirteen of the specification")
    return SCALARS[kind]


def architecture_of(values: dict[str, Value]) -> str:
    found = text_of(values, "general.architecture")
    if found is None or not (found.isascii() and found.isprintable()) or not 0 < len(found) <= 64:
        raise GgufError("general.architecture is missing or not a printable name")
    return found


def text_of(values: dict[str, Value], key: str) -> str | None:
    value = values.get(key)
    if key in values and not isinstance(value, str):
        raise GgufError(f"{key} is not a string")
    return value if isinstance(value, str) else None


def number_of(values: dict[str, Value], key: str) -> int | None:
    value = values.get(key)
    if key in values and (not isinstance(value, int) or value < 0):
        raise GgufError(f"{key} is not a whole number")
    return value if isinstance(value, int) else None


def special_tokens(values: dict[str, Value]) -> tuple[str, ...]:
    """Texts of the tokens that a prompt must not be able to spell."""
    tokens, types = values.get(TOKENS), values.get(TOKEN_TYPE)
    if TOKEN_TYPE not in values:
        return ()
    if not isinstance(tokens, tuple) or not isinstance(types, tuple) or len(tokens) != len(types):
        raise GgufError(f"{TOKENS} and {TOKEN_TYPE} do not go together")
    special = [token for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    try:
        return tuple(token.decode() for token in special if isinstance(token, bytes))
    except UnicodeDecodeError as error:
        raise GgufError(f"{TOKENS}: a special token is not UTF-8") from error


def min_size(cursor: Cursor, tensors: int, alignment: int) -> int:
    """Where the last tensor ends, in bytes from the start of the file."""
    if alignment % 8 or not 0 < alignment <= 65_536:
        raise GgufError(f"general.alignment: got {alignment}, expected a multiple of 8 up to 65536")
    end = max((tensor_end(cursor, alignment) for _ in range(tensors)), default=0)
    return -(-cursor.at // alignment) * alignment + end if end else cursor.at


def tensor_end(cursor: Cursor, alignment: int) -> int:
    """Where one tensor ends, in bytes from the start of the data."""
    cursor.text("a tensor's name", MAX_KEY_BYTES)
    if (dimensions := cursor.number(U32)) > MAX_DIMENSIONS:
        raise GgufError(f"a tensor has {dimensions} dimensions, expected at most {MAX_DIMENSIONS}")
    elements = prod(cursor.number(U64) for _ in range(dimensions))
    per_block, block_bytes = BLOCKS.get(cursor.number(U32), (1, 0))
    if (offset := cursor.number(U64)) % alignment:
        raise GgufError(f"a tensor begins at {offset}, expected a multiple of {alignment}")
    return offset + elements // per_block * block_bytes
