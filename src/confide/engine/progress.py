"""How a long step tells whoever watches: the step, bytes done, bytes in all."""

from collections.abc import Callable
from typing import Literal

Step = Literal["wait", "download", "extract", "convert", "check"]  # "wait": another process holds the lock; no bytes
Progress = Callable[[Step, int, int], None]


def silent(step: Step, done_bytes: int, total_bytes: int) -> None:
    """For callers that show nothing."""
