"""One measured figure, its spread over the rounds, and its budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, Self

Unit = Literal["×", "µs", "ms", "KiB", "MiB", "tokens/s", "/s", "of 1", "%"]


@dataclass(frozen=True)
class Budget:
    """The limit of a figure, from above, or from below for what should be large."""

    limit: float
    at_least: bool = False

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


@dataclass(frozen=True)
class Figure:
    """A median with the least and the greatest of its rounds."""

    name: str
    value: float
    least: float
    greatest: float
    unit: Unit
    budget: Budget | None = None
    target: str = ""  # whose it is, where the same is measured of several

    @classmethod
    def of(
        cls, name: str, rounds: Sequence[float], unit: Unit, budget: Budget | None = None, *, target: str = ""
    ) -> Self:
        """The figure over its rounds, at least one."""
        return cls(name, median(rounds), min(rounds), max(rounds), unit, budget, target)

    @property
    def is_met(self) -> bool | None:
        """None where there is no budget."""
        return None if self.budget is None else self.budget.is_met(self.value)

    @property
    def rank(self) -> int:
        """Ratios first, then other budgets, then what explains them."""
        if self.unit == "×":
            return 0
        return 2 if self.budget is None else 1


@dataclass(frozen=True)
class Skipped:
    """A bench that could not run here, and why."""

    bench: str
    reason: str


@dataclass(frozen=True)
class Size:
    """How much is measured: the full run, or as little as shows that everything works."""

    rounds: int
    requests: int  # of each case, round and target; a quarter of it on one connection
    open_streams: int
    paced_streams: int
    interval_s: float  # between two tokens of a paced stream
    imports: int
    tokens: int
    connections: tuple[int, ...] = (1, 32, 256)  # in front of an upstream
    million: int = 1_000_000
    within_s: float = 3600.0  # after which the million stops early


FULL = Size(rounds=5, requests=2400, open_streams=500, paced_streams=1000, interval_s=0.2, imports=9, tokens=256)
QUICK = Size(
    rounds=2,
    requests=64,
    open_streams=20,
    paced_streams=20,
    interval_s=0.002,
    imports=2,
    tokens=16,
    connections=(1, 32),
    million=1000,
)
