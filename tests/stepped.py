"""A loop whose clock is the test's: nothing waits, and what time would do is done when the test says so."""

import asyncio


class SteppedLoop(asyncio.SelectorEventLoop):
    """A loop whose clock stands still until it is moved."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def settle(self) -> None:
        """Run until all that can happen now has happened."""
        for _ in range(6):
            self.run_until_complete(asyncio.sleep(0))
