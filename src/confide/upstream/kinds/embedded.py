"""The embedded engine as an upstream: one request of the client's becomes one engine request a choice.

Buffered answers are driven in streaming form too: only a stream stops when its socket closes. Whatever way an answer
ends, the exchange with the engine is aborted in `finally`, which closes the socket at once, and the slot is released.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

import msgspec

from confide.engine.answer import Choice, Delta, EngineError, EngineEvent, LeftGrammar
from confide.engine.grammar import Compiled, compile_grammar
from confide.engine.shaping import SUPPORTED, Constraint, EngineFacts, Plan, plan, refuse_longer
from confide.errors import InvalidRequest, UpstreamFailed, UpstreamTimeout, WireError
from confide.protocol.chat import ChatRequest, new_tool_call_id, parse_chat
from confide.protocol.serving import forwarded_body
from confide.protocol.sse import DONE, Framer, SseError
from confide.upstream.base import Claim, Head, Prompt, Tally, refuse_sessions
from confide.upstream.channel import Channel, ChannelError, Stalled
from confide.upstream.images import ImageFetcher
from confide.upstream.kinds.chunks import AnswerParts, ChunkEncoder, usage_document

PATH = b"/v1/chat/completions"
ERROR_MOST_BYTES = 64 * 1024
STEPS_AHEAD = 64  # of several choices, while the client is slow to read
NOT_HELD = "the model could not hold to the requested form; try again, or ask for a simpler one"
ENDED_EARLY = "the model stopped before the end of its answer; try again"

Step = tuple[Choice, list[Delta]]
Steps = AsyncGenerator[Step, None]

decode_event = msgspec.json.Decoder(EngineEvent).decode


class EngineState(Protocol):
    """Whether the engine serves: the supervisor, or an engine that somebody else keeps alive."""

    @property
    def is_ready(self) -> bool: ...
    def check_ready(self) -> None:
        """Raise NotReady, with the seconds until the next try, unless it serves."""


class EngineSlots(Protocol):
    """The engine's slots, this process's own or those that several share (`engine/slots.py`)."""

    def check_room(self, wanted: int) -> None: ...
    async def acquire(self) -> None: ...
    def release(self) -> None: ...


class EmbeddedUpstream:
    """Serves one model from a supervised engine over its private socket."""

    supported_parameters = SUPPORTED
    reads_body = False
    is_attested = True
    serving: Claim = "direct"

    def __init__(
        self,
        *,
        channel: Channel,
        engine: EngineState,
        slots: EngineSlots,
        facts: EngineFacts,
        api_key: str,
        max_n: int,
        context_length: int,
        description: str,
        images: ImageFetcher | None = None,
    ) -> None:
        """`images`: fetches them, None for a model that takes none."""
        self._channel = channel
        self._images = images
        self._engine = engine
        self.slots = slots
        self._facts = facts
        self._headers = ((b"authorization", b"Bearer " + api_key.encode()), (b"content-type", b"application/json"))
        self._max_n = max_n
        self.context_length = context_length
        self.description = description
        self._compiling = asyncio.Lock()

    @property
    def is_ready(self) -> bool:
        return self._engine.is_ready

    async def ready(self, prompt: Prompt, _: str) -> None:
        """There is no second hop. Raises SessionNotAccepted."""
        refuse_sessions(prompt.constraints)

    async def accept(self, prompt: Prompt, _: str) -> "EmbeddedAnswer":
        """Raises InvalidRequest, NotReady while the engine is down, LimitReached when the queue is full.

        Fetching images takes a while and the client may leave; a text model refuses them unfetched.
        """
        asked = prompt.asked
        request = asked if isinstance(asked, ChatRequest) else parse_chat(prompt.body)
        messages = None
        if self._images is not None:
            inlined = await self._images.inline(request)
            if inlined is not request and inlined.messages != request.messages:
                messages = msgspec.json.encode(inlined.messages)
            request = inlined
        forwarded = forwarded_body(
            prompt.body,
            drop_constraints=prompt.constraints.stated,
            drop_empty_tool_calls=request.had_empty_tool_calls,
            messages=messages,
        )
        is_same = forwarded is prompt.body
        sha256 = prompt.sha256 if is_same else hashlib.sha256(forwarded).digest()
        return self._accepted(request, prompt.head, sha256)

    def _accepted(self, request: ChatRequest, head: Head, forwarded_sha256: bytes) -> "EmbeddedAnswer":
        if request.n > self._max_n:
            raise InvalidRequest(f"n must be at most {self._max_n} here", param="n")
        refuse_longer(request, self.context_length)
        planned = plan(request, self._facts)
        self._engine.check_ready()
        self.slots.check_room(request.n)
        return EmbeddedAnswer(self, planned, request, head, forwarded_sha256)

    async def compiled(self, constraint: Constraint) -> Compiled | None:
        """The grammar, compiled beside the event loop, one at a time. Raises InvalidRequest."""
        if constraint.grammar is None:
            return None
        async with self._compiling:
            return await asyncio.to_thread(compile_grammar, constraint.grammar, param=constraint.param)

    async def events(
        self, body: dict[str, object], begin: Callable[[], None]
    ) -> AsyncGenerator[list[EngineEvent], None]:
        """The engine's events for one request, as many as each read brings. Raises WireError; closing it frees the
        slot at once. `begin` is called before the engine gets the first byte.
        """
        await self.slots.acquire()
        try:
            self._engine.check_ready()  # it may have died while this request waited
            begin()
            framer = Framer()
            exchange = await self._channel.send(b"POST", PATH, self._headers, msgspec.json.encode(body))
            try:
                if exchange.status != 200:
                    raise refused(await exchange.read_all(ERROR_MOST_BYTES))
                while data := await exchange.read():
                    yield [decode_event(event.data) for event in framer.feed(data) if event.data != b"[DONE]"]
            finally:
                exchange.abort()
        except Stalled as error:
            raise UpstreamTimeout("the model did not answer in time") from error
        except (ChannelError, SseError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamFailed(ENDED_EARLY) from error
        finally:
            self.slots.release()


class EmbeddedAnswer:
    """One accepted request."""

    last = DONE

    def __init__(
        self, upstream: EmbeddedUpstream, planned: Plan, request: ChatRequest, head: Head, forwarded_sha256: bytes
    ) -> None:
        self._upstream = upstream
        self._plan = planned
        self._request = request
        self._head = head
        self.forwarded_sha256 = forwarded_sha256
        self.is_forwarded = False

    async def stream(self, tally: Tally) -> AsyncGenerator[bytes, None]:
        """The chunks of the event stream, without `[DONE]` (wire contract 2.7)."""
        tally.id = self._head.id
        encoder = ChunkEncoder(self._head, include_usage=self._request.include_usage)
        choices = await self._choices()
        async with aclosing(self._all_steps(choices)) as steps:
            async for choice, deltas in steps:
                data = encoder.encode(choice, deltas)
                if data:
                    yield data
        count(choices, tally)
        if self._request.include_usage:
            yield encoder.usage(tally)

    async def complete(self, tally: Tally) -> bytes:
        """The body of the buffered response (wire contract 2.6)."""
        tally.id = self._head.id
        choices = await self._choices()
        parts = [AnswerParts(choice.index) for choice in choices]
        async with aclosing(self._all_steps(choices)) as steps:
            async for choice, deltas in steps:
                parts[choice.index].add(deltas)
        count(choices, tally)
        finished = [part.document(choice.finish_reason) for part, choice in zip(parts, choices, strict=True)]
        return msgspec.json.encode(
            {
                "id": self._head.id,
                "object": "chat.completion",
                "created": self._head.created,
                "model": self._head.model,
                "choices": finished,
                "usage": usage_document(tally),
            }
        )

    async def _choices(self) -> list[Choice]:
        planned, held = self._plan, self._plan.constraint
        compiled = await self._upstream.compiled(held)
        return [
            Choice(
                index,
                mode=held.mode,
                adherence=compiled.adherence() if compiled is not None else None,
                must_complete=planned.must_complete,
                new_call_id=lambda: new_tool_call_id(os.urandom(16)),
                named=held.named,
                keep_reasoning=planned.keep_reasoning,
            )
            for index in range(len(planned.bodies))
        ]

    def _all_steps(self, choices: list[Choice]) -> Steps:
        if len(choices) == 1:
            return self._steps(choices[0])
        return self._interleaved(choices)

    async def _steps(self, choice: Choice) -> Steps:
        """One choice to its end. Raises WireError when the engine ends without saying how, or leaves the grammar."""
        async with aclosing(self._upstream.events(self._plan.bodies[choice.index], self._begin)) as reads:
            async for events in reads:
                deltas, failure = advance(choice, events)
                yield choice, deltas
                if failure is not None:
                    raise failure
        if choice.finish_reason is None:
            raise UpstreamFailed(ENDED_EARLY)

    def _begin(self) -> None:
        self.is_forwarded = True

    async def _interleaved(self, choices: list[Choice]) -> Steps:
        """Several choices as they come. The first failure ends all; leaving ends all."""
        queue: asyncio.Queue[Step | asyncio.Task[None]] = asyncio.Queue()
        room = asyncio.Semaphore(STEPS_AHEAD)  # not the queue's own size: the end of a task must always fit

        async def pump(choice: Choice) -> None:
            async with aclosing(self._steps(choice)) as steps:
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


def advance(choice: Choice, events: list[EngineEvent]) -> tuple[list[Delta], WireError | None]:
    """What several events are worth together, and what ended them before the last one, if anything did."""
    deltas: list[Delta] = []
    for event in events:
        if event.error is not None:
            return deltas, engine_error(event.error)
        try:
            deltas += choice.step(event)
        except LeftGrammar:
            return deltas, UpstreamFailed(NOT_HELD)
    return deltas, None


def count(choices: list[Choice], tally: Tally) -> None:
    """The prompt once, the generated tokens of every choice."""
    usages = [choice.usage for choice in choices if choice.usage is not None]
    tally.prompt_tokens = usages[0].prompt_tokens if usages else 0
    tally.completion_tokens = sum(usage.completion_tokens for usage in usages)


class Refusal(msgspec.Struct, frozen=True):
    error: EngineError = EngineError()


def refused(body: bytes) -> WireError:
    """The engine's error response in our terms; its own text is not passed on."""
    try:
        return engine_error(msgspec.json.decode(body, type=Refusal).error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return UpstreamFailed("the model could not take the request")


def engine_error(error: EngineError) -> WireError:
    """Too long a prompt and an image that does not decode are the caller's; the rest is ours (wire contract 4)."""
    if error.type == "exceed_context_size_error":
        return InvalidRequest(
            f"the prompt has {error.n_prompt_tokens} tokens; this model takes {error.n_ctx}", param="messages"
        )
    if error.code == 400:
        return InvalidRequest("the model could not take the request", param="messages")
    return UpstreamFailed("the model failed while it answered; try again")
