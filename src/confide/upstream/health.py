"""Whether an upstream serves, told from what its traffic and its probes show (what-users-ask 20).

    serving ──(several failures in a row)──▶ left alone ──(after a while, one request or probe)──▶ serving, or not

A 429 or 503 with `Retry-After` rests it for as long as it asks. Belongs to one event loop.
"""

from collections.abc import Callable

FAILURES_MOST = 5
ALONE_S = 5.0
ALONE_MOST_S = 60.0
REST_MOST_S = 60.0


class Health:
    """`now`: any clock in seconds that only goes forward."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._failures = 0
        self._alone_s = ALONE_S
        self._alone_until: float | None = None  # None: it serves, as far as is known
        self._rests_until = now()
        self.heard_at = now()  # when it last answered at all

    @property
    def is_left_alone(self) -> bool:
        """Whether it has failed so often that only one request at a time is risked."""
        return self._alone_until is not None

    def is_available(self) -> bool:
        """Whether a request may be sent to it."""
        now = self._now()
        return now >= self._rests_until and (self._alone_until is None or now >= self._alone_until)

    def available_in_s(self) -> float:
        """Seconds until it may be asked again."""
        return max(0.0, self._rests_until - self._now(), (self._alone_until or 0.0) - self._now())

    def tried(self) -> None:
        """A request is on its way: while it was left alone, no other follows until that one has ended or is old."""
        if self._alone_until is not None:
            self._alone_until = self._now() + self._alone_s

    def succeeded(self) -> None:
        """It answered well."""
        self._failures, self._alone_s, self._alone_until = 0, ALONE_S, None
        self.heard_at = self._now()

    def failed(self) -> None:
        """It could not be reached, broke off, or says that the fault is its own."""
        self._failures += 1
        if self._alone_until is not None:
            self._alone_s = min(2 * self._alone_s, ALONE_MOST_S)
        if self._failures >= FAILURES_MOST:
            self._alone_until = self._now() + self._alone_s

    def refused(self, status: int, retry_after_s: int | None) -> None:
        """It answered, and did not serve."""
        self.heard_at = self._now()
        if retry_after_s is not None:
            self._rests_until = self._now() + min(retry_after_s, REST_MOST_S)
        elif status >= 500:
            self.failed()
