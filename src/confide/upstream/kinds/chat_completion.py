"""Chat completions of the embedded engine (wire contract 2.6, 2.7)."""

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

import msgspec

from confide.engine.answer import Choice
from confide.engine.grammar import Compiled
from confide.engine.shaping import Constraint, Plan
from confide.protocol.chat import ChatRequest, new_tool_call_id
from confide.upstream.base import DONE, Head, Tally
from confide.upstream.kinds.chunks import AnswerParts, ChunkEncoder, usage_document
from confide.upstream.kinds.generation import Engine, Generation, count

PATH = b"/v1/chat/completions"


class CompilingEngine(Engine, Protocol):
    """An engine whose answers can be held to a form."""

    async def compiled(self, constraint: Constraint) -> Compiled | None:
        """The grammar, None without one. Raises InvalidRequest."""


class ChatAnswer:
    """One accepted request."""

    last = DONE

    def __init__(
        self, engine: CompilingEngine, planned: Plan, request: ChatRequest, head: Head, forwarded_sha256: bytes
    ) -> None:
        self._engine = engine
        self._plan = planned
        self._request = request
        self._head = head
        self._generation = Generation(engine, PATH, planned.bodies, param="messages")
        self.forwarded_sha256 = forwarded_sha256

    @property
    def is_forwarded(self) -> bool:
        return self._generation.is_forwarded

    async def stream(self, tally: Tally) -> AsyncGenerator[bytes, None]:
        """The chunks of the event stream, without `[DONE]` (wire contract 2.7)."""
        tally.id = self._head.id
        encoder = ChunkEncoder(self._head, include_usage=self._request.include_usage)
        choices = await self._choices()
        async with aclosing(self._generation.steps(choices)) as steps:
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
        async with aclosing(self._generation.steps(choices)) as steps:
            async for choice, deltas in steps:
                parts[choice.index].add(deltas)
        count(choices, tally)
        finished = [part.document(choice) for part, choice in zip(parts, choices, strict=True)]
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
        compiled = await self._engine.compiled(held)
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
