"""What the service costs over the raw relay: CPU and latency a request, buffered and streamed, interleaved."""

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median, quantiles

import uvloop

from bench.answers import SHORT, WHOLE, expected_text, question
from bench.figures import Budget, Figure, Size
from bench.load import BenchFailed, ask_once, closed_loop, connect, post
from bench.processes import Target, stage
from bench.report import progress

RATIO = Budget(2.0)
ADDED_MS = Budget(0.4)
WARM_UP = 64


@dataclass(frozen=True)
class Case:
    """A kind of answer on a number of connections."""

    kind: str
    scene: str
    stream: bool
    connections: int

    def __str__(self) -> str:
        return f"{self.kind}, {self.connections} connection{'s' if self.connections > 1 else ''}"


CASES = [
    Case("buffered", SHORT, False, 32),
    Case("50-chunk stream", WHOLE, True, 32),
    Case("buffered", SHORT, False, 1),
    Case("50-chunk stream", WHOLE, True, 1),
]


@dataclass(frozen=True)
class Sample:
    """One round of one case on one target: CPU µs a request, latencies in ms."""

    cpu_us: float
    median_ms: float
    p99_ms: float


def measure(size: Size) -> list[Figure]:
    """The figures of all cases."""
    samples: dict[tuple[Case, str], list[Sample]] = defaultdict(list)
    with ExitStack() as closing:
        scripted = closing.enter_context(stage())
        targets = [closing.enter_context(scripted.floor()), closing.enter_context(scripted.service())]
        for number in range(size.rounds):
            for case in CASES:
                progress(f"overhead: round {number + 1} of {size.rounds}, {case}")
                count = size.requests if case.connections > 1 else size.requests // 4
                for target in targets:
                    samples[case, target.name].append(uvloop.run(sample(target, case, count)))
    return [figure for case in CASES for figure in figures(case, samples[case, "floor"], samples[case, "service"])]


async def sample(target: Target, case: Case, count: int) -> Sample:
    """Ask one target so many times. Raises BenchFailed for a wrong answer."""
    request = post(question(case.scene, stream=case.stream), key=target.key)
    reference = await ask_once(target.address, request)
    if reference.text(stream=case.stream) != expected_text(case.scene):
        raise BenchFailed(f"{target.name}, {case}: not what the engine said")
    connections = await connect(target.address, case.connections)
    await closed_loop(connections, request, WARM_UP, reference.comparable)
    before_s = target.cpu_s()
    latencies = await closed_loop(connections, request, count, reference.comparable)
    cpu_us = (target.cpu_s() - before_s) / count * 1e6
    for connection in connections:
        connection.close()
    return Sample(cpu_us, median(latencies) * 1e3, quantiles(latencies, n=100)[98] * 1e3)


def figures(case: Case, floor: list[Sample], service: list[Sample]) -> list[Figure]:
    """Of each round, service against floor; then what both are made of."""
    pairs = list(zip(floor, service, strict=True))
    found = [
        Figure.of(
            f"CPU a request, service / floor: {case}",
            [mine.cpu_us / least.cpu_us for least, mine in pairs],
            "×",
            RATIO if case.connections > 1 else None,
        )
    ]
    if case.connections == 1:
        added_ms = [mine.median_ms - least.median_ms for least, mine in pairs]
        found.append(Figure.of(f"added median latency: {case}", added_ms, "ms", ADDED_MS))
    for name, samples in (("floor", floor), ("service", service)):
        found += [
            Figure.of(f"{case}: {name}, CPU", [each.cpu_us for each in samples], "µs"),
            Figure.of(f"{case}: {name}, median latency", [each.median_ms for each in samples], "ms"),
            Figure.of(f"{case}: {name}, p99 latency", [each.p99_ms for each in samples], "ms"),
        ]
    return found
