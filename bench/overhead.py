"""What the service costs over the raw relay on the embedded engine's path, buffered and streamed, interleaved."""

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median, quantiles

import uvloop

from bench.answers import SHORT, WHOLE, expected_text, question
from bench.figures import Budget, Figure, Size
from bench.load import BenchFailed, ask_once, check, closed_loop, connect, post
from bench.processes import Target, stage
from bench.report import progress

RATIO = Budget(2.0)
ADDED_MS = Budget(0.4)
WARM_UP = 64
LEAST = 4  # of which quantiles can be taken


@dataclass(frozen=True)
class Case:
    """A kind of answer on a number of connections."""

    kind: str
    scene: str
    stream: bool
    connections: int
    weight: int = 1  # a heavier one is asked for less often

    def __str__(self) -> str:
        return f"{self.kind}, {self.connections} connection{'s' if self.connections > 1 else ''}"

    def count(self, requests: int) -> int:
        """How many to ask for in a round: at least one on each connection."""
        fewer = self.weight * (1 if self.connections > 1 else 4)
        return max(requests // fewer, self.connections, LEAST)

    @property
    def warm_up(self) -> int:
        """Enough that each connection has been used."""
        return max(WARM_UP // self.weight, self.connections)


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
        targets = [
            closing.enter_context(scripted.relay("floor", scripted.engine)),
            closing.enter_context(scripted.service()),
        ]
        for number in range(size.rounds):
            for case in CASES:
                progress(f"overhead: round {number + 1} of {size.rounds}, {case}")
                for target in targets:
                    samples[case, target.name].append(uvloop.run(sample(target, case, case.count(size.requests))))
    return [figure for case in CASES for figure in figures(case, samples[case, "floor"], samples[case, "service"])]


async def sample(target: Target, case: Case, count: int, spoken: bytes | None = None) -> Sample:
    """Ask one target so many times. `spoken`: what the engine answers, where that is to pass byte for byte.

    Raises BenchFailed for a wrong answer.
    """
    request = post(question(case.scene, stream=case.stream), key=target.key, headers=target.headers)
    reference = await ask_once(target.address, request)
    if reference.text(stream=case.stream) != expected_text(case.scene, stream=case.stream):
        raise BenchFailed(f"{target.name}, {case}: not what the engine said")
    if spoken is not None:
        check(reference, spoken)
    await warm_up(target, case, request, reference.comparable)
    connections = await connect(target.address, case.connections)
    before_s = target.cpu_s()
    latencies = await closed_loop(connections, request, count, reference.comparable)
    cpu_us = (target.cpu_s() - before_s) / count * 1e6
    for connection in connections:
        connection.close()
    return Sample(cpu_us, median(latencies) * 1e3, quantiles(latencies, n=100)[98] * 1e3)


async def warm_up(target: Target, case: Case, request: bytes, expected: bytes) -> None:
    """On connections of its own: a slow server closes those that wait for the last answer."""
    connections = await connect(target.address, case.connections)
    await closed_loop(connections, request, case.warm_up, expected)
    for connection in connections:
        connection.close()


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
