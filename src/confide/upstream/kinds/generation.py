"""Several generations of the embedded engine, driven side by side: one engine request a choice.

Whatever way they end, each exchange with the engine is closed at once and its slot given back.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

import msgspec

from confide.engine.answer import Choice, Delta, EngineError, EngineEvent, LeftGrammar
from confide.errors import InvalidRequest, UpstreamFailed, WireError
from confide.upstream.base import Tally

STEPS_AHEAD = 64  # of several choices, while the client is slow to read
NOT_HELD = "the model could not hold to the requested form; try again, or ask for a simpler one"
ENDED_EARLY = "the model stopped before the end of its answer; try again"

Step = tuple[Choice, list[Delta]]
Steps = AsyncGenerator[Step, None]
EngineBody = dict[str, object]


class Engine(Protocol):
    """Where generations run."""

    def events(
        self, path: bytes, body: EngineBody, begin: Callable[[], None], *, param: str
    ) -> AsyncGenerator[list[EngineEvent], None]:
        """The engine's events for one request, as many as each read brings. Raises WireError, which names `param` where
        the prompt is at fault; closing it frees the slot at once. `begin` is called before the engine gets the first
        byte.
        """


class Generation:
    """One engine request for each choice. `param`: the member that holds the prompt."""

    def __init__(self, engine: Engine, path: bytes, bodies: Sequence[EngineBody], *, param: str) -> None:
        self._engine = engine
        self._path = path
        self._bodies = bodies
        self._param = param
        self.is_forwarded = False

    def steps(self, choices: Sequence[Choice]) -> Steps:
        """What each choice does next, as it comes. Raises WireError; the first failure ends all, leaving ends all."""
        return self._alone(choices[0]) if len(choices) == 1 else self._interleaved(choices)

    async def _alone(self, choice: Choice) -> Steps:
        """One choice to its end. Raises WireError when the engine ends without saying how, or leaves the grammar."""
        events = self._engine.events(self._path, self._bodies[choice.index], self._begin, param=self._param)
        async with aclosing(events) as reads:
            async for read in reads:
                deltas, failure = self._advance(choice, read)
                yield choice, deltas
                if failure is not None:
                    raise failure
        if choice.finish_reason is None:
            raise UpstreamFailed(ENDED_EARLY)

    def _begin(self) -> None:
        self.is_forwarded = True

    async def _interleaved(self, choices: Sequence[Choice]) -> Steps:
        """Several choices as they come."""
        queue: asyncio.Queue[Step | asyncio.Task[None]] = asyncio.Queue()
        room = asyncio.Semaphore(STEPS_AHEAD)  # not the queue's own size: the end of a task must always fit

        async def pump(choice: Choice) -> None:
            async with aclosing(self._alone(choice)) as steps:
                async for step in steps:
                    await room.acquire()
                    queue.put_nowait(step)

        pumps = [asyncio.create_task(pump(choice)) for choice in choices]
        for task in pumps:
            task.add_done_callback(queue.put_nowait)
        try:
            running = len(pumps)
            while running:
                item = await queue.get()
                if isinstance(item, asyncio.Task):
                    item.result()  # raises what ended it
                    running -= 1
                else:
                    room.release()
                    yield item
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    def _advance(self, choice: Choice, events: list[EngineEvent]) -> tuple[list[Delta], WireError | None]:
        """What several events are worth together, and what ended them before the last one, if anything did."""
        deltas: list[Delta] = []
        for event in events:
            if event.error is not None:
                return deltas, engine_error(event.error, self._param)
            try:
                deltas += choice.step(event)
            except LeftGrammar:
                return deltas, UpstreamFailed(NOT_HELD)
        return deltas, None


def count(choices: Sequence[Choice], tally: Tally, *, each: int | None = None) -> None:
    """Each prompt once, the generated tokens of every choice. `each`: choices of one prompt, None for all of them."""
    usages = [choice.usage for choice in choices if choice.usage is not None]
    tally.prompt_tokens = sum(usage.prompt_tokens for usage in usages[:: each or len(choices)])
    tally.completion_tokens = sum(usage.completion_tokens for usage in usages)


class Refusal(msgspec.Struct, frozen=True):
    error: EngineError = EngineError()


def refused(body: bytes, param: str) -> WireError:
    """The engine's error response in our terms; its own text is not passed on."""
    try:
        return engine_error(msgspec.json.decode(body, type=Refusal).error, param)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return UpstreamFailed("the model could not take the request")


def engine_error(error: EngineError, param: str) -> WireError:
    """Too long a prompt and an image that does not decode are the caller's; the rest is ours (wire contract 4)."""
    if error.type == "exceed_context_size_error":
        return InvalidRequest(
            f"the prompt has {error.n_prompt_tokens} tokens; this model takes {error.n_ctx}", param=param
        )
    if error.code == 400:
        return InvalidRequest("the model could not take the request", param=param)
    return UpstreamFailed("the model failed while it answered; try again")
