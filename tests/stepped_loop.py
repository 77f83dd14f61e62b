"""An event loop that a test moves through time."""

import asyncio


class SteppedLoop(asyncio.SelectorEventLoop):
    """Its clock stands still until `now` is set."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def settle(self) -> None:
        """Run until all that can happen now has happened."""
        for _ in range(6):
            self.run_until_complete(asyncio.sleep(0))
