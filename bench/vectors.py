"""Tokens a second of the embedded embedding model: through the running service, against its engine asked without it.

The engine alone is given the token ids that the service makes of the texts, all in one request.
"""

import base64
import json
import os
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvloop

from bench.embedded import ENGINE_KEY, RATIO, service, weights_home, worker
from bench.figures import Figure, Size
from bench.load import Address, BenchFailed, ask_once, post
from bench.report import progress
from confide.config import Config
from confide.engine import catalogue, gguf
from confide.engine.supervisor import default_threads
from confide.engine.wordpiece import WordPiece
from confide.engine.worker import Settings

PATH = "/v1/embeddings"
MODEL = Config().model[1]
SENTENCE = "The keeper of the lighthouse on the northern cape writes down every ship that passes by. "
SHORT, LONG = "texts of a sentence", "texts of 300 tokens"
NEAR = 0.9999  # the engine computes in other batches, which changes the last digits


@dataclass(frozen=True)
class Run:
    """One answer: how many tokens a second, and its vectors."""

    per_second: float
    vectors: Sequence[bytes]


def measure(size: Size) -> list[Figure]:
    """Interleaved. Raises CannotTell without the weights."""
    shared = weights_home()
    kinds = {SHORT: [SENTENCE] * size.tokens, LONG: [SENTENCE * 16] * max(2, size.tokens // 16)}
    runs: dict[tuple[str, str], list[Run]] = {}
    with tempfile.TemporaryDirectory(prefix="confide-bench-") as name, service(Path(name), shared, size) as through:
        settings = engine_settings(Path(name), shared)
        tokenizer = WordPiece(gguf.read_tokens(Path(settings.model_path)))
        with worker(settings):
            for number in range(size.rounds + 1):  # the first is the warm-up
                progress(f"vectors: round {number} of {size.rounds}")
                for kind, texts in kinds.items():
                    ids = [tokenizer.encode(text, settings.context_length) for text in texts]
                    alone = run(settings.socket_path, ids)
                    mine = run(through.address, texts)
                    check_same(mine, alone)
                    runs.setdefault((kind, "service"), []).append(mine)
                    runs.setdefault((kind, "engine"), []).append(alone)
    return [figure for kind in kinds for figure in figures(kind, runs[kind, "service"][1:], runs[kind, "engine"][1:])]


def run(address: Address, input: Sequence[object]) -> Run:
    """One request. Raises BenchFailed when the answer is not whole."""
    body = msgspec.json.encode({"model": MODEL.id, "input": input, "encoding_format": "base64"})
    answer = uvloop.run(ask_once(address, post(body, key=ENGINE_KEY, path=PATH)))
    if answer.status != 200:
        raise BenchFailed(f"status {answer.status}: {answer.body[-200:]!r}")
    document = json.loads(answer.body)
    vectors = [base64.b64decode(each["embedding"]) for each in document["data"]]
    return Run(document["usage"]["total_tokens"] / answer.latency_s, vectors)


def check_same(mine: Run, alone: Run) -> None:
    """Raises BenchFailed when the vectors differ: then it is not the same work."""
    if len(mine.vectors) != len(alone.vectors):
        raise BenchFailed(f"{len(mine.vectors)} vectors, expected {len(alone.vectors)}")
    for one, other in zip(mine.vectors, alone.vectors, strict=True):
        if cosine(one, other) < NEAR:
            raise BenchFailed("the vectors differ")


def cosine(one: bytes, other: bytes) -> float:
    """Of two packed vectors of length 1."""
    pairs = zip(*(struct.unpack(f"<{len(each) // 4}f", each) for each in (one, other)), strict=True)
    return float(sum(x * y for x, y in pairs))


def figures(kind: str, service: list[Run], engine: list[Run]) -> list[Figure]:
    """The ratio of each round, then both."""
    ratios = [mine.per_second / alone.per_second for mine, alone in zip(service, engine, strict=True)]
    return [
        Figure.of(f"embedding model, {kind}, tokens/s: service / engine alone", ratios, "×", RATIO),
        Figure.of(f"embedding model, {kind}: through the service", [run.per_second for run in service], "tokens/s"),
        Figure.of(f"embedding model, {kind}: engine alone", [run.per_second for run in engine], "tokens/s"),
    ]


def engine_settings(directory: Path, shared: Path) -> Settings:
    """What the service gives its engine for this model under the default configuration."""
    config, installed = Config(), catalogue.find(shared, MODEL.weights)
    context = gguf.read_metadata(installed.path).context_length or config.engine.context_length
    return Settings(
        model_path=str(installed.path),
        socket_path=str(directory / "vectors.sock"),
        api_key=ENGINE_KEY,
        slots=config.engine.slots,
        context_length=context,
        batch=context,
        threads=config.engine.threads or default_threads(os.cpu_count()),
        alias=MODEL.id,
        is_embedding=True,
    )
