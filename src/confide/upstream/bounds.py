"""What the connections of a channel are held to."""

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits in seconds, each with its own `Stalled.phase`.

    `first_byte_s` runs from the request to the first byte of the body, as engines send their headers before they think.
    `idle_s` is the longest silence after that; it stands still while the caller is slow to read. `total_s` runs from
    `send` to the end of the body.
    """

    connect_s: float = 5.0
    first_byte_s: float = 120.0
    idle_s: float = 60.0
    total_s: float | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What every connection of a channel is held to. Seconds and bytes."""

    timeouts: Timeouts
    idle_expiry_s: float
    max_header_bytes: int

    @property
    def shortest_s(self) -> float:
        """The shortest time after which something may have to end."""
        limits = self.timeouts
        return min(limits.first_byte_s, limits.idle_s, limits.total_s or inf, self.idle_expiry_s)
