"""Writes a RANDOM image projector: it proves plumbing, never that a model sees anything.

A LLaVA-style projector (CLIP tower of one block, then a two-layer MLP) whose weights are drawn from a fixed seed. The
engine loads it beside SmolLM2 and turns an image of any size into 16 positions of noise, so whatever the model then
says of an image is nonsense by construction. The file says so in its own metadata.
"""

import array
import random
import struct
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path

from gguf_writer import ARRAY, BOOL, FLOAT, STRING, U32, Typed, encode, string

NAME = "RANDOM projector: plumbing test, not a model"
SMOLLM2_WIDTH = 576
IMAGE_SIDE, PATCH_SIDE = 64, 16
PATCHES = (IMAGE_SIDE // PATCH_SIDE) ** 2
WIDTH, HIDDEN = 32, 64
ALIGNMENT = 32
F32 = 0  # GGML type
SEED = 20260101


def floats(*values: float) -> Typed:
    return Typed(ARRAY, (FLOAT, values))


def pairs(text_width: int) -> dict[str, Typed]:
    """The metadata that llama.cpp's image code asks for."""
    return {
        "general.architecture": Typed(STRING, "clip"),
        "general.name": Typed(STRING, NAME),
        "general.description": Typed(STRING, "Weights are pseudo-random numbers. Answers about images are noise."),
        "clip.has_vision_encoder": Typed(BOOL, 1),
        "clip.projector_type": Typed(STRING, "mlp"),
        "clip.use_gelu": Typed(BOOL, 1),
        "clip.vision.image_size": Typed(U32, IMAGE_SIDE),
        "clip.vision.patch_size": Typed(U32, PATCH_SIDE),
        "clip.vision.embedding_length": Typed(U32, WIDTH),
        "clip.vision.feed_forward_length": Typed(U32, HIDDEN),
        "clip.vision.block_count": Typed(U32, 1),
        "clip.vision.attention.head_count": Typed(U32, 2),
        "clip.vision.attention.layer_norm_epsilon": Typed(FLOAT, 1e-5),
        "clip.vision.projection_dim": Typed(U32, text_width),
        "clip.vision.image_mean": floats(0.5, 0.5, 0.5),
        "clip.vision.image_std": floats(0.5, 0.5, 0.5),
    }


def shapes(text_width: int) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes, the fastest dimension first, as GGUF orders them."""
    matrices = {
        "v.blk.0.attn_q": (WIDTH, WIDTH),
        "v.blk.0.attn_k": (WIDTH, WIDTH),
        "v.blk.0.attn_v": (WIDTH, WIDTH),
        "v.blk.0.attn_out": (WIDTH, WIDTH),
        "v.blk.0.ffn_up": (WIDTH, HIDDEN),
        "v.blk.0.ffn_down": (HIDDEN, WIDTH),
        "mm.0": (WIDTH, text_width),
        "mm.2": (text_width, text_width),
    }
    norms = ("v.pre_ln", "v.blk.0.ln1", "v.blk.0.ln2")
    return {
        "v.class_embd": (WIDTH,),
        "v.patch_embd.weight": (PATCH_SIDE, PATCH_SIDE, 3, WIDTH),
        "v.position_embd.weight": (WIDTH, PATCHES + 1),
        **{f"{name}.weight": shape for name, shape in matrices.items()},
        **{f"{name}.bias": shape[1:] for name, shape in matrices.items()},
        **{f"{name}.{kind}": (WIDTH,) for name in norms for kind in ("weight", "bias")},
    }


def size_of(shape: tuple[int, ...]) -> int:
    """Bytes of an F32 tensor, padded to the alignment of the file."""
    count = 1
    for length in shape:
        count *= length
    return -(-count * 4 // ALIGNMENT) * ALIGNMENT


def noise(size: int, draw: random.Random) -> bytes:
    """So many bytes of small little-endian floats."""
    values = array.array("f", (draw.uniform(-0.1, 0.1) for _ in range(size // 4)))
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def directory(tensors: Mapping[str, tuple[int, ...]]) -> bytes:
    """The tensor table: name, shape, type, and where the data begins."""
    entries, offset = [], 0
    for name, shape in tensors.items():
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        entries.append(string(name) + dimensions + struct.pack("<IQ", F32, offset))
        offset += size_of(shape)
    return b"".join(entries)


def random_projector(text_width: int = SMOLLM2_WIDTH) -> bytes:
    """A GGUF file of about 1.7 MB that fits a text model of this width; the same bytes each time."""
    metadata, tensors = pairs(text_width), shapes(text_width)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(
        string(key) + struct.pack("<I", typed.kind) + encode(typed.kind, typed.value) for key, typed in metadata.items()
    )
    head += directory(tensors)
    draw = random.Random(SEED)
    return head + bytes(-len(head) % ALIGNMENT) + b"".join(noise(size_of(shape), draw) for shape in tensors.values())


def write_random_projector(path: Path, text_width: int = SMOLLM2_WIDTH) -> Path:
    """Write the RANDOM projector to `path`."""
    path.write_bytes(random_projector(text_width))
    return path


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int = 8, height: int = 8, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    """A PNG of one colour: 8-bit RGB, no filter (PNG specification, 11.2)."""
    rows = (b"\0" + bytes(colour) * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )
