"""What several worker processes bring: one and two of them in front of the same engine (`kind = "local"`), interleaved.

Load and scripted engine need processor time too. On a machine with more cores than workers plus two each has its own;
on fewer they compete with the workers for all there are, and then the throughput that two workers reach is bounded by
what is left: `bound` is the cores over all that one request costs, of the service, the load and the engine together.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import uvloop

from bench.answers import SHORT, WHOLE, question
from bench.figures import Figure, Size
from bench.load import ask_once, closed_loop, connect, post
from bench.overhead import Case
from bench.processes import CORES, Stage, Target, stage
from bench.report import progress

CASES = (Case("buffered", SHORT, False, 32), Case("50-chunk stream", WHOLE, True, 32))
WORKERS = (1, 2)
LONGER = 4  # than for CPU alone: throughput needs time to mean anything


@dataclass(frozen=True)
class Sample:
    """One round: requests a second; CPU µs a request of the service, and of load and engine; the bound, see above."""

    rate: float
    cpu_us: float
    around_us: float

    @property
    def bound(self) -> float:
        return len(CORES) * 1e6 / (self.cpu_us + self.around_us)


Samples = dict[tuple[Case, int], list[Sample]]


def measure(size: Size) -> list[Figure]:
    """Every case with every number of workers, all on all cores."""
    samples: Samples = defaultdict(list)
    with ExitStack() as closing:
        scripted = closing.enter_context(stage(core=CORES))
        targets = {
            workers: closing.enter_context(scripted.local("--workers", str(workers), name=named(workers), core=CORES))
            for workers in WORKERS
        }
        for number in range(size.rounds):
            progress(f"workers: round {number + 1} of {size.rounds}")
            for case in CASES:
                for workers, target in targets.items():
                    samples[case, workers].append(
                        uvloop.run(sample(target, scripted, case, case.count(LONGER * size.requests)))
                    )
    return [figure for case in CASES for figure in figures(case, samples)]


def named(workers: int) -> str:
    return f"{workers} worker{'s' if workers > 1 else ''}"


async def sample(target: Target, scripted: Stage, case: Case, count: int) -> Sample:
    """Ask so many times, after as many connections as are asked for were opened. Raises BenchFailed."""
    request = post(question(case.scene, stream=case.stream), key=target.key)
    expected = (await ask_once(target.address, request)).comparable
    connections = await connect(target.address, case.connections)
    await closed_loop(connections, request, case.warm_up, expected)
    before_s, around_s, began_s = target.cpu_s(), around(scripted), time.perf_counter()
    await closed_loop(connections, request, count, expected)
    took_s = time.perf_counter() - began_s
    cpu_us = (target.cpu_s() - before_s) / count * 1e6
    around_us = (around(scripted) - around_s) / count * 1e6
    for connection in connections:
        connection.close()
    return Sample(count / took_s, cpu_us, around_us)


def around(scripted: Stage) -> float:
    """CPU seconds of this process, which is the load, and of the scripted engine."""
    return time.process_time() + time.clock_gettime((~scripted.pid << 3) | 2)


def figures(case: Case, samples: Samples) -> list[Figure]:
    """Two workers over one, round by round; then what that is made of."""
    one, two = (samples[case, workers] for workers in WORKERS)
    cores = f"{len(CORES)} cores for all"
    found = [
        Figure.of(f"requests a second, 2 workers / 1: {case}, {cores}", each(one, two, "rate"), "×"),
        Figure.of(f"CPU a request, 2 workers / 1: {case}", each(one, two, "cpu_us"), "×"),
        Figure.of(f"requests a second, 2 workers / what {cores} allow: {case}", of_bound(two), "×"),
    ]
    for workers in WORKERS:
        taken = samples[case, workers]
        found += [
            Figure.of(f"{case}: requests a second", [s.rate for s in taken], "/s", target=named(workers)),
            Figure.of(f"{case}: CPU", [s.cpu_us for s in taken], "µs", target=named(workers)),
            Figure.of(f"{case}: CPU of load and engine", [s.around_us for s in taken], "µs", target=named(workers)),
        ]
    return found


def each(below: Sequence[Sample], above: Sequence[Sample], name: str) -> list[float]:
    return [float(getattr(a, name) / getattr(b, name)) for b, a in zip(below, above, strict=True)]


def of_bound(samples: Sequence[Sample]) -> list[float]:
    return [sample.rate / sample.bound for sample in samples]
