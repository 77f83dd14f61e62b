"""Tokens a second of the embedded model: through the running service, against its engine spoken to without it."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvloop

from bench.figures import Budget, Figure, Size
from bench.load import Address, Answer, BenchFailed, ask_once, post
from bench.processes import CONFIDE, ENDS_WITHIN_S, READY, REPOSITORY, confide_environment
from bench.report import progress
from confide.cli.progress import reporting
from confide.config import Config
from confide.engine import catalogue, gguf, pull
from confide.engine.facts import EngineFacts
from confide.engine.shaping import plan
from confide.engine.special import special_pattern
from confide.engine.supervisor import default_threads, worker_environment
from confide.engine.worker import Settings
from confide.gateway.engines import template_for
from confide.protocol.chat import parse_chat

RATIO = Budget(0.97, at_least=True)
ENGINE_KEY = "engine-key"
STORY = "Tell a long story about a lighthouse keeper, a storm and a ship, in as many words as you can."


@dataclass(frozen=True)
class Run:
    """One answer: its tokens, how many of them a second, and its text."""

    tokens: int
    per_second: float
    text: str


@dataclass(frozen=True)
class Speaker:
    """Where to ask, and the request as bytes."""

    name: str
    address: Address
    request: bytes

    async def ask(self) -> Run:
        """One stream, from the request to the last byte. Raises BenchFailed when it is not whole."""
        answer = await ask_once(self.address, self.request)
        tokens = counted(answer)
        return Run(tokens, tokens / answer.latency_s, answer.text(stream=True))


def counted(answer: Answer) -> int:
    """`completion_tokens` of a stream's usage."""
    for event in answer.events():
        if event.get("usage"):
            return int(event["usage"]["completion_tokens"])
    raise BenchFailed(f"status {answer.status}, a stream without usage: {answer.body[-200:]!r}")


def measure(size: Size) -> list[Figure]:
    """Interleaved; the same request, so that both write the same text. Raises CannotTell without the weights."""
    shared = weights_home()
    runs: dict[str, list[Run]] = {"service": [], "engine": []}
    with (
        tempfile.TemporaryDirectory(prefix="confide-bench-") as name,
        service(Path(name), shared, size) as through,
        engine(Path(name), shared, size) as alone,
    ):
        for number in range(size.rounds + 1):  # the first is the warm-up
            progress(f"embedded: round {number} of {size.rounds}")
            for speaker in (alone, through):
                runs[speaker.name].append(uvloop.run(speaker.ask()))
    check_same([run for name in runs for run in runs[name]])
    return figures(runs["service"][1:], runs["engine"][1:])


def figures(service: list[Run], engine: list[Run]) -> list[Figure]:
    """The ratio of each round, then both."""
    pairs = zip(service, engine, strict=True)
    return [
        Figure.of(
            "embedded model, tokens/s: service / engine alone",
            [mine.per_second / alone.per_second for mine, alone in pairs],
            "×",
            RATIO,
        ),
        Figure.of("embedded model: through the service", [run.per_second for run in service], "tokens/s"),
        Figure.of("embedded model: engine alone", [run.per_second for run in engine], "tokens/s"),
    ]


def check_same(runs: list[Run]) -> None:
    """Raises BenchFailed when two answers differ: then they are not the same work."""
    if len({(run.tokens, run.text) for run in runs}) != 1:
        raise BenchFailed(f"the answers differ: {sorted({run.tokens for run in runs})} tokens")


def weights_home() -> Path:
    """A state directory that holds the weights: CONFIDE_TEST_HOME, or one kept in the repository; fetched once."""
    home = Path(os.environ.get("CONFIDE_TEST_HOME") or REPOSITORY / ".cache" / "confide-test-home")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / ".gitignore").write_text("*\n")
    with reporting() as shown:
        for weights in catalogue.PINNED:  # the service loads both
            pull.install(home, weights, shown)
    return home


def story(model: str, size: Size) -> bytes:
    """The body of the client's request."""
    return msgspec.json.encode(
        {
            "model": model,
            "messages": [{"role": "user", "content": STORY}],
            "max_tokens": size.tokens,
            "temperature": 0,
            "seed": 1,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )


@contextlib.contextmanager
def service(directory: Path, shared: Path, size: Size) -> Iterator[Speaker]:
    """`confide serve` as a user runs it, with the default configuration."""
    home = directory / "home"
    home.mkdir(mode=0o700)
    (home / "models").symlink_to((shared / "models").resolve())
    command = [*CONFIDE, "serve", "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=confide_environment(home)
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline().decode()
        if not line.startswith(READY):
            raise BenchFailed("`confide serve` did not start; run it by hand to see why")
        yield Speaker("service", int(line.rsplit(":", 1)[1]), post(story(Config().model[0].id, size)))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(ENDS_WITHIN_S)
        process.stdout.close()


@contextlib.contextmanager
def engine(directory: Path, shared: Path, size: Size) -> Iterator[Speaker]:
    """The engine's process as the service starts it, asked what the gateway asks it."""
    settings = engine_settings(directory, shared)
    with worker(settings):
        yield Speaker("engine", settings.socket_path, post(engine_body(shared, size), key=ENGINE_KEY))


@contextlib.contextmanager
def worker(settings: Settings) -> Iterator[None]:
    """The engine's process with one model, ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "confide.engine.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=worker_environment(),
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode([settings]) + b"\n")
        process.stdin.flush()
        if process.stdout.readline() != b"ready\n":
            raise BenchFailed("the engine did not start")
        yield
    finally:
        process.kill()
        process.communicate()


def engine_settings(directory: Path, shared: Path) -> Settings:
    """What the service gives its engine under the default configuration."""
    config = Config()
    installed = catalogue.find(shared, config.model[0].weights)
    metadata = gguf.read_metadata(installed.path)
    return Settings(
        model_path=str(installed.path),
        socket_path=str(directory / "alone.sock"),
        api_key=ENGINE_KEY,
        slots=config.engine.slots,
        context_length=min(config.engine.context_length, metadata.context_length or config.engine.context_length),
        batch=config.engine.batch,
        threads=config.engine.threads or default_threads(os.cpu_count()),
        template=template_for(installed, metadata),
        alias=config.model[0].id,
    )


def engine_body(shared: Path, size: Size) -> bytes:
    """What the gateway makes of the client's request."""
    metadata = gguf.read_metadata(catalogue.find(shared, Config().model[0].weights).path)
    facts = EngineFacts(special_pattern(metadata.special_tokens))
    return msgspec.json.encode(plan(parse_chat(story(Config().model[0].id, size)), facts).bodies[0])
