"""The head of a safetensors file, read forward and bounded; what follows it are the tensors' bytes, end to end.

u64 length of the head, little-endian
the head: one JSON object, name -> {"dtype", "shape", "data_offsets": [begin, end]}, and "__metadata__"
the data; offsets count from its first byte
"""

import math
import struct
from typing import IO, Final

import msgspec

from confide.errors import ConfigError

LENGTH: Final = struct.Struct("<Q")
MAX_HEAD_BYTES = 8 * 1024 * 1024
METADATA = "__metadata__"
ELEMENT_BYTES: Final = {"F32": 4, "I64": 8}  # of the files that are converted here


class SafetensorsError(ConfigError):
    """The file is not safetensors as far as it is read here."""


class Tensor(msgspec.Struct, frozen=True):
    """One tensor. `shape`: slowest dimension first. `begin`, `end`: bytes from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Described(msgspec.Struct, frozen=True):
    """What the head says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_head(source: IO[bytes]) -> list[Tensor]:
    """The tensors in the order of their bytes, leaving `source` at the first of them. Raises SafetensorsError.

    They follow each other without gap or overlap, and each has as many bytes as its shape needs.
    """
    length = LENGTH.unpack(exactly(source, LENGTH.size))[0]
    if length > MAX_HEAD_BYTES:
        raise SafetensorsError(f"the head has {length} bytes, expected at most {MAX_HEAD_BYTES}")
    try:
        members = msgspec.json.decode(exactly(source, length), type=dict[str, msgspec.Raw])
        described = {
            name: msgspec.json.decode(member, type=Described) for name, member in members.items() if name != METADATA
        }
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SafetensorsError("the head does not describe tensors") from error
    tensors = [Tensor(name, each.dtype, each.shape, *each.data_offsets) for name, each in described.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    end = 0
    for tensor in tensors:
        check(tensor, end)
        end = tensor.end
    return tensors


def check(tensor: Tensor, begin: int) -> None:
    """That it begins where the one before ended, and has the size of its shape. Raises SafetensorsError."""
    size = ELEMENT_BYTES.get(tensor.dtype, 0) * math.prod(tensor.shape)
    if min(tensor.shape, default=1) < 1 or not size:
        raise SafetensorsError(f"a tensor of type {tensor.dtype[:8]!r}, expected one of {', '.join(ELEMENT_BYTES)}")
    if (tensor.begin, tensor.end) != (begin, begin + size):
        raise SafetensorsError(f"a tensor at bytes {tensor.begin} to {tensor.end}, expected {begin} to {begin + size}")


def exactly(source: IO[bytes], size: int) -> bytes:
    """The next `size` bytes. Raises SafetensorsError where there are fewer."""
    data = source.read(size)
    if len(data) != size:
        raise SafetensorsError("the file ends before it should")
    return data
