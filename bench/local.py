"""What Confide costs in front of an engine that speaks OpenAI's API (`kind = "local"`), over two floors, interleaved.

The raw relay only passes bytes on, and the budgets are ratios to it. The relay that proves also does what every proof
takes, so the ratio to it is what is left to be saved without proving less.
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack

import uvloop

from bench.answers import LONG, SHORT, WHOLE, question
from bench.figures import Budget, Figure, Size
from bench.load import ask_once, post
from bench.overhead import ADDED_MS, RATIO, Case, Sample, sample
from bench.processes import Stage, Target, stage
from bench.report import progress

CONFIDE, RAW, PROVING = "Confide", "raw relay", "relay that proves"
KINDS = (("buffered", SHORT, False, 1), ("50-chunk stream", WHOLE, True, 1), ("1,000-chunk stream", LONG, True, 20))
BUDGETED = ("buffered", "50-chunk stream")

Samples = dict[tuple[Case, str], list[Sample]]


def measure(size: Size) -> list[Figure]:
    """All kinds of answers on all numbers of connections."""
    samples: Samples = defaultdict(list)
    cases = cases_of(size)
    with ExitStack() as closing:
        scripted = closing.enter_context(stage())
        targets = opened(scripted, closing)
        for number in range(size.rounds):
            progress(f"local: round {number + 1} of {size.rounds}")
            take_round(samples, cases, targets, scripted, size.requests)
    return [figure for case in cases for figure in figures(case, samples)]


def cases_of(size: Size) -> list[Case]:
    """Every kind, on few connections first."""
    return [
        Case(kind, scene, stream, connections, weight)
        for kind, scene, stream, weight in KINDS
        for connections in size.connections
    ]


def opened(scripted: Stage, closing: ExitStack) -> list[Target]:
    """Both floors and the service."""
    return [
        closing.enter_context(scripted.relay(RAW, scripted.port)),
        closing.enter_context(scripted.relay(PROVING, scripted.port, "bench.proving")),
        closing.enter_context(scripted.local()),
    ]


def take_round(
    samples: Samples, cases: Sequence[Case], targets: Sequence[Target], scripted: Stage, requests: int
) -> None:
    """One sample of each case and target."""
    for case in cases:
        request = post(question(case.scene, stream=case.stream))
        spoken = uvloop.run(ask_once(scripted.port, request)).comparable
        for target in targets:
            expected = None if target.rewrites else spoken
            samples[case, target.name].append(uvloop.run(sample(target, case, case.count(requests), expected)))


def figures(case: Case, samples: Samples) -> list[Figure]:
    """Of each round, Confide against both floors; then what they are made of, target by target."""
    mine, raw, proving = (samples[case, name] for name in (CONFIDE, RAW, PROVING))
    is_budgeted = case.kind in BUDGETED and case.connections > 1
    found = [
        ratio(f"local, CPU a request, Confide / raw relay: {case}", mine, raw, RATIO if is_budgeted else None),
        ratio(f"local, CPU a request, Confide / relay that proves: {case}", mine, proving),
    ]
    if case.connections == 1:
        added_ms = [own.median_ms - least.median_ms for own, least in zip(mine, raw, strict=True)]
        budget = ADDED_MS if case.kind in BUDGETED else None
        found.append(Figure.of(f"local, added median latency over the raw relay: {case}", added_ms, "ms", budget))
    for name in (RAW, PROVING, CONFIDE):
        found += described(case, name, samples[case, name])
    return found


def ratio(name: str, above: list[Sample], below: list[Sample], budget: Budget | None = None) -> Figure:
    """CPU of one over CPU of the other, round by round."""
    values = [one.cpu_us / other.cpu_us for one, other in zip(above, below, strict=True)]
    return Figure.of(name, values, "×", budget)


def described(case: Case, target: str, samples: list[Sample]) -> list[Figure]:
    """What one target took."""
    return [
        Figure.of(f"{case}: CPU", [each.cpu_us for each in samples], "µs", target=target),
        Figure.of(f"{case}: median latency", [each.median_ms for each in samples], "ms", target=target),
        Figure.of(f"{case}: p99 latency", [each.p99_ms for each in samples], "ms", target=target),
    ]
