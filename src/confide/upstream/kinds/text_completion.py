"""Text completions of the embedded engine (wire contract 3.3)."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol

import msgspec

from confide.engine.answer import Choice, Content, Delta, Mode
from confide.engine.completing import TextLogprobs, completion_bodies
from confide.protocol.completions import CompletionRequest
from confide.protocol.text_inputs import Text
from confide.upstream.base import DONE, Head, Tally
from confide.upstream.kinds.chunks import usage_document
from confide.upstream.kinds.generation import Engine, Generation, count

PATH = b"/v1/completions"

encode = msgspec.json.encode


class Tokenized(Engine, Protocol):
    """An engine that can tell what token ids stand for."""

    async def text_of(self, tokens: Sequence[int]) -> str:
        """The text of these tokens. Raises InvalidRequest for ids that the model does not have."""


class CompletionAnswer:
    """One accepted request."""

    last = DONE

    def __init__(self, engine: Tokenized, request: CompletionRequest, head: Head, forwarded_sha256: bytes) -> None:
        self._engine = engine
        self._request = request
        self._generation = Generation(engine, PATH, completion_bodies(request), param="prompt")
        self._fixed = {"id": head.id, "object": "text_completion", "created": head.created, "model": head.model}
        self._id = head.id
        self.forwarded_sha256 = forwarded_sha256

    @property
    def is_forwarded(self) -> bool:
        return self._generation.is_forwarded

    async def stream(self, tally: Tally) -> AsyncGenerator[bytes, None]:
        """The events of the stream, without `[DONE]`."""
        tally.id = self._id
        choices, logprobs = self._choices(), self._logprobs()
        echoed = await self._echoed()
        usage: dict[str, object] = {"usage": None} if self._request.include_usage else {}
        ended: set[int] = set()
        async with aclosing(self._generation.steps(choices)) as steps:
            async for choice, deltas in steps:
                contents = text_of(deltas)
                finished = choice.finish_reason is not None and choice.index not in ended
                opening = echoed.pop(choice.index, None)
                if not contents and not finished and opening is None:
                    continue
                if finished:
                    ended.add(choice.index)
                entry = self._entry(
                    choice, contents, opening or "", logprobs, choice.finish_reason if finished else None
                )
                yield b"data: " + encode({**self._fixed, "choices": [entry], **usage}) + b"\n\n"
        self._count(choices, tally)
        if self._request.include_usage:
            yield b"data: " + encode({**self._fixed, "choices": [], "usage": usage_document(tally)}) + b"\n\n"

    async def complete(self, tally: Tally) -> bytes:
        """The body of the buffered response."""
        tally.id = self._id
        choices, logprobs = self._choices(), self._logprobs()
        echoed = await self._echoed()
        contents: list[list[Content]] = [[] for _ in choices]
        async with aclosing(self._generation.steps(choices)) as steps:
            async for choice, deltas in steps:
                contents[choice.index] += text_of(deltas)
        self._count(choices, tally)
        entries = [
            self._entry(choice, parts, echoed.get(choice.index, ""), logprobs, choice.finish_reason)
            for choice, parts in zip(choices, contents, strict=True)
        ]
        return encode({**self._fixed, "choices": entries, "usage": usage_document(tally)})

    def _choices(self) -> list[Choice]:
        total = len(self._request.prompts) * self._request.n
        return [Choice(index, mode=Mode.TEXT, adherence=None, new_call_id=str) for index in range(total)]

    def _logprobs(self) -> list[TextLogprobs] | None:
        most, total = self._request.logprobs, len(self._request.prompts) * self._request.n
        return None if most is None else [TextLogprobs(most) for _ in range(total)]

    async def _echoed(self) -> dict[int, str]:
        """What each choice's text begins with, by its index."""
        if not self._request.echo:
            return {}
        texts = [await self._text(prompt) for prompt in self._request.prompts]
        return {index: texts[index // self._request.n] for index in range(len(texts) * self._request.n)}

    async def _text(self, prompt: Text) -> str:
        return prompt if isinstance(prompt, str) else await self._engine.text_of(prompt)

    def _count(self, choices: Sequence[Choice], tally: Tally) -> None:
        count(choices, tally, each=self._request.n)

    def _entry(
        self,
        choice: Choice,
        contents: Sequence[Content],
        opening: str,
        logprobs: Sequence[TextLogprobs] | None,
        finish_reason: str | None,
    ) -> Mapping[str, object]:
        """One entry of `choices`. `stop_reason` is there where a stop text of the client's ended it."""
        met = {} if finish_reason is None or choice.stop_text is None else {"stop_reason": choice.stop_text}
        return {
            "text": opening + "".join(content.text for content in contents),
            "index": choice.index,
            "logprobs": None if logprobs is None else logprobs[choice.index].shaped(contents),
            "finish_reason": finish_reason,
            **met,
        }


def text_of(deltas: Sequence[Delta]) -> list[Content]:
    """The pieces of text among these."""
    return [delta for delta in deltas if isinstance(delta, Content)]
