"""The embedded engine as an upstream: one request of the client's becomes one engine request a choice.

Buffered answers are driven in streaming form too: only a stream stops when its socket closes. Whatever way an answer
ends, the exchange with the engine is aborted in `finally`, which closes the socket at once, and the slot is released.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from confide.engine.answer import EngineEvent
from confide.engine.completing import refuse_longer_prompts
from confide.engine.facts import EngineFacts
from confide.engine.grammar import Compiled, compile_grammar
from confide.engine.shaping import Constraint, plan, refuse_longer
from confide.errors import InvalidRequest, UpstreamFailed, UpstreamTimeout
from confide.protocol.chat import ChatRequest, parse_chat
from confide.protocol.chat_messages import ImagePart
from confide.protocol.completions import CompletionRequest, parse_completion
from confide.protocol.serving import forwarded_body
from confide.protocol.sse import Framer, SseError
from confide.upstream.base import Answering, Claim, Prompt, SurfaceName, refuse_sessions
from confide.upstream.channel import Channel, ChannelError, Stalled
from confide.upstream.images import ImageFetcher
from confide.upstream.kinds.chat_completion import ChatAnswer
from confide.upstream.kinds.generation import ENDED_EARLY, EngineBody, refused
from confide.upstream.kinds.text_completion import CompletionAnswer

ERROR_MOST_BYTES = 64 * 1024
ASKED_MOST_BYTES = 16 * 1024 * 1024
PROMPTING = ("messages", "chat_template_kwargs")  # members of an engine body that its template sees

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
    async def pass_on(self) -> None: ...


class EmbeddedUpstream:
    """Serves one model from a supervised engine over its private socket."""

    reads_body = False
    surfaces: frozenset[SurfaceName] = frozenset({"chat", "completions", "count_tokens"})
    is_attested = True
    serving: Claim = "direct"

    def __init__(
        self,
        *,
        channel: Channel,
        engine: EngineState,
        slots: EngineSlots,
        counting: EngineSlots,
        facts: EngineFacts,
        api_key: str,
        max_n: int,
        context_length: int,
        description: str,
        images: ImageFetcher | None = None,
    ) -> None:
        """`counting`: turns to count tokens. `images`: fetches them, None for a model that takes none."""
        self._channel = channel
        self._images = images
        self._engine = engine
        self.slots = slots
        self.counting = counting
        self._facts = facts
        self.supported_parameters = facts.supported
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

    async def accept(self, prompt: Prompt, _: str) -> Answering:
        """Raises InvalidRequest, NotReady while the engine is down, LimitReached when the queue is full.

        Fetching images takes a while and the client may leave; a text model refuses them unfetched.
        """
        return self._completion(prompt) if prompt.surface == "completions" else await self._chat(prompt)

    def _completion(self, prompt: Prompt) -> CompletionAnswer:
        asked = prompt.asked
        request = asked if isinstance(asked, CompletionRequest) else parse_completion(prompt.body)
        refuse_longer_prompts(request, self.context_length)
        self._check_n(request.n)
        self._check_room(request.n * len(request.prompts))
        forwarded = forwarded_body(prompt.body, drop_constraints=prompt.constraints.stated, drop_empty_tool_calls=False)
        return CompletionAnswer(self, request, prompt.head, digest_of(prompt, forwarded))

    async def _chat(self, prompt: Prompt) -> ChatAnswer:
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
        self._check_n(request.n)
        refuse_longer(request, self.context_length)
        planned = plan(request, self._facts)
        self._check_room(request.n)
        return ChatAnswer(self, planned, request, prompt.head, digest_of(prompt, forwarded))

    def _check_n(self, n: int) -> None:
        if n > self._max_n:
            raise InvalidRequest(f"n must be at most {self._max_n} here", param="n")

    def _check_room(self, choices: int) -> None:
        self._engine.check_ready()
        self.slots.check_room(choices)

    async def compiled(self, constraint: Constraint) -> Compiled | None:
        """The grammar, compiled beside the event loop, one at a time. Raises InvalidRequest."""
        if constraint.grammar is None:
            return None
        async with self._compiling:
            return await asyncio.to_thread(compile_grammar, constraint.grammar, param=constraint.param)

    async def text_of(self, tokens: Sequence[int]) -> str:
        """See text_completion.Tokenized.text_of. In a slot's turn: the engine has so many connections and no more."""
        await self.slots.acquire()
        try:
            status, body = await self._ask(b"/detokenize", {"tokens": tokens})
        finally:
            self.slots.release()
        if status != 200:
            raise InvalidRequest("holds token ids that this model does not have", param="prompt")
        return decoded(body, Detokenized).content

    async def count_tokens(self, chat_body: Callable[[], bytes]) -> int:
        """See base.TokenCounting. The engine writes and takes apart the prompt as it would to answer it.

        That keeps a core of it busy, for seconds at worst, and does not stop when its client leaves. So one is counted
        at a time, and a turn that was begun is given back only when the engine is done: many that come and leave would
        keep it from its generations.
        """
        self._engine.check_ready()
        await self.counting.acquire()
        counting = asyncio.create_task(self._counted(chat_body), name="count tokens")
        counting.add_done_callback(lambda _: self.counting.release())
        return await asyncio.shield(counting)

    async def _counted(self, chat_body: Callable[[], bytes]) -> int:
        shown = await asyncio.to_thread(self._shown, chat_body)
        status, answer = await self._ask(b"/apply-template", shown)
        if status != 200:
            raise refused(answer, "messages")
        prompt = decoded(answer, Templated).prompt
        status, answer = await self._ask(b"/tokenize", {"content": prompt, "add_special": True, "parse_special": True})
        if status != 200:
            raise refused(answer, "messages")
        return len(decoded(answer, Tokenized).tokens)

    def _shown(self, chat_body: Callable[[], bytes]) -> EngineBody:
        """What the engine's template sees of the prompt. Raises InvalidRequest. Takes long for many small messages."""
        request = parse_chat(chat_body())
        if any(isinstance(part, ImagePart) for message in request.messages for part in message.content or ()):
            raise InvalidRequest("the tokens of an image cannot be counted; leave images out", param="messages")
        refuse_longer(request, self.context_length)
        engine_body = plan(request, self._facts).bodies[0]
        return {name: engine_body[name] for name in PROMPTING if name in engine_body}

    async def _ask(self, path: bytes, body: EngineBody) -> tuple[int, bytes]:
        """Status and body of what the engine answers at once, without a slot. Raises WireError."""
        self._engine.check_ready()
        try:
            exchange = await self._channel.send(b"POST", path, self._headers, msgspec.json.encode(body))
            try:
                return exchange.status, await exchange.read_all(ASKED_MOST_BYTES)
            finally:
                exchange.abort()
        except Stalled as error:
            raise UpstreamTimeout("the model did not answer in time") from error
        except ChannelError as error:
            raise UpstreamFailed(ENDED_EARLY) from error

    async def events(
        self, path: bytes, body: EngineBody, begin: Callable[[], None], *, param: str
    ) -> AsyncGenerator[list[EngineEvent], None]:
        """See generation.Engine.events."""
        await self.slots.acquire()
        try:
            self._engine.check_ready()  # it may have died while this request waited
            begin()
            framer = Framer()
            exchange = await self._channel.send(b"POST", path, self._headers, msgspec.json.encode(body))
            try:
                if exchange.status != 200:
                    raise refused(await exchange.read_all(ERROR_MOST_BYTES), param)
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


def digest_of(prompt: Prompt, forwarded: bytes) -> bytes:
    """SHA-256 (32 bytes) of what is handed to inference."""
    return prompt.sha256 if forwarded is prompt.body else hashlib.sha256(forwarded).digest()


class Detokenized(msgspec.Struct):
    """The engine's text of token ids."""

    content: str


class Templated(msgspec.Struct):
    """The text that the model is given."""

    prompt: str


class Tokenized(msgspec.Struct):
    """The token ids of a text."""

    tokens: list[int]


Answered = TypeVar("Answered")


def decoded(body: bytes, kind: type[Answered]) -> Answered:
    """Raises UpstreamFailed for what is no such answer."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamFailed(ENDED_EARLY) from error
