"""What a relying party asks for on its way to a verdict, and how that is carried out: blocking, or on an event loop.

Steps are a generator. It yields a Fetch and gets a Fetched, or a Consult and gets what was Supplied, and returns what
was verified or raises VerificationError. So the order of things is written once, for both kinds of client.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from confide.errors import ConfideError
from confide.verifier.collateral import Supplied

T = TypeVar("T")


@dataclass(frozen=True)
class Fetch:
    """A document to GET. `path`: under the service's own root, with its query. `is_first`: the connection may have any
    key, and the one it had is to be told. `with_credential`: as the request had it.
    """

    path: str
    is_first: bool = False
    with_credential: bool = False


@dataclass(frozen=True)
class Fetched:
    """What came. `spki_sha256`: of the key on that very connection (32 bytes), None for plain HTTP."""

    status: int
    body: bytes
    spki_sha256: bytes | None


@dataclass(frozen=True)
class Consult:
    """Something to be got from others than the service. `run` blocks and may open connections; it raises nothing."""

    run: Callable[[], Supplied]


Steps = Generator[Fetch | Consult, Any, T]


def drive(steps: Steps[T], fetch: Callable[[Fetch], Fetched]) -> T:
    """Carry out the steps, blocking. Raises what they raise, and what `fetch` does."""
    try:
        wanted = next(steps)
        while True:
            try:
                fetched = wanted.run() if isinstance(wanted, Consult) else fetch(wanted)
            except ConfideError as error:
                wanted = steps.throw(error)
            else:
                wanted = steps.send(fetched)
    except StopIteration as done:
        result: T = done.value
        return result


async def drive_async(steps: Steps[T], fetch: Callable[[Fetch], Awaitable[Fetched]]) -> T:
    """The same on an event loop, which goes on while something is consulted."""
    try:
        wanted = next(steps)
        while True:
            try:
                found = await (asyncio.to_thread(wanted.run) if isinstance(wanted, Consult) else fetch(wanted))
            except ConfideError as error:
                wanted = steps.throw(error)
            else:
                wanted = steps.send(found)
    except StopIteration as done:
        result: T = done.value
        return result
