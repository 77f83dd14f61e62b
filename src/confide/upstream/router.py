"""Which upstreams may serve a model, and in which order they are asked for one prompt.

Without weights the first is asked first, the others when it does not serve. With weights, prompts are spread by them,
and an upstream without one waits for the others to fail. Upstreams that are known not to serve are passed over.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence

from confide.errors import NotReady
from confide.upstream.base import Answering, Claim, Hop, Prompt, SurfaceName, Unserved, Upstream
from confide.upstream.health import Health

AFFINITY_BYTES = 4096  # of the body, from its messages on: what a conversation begins with
NONE_SERVES = "the model is not available at the moment; try again later"


class Candidate:
    """One upstream for one model. `model`: its name of it. `name`: of the upstream, None where there is but the engine.

    `weight` None: asked in the order of the list. `health` None: it knows itself whether it serves.
    """

    def __init__(
        self,
        upstream: Upstream,
        model: str,
        *,
        name: str | None,
        weight: int | None = None,
        health: Health | None = None,
    ) -> None:
        self.upstream = upstream
        self.model = model
        self.name = name
        self.weight = weight
        self.health = health
        self.credit = 0

    @property
    def shown_name(self) -> str | None:
        """What a receipt calls it: the name of a second hop; what is inside this workload is nobody's business."""
        return self.name if self.upstream.serving == "aggregator" else None

    async def ready(self, prompt: Prompt) -> Hop | None:
        """See Upstream.ready."""
        return await self.upstream.ready(prompt, self.model)

    async def accept(self, prompt: Prompt) -> Answering:
        """See Upstream.accept."""
        return await self.upstream.accept(prompt, self.model)


class Route:
    """The candidates of one model. `affinity`: prompts that begin alike go to the same upstream, for its cache."""

    def __init__(self, candidates: Sequence[Candidate], *, affinity: bool = False) -> None:
        if not candidates:
            raise ValueError("a route has at least one candidate")
        self.candidates = tuple(candidates)
        self.surfaces: frozenset[SurfaceName] = frozenset().union(*(each.upstream.surfaces for each in candidates))
        self._affinity = affinity
        self._is_weighted = any(candidate.weight for candidate in candidates)

    @property
    def serving(self) -> Claim:
        return self.candidates[0].upstream.serving

    def pick(self, prompt: Prompt, failures: Sequence[Unserved]) -> Iterator[Candidate]:
        """Those that may be asked, the best first; none where all are known not to serve.

        `failures`: of those that were asked, filled in by the caller. One whose connection alone may have been at
        fault, as it was pooled or to another key, is asked once more for each of these reasons: an upstream that was
        replaced has ended its connections, and has another key.
        """
        for candidate in self._order(prompt):
            if is_available(candidate) and not prompt.ways.isdisjoint(candidate.upstream.surfaces):
                yield tried(candidate)
                excused: set[str] = set()
                while failures[-1].is_stale and failures[-1].reason not in excused:
                    excused.add(failures[-1].reason)
                    yield tried(candidate)

    def none_available(self) -> NotReady:
        """What a client is told when there is nobody to ask."""
        waits = [candidate.health.available_in_s() for candidate in self.candidates if candidate.health is not None]
        return NotReady(NONE_SERVES, retry_after_s=max(1, round(min(waits, default=1.0))))

    def _order(self, prompt: Prompt) -> Sequence[Candidate]:
        if len(self.candidates) == 1:
            return self.candidates
        if self._affinity:
            return by_prefix(self.candidates, prompt)
        if not self._is_weighted:
            return self.candidates
        first = spread([candidate for candidate in self.candidates if is_available(candidate)] or self.candidates)
        standby = [candidate for candidate in self.candidates if candidate is not first]
        return (first, *sorted(standby, key=lambda candidate: -(candidate.weight or 0)))


def is_available(candidate: Candidate) -> bool:
    return candidate.health is None or candidate.health.is_available()


def tried(candidate: Candidate) -> Candidate:
    if candidate.health is not None:
        candidate.health.tried()
    return candidate


def spread(candidates: Sequence[Candidate]) -> Candidate:
    """Smooth weighted round robin: each gets its share, and nobody two in a row that could be apart."""
    total = sum(candidate.weight or 0 for candidate in candidates)
    for candidate in candidates:
        candidate.credit += candidate.weight or 0
    chosen = max(candidates, key=lambda candidate: candidate.credit)
    chosen.credit -= total
    return chosen


def by_prefix(candidates: Sequence[Candidate], prompt: Prompt) -> Sequence[Candidate]:
    """Rendezvous hashing over what the conversation begins with, and whose it is: with one upstream less, only the
    conversations that were there move.
    """
    start = max(0, prompt.body.find(b'"messages"'))
    beginning = prompt.tenant + prompt.body[start : start + AFFINITY_BYTES]

    def score(candidate: Candidate) -> float:
        drawn = hashlib.sha256(beginning + (candidate.name or "").encode()).digest()
        share = (int.from_bytes(drawn[:6], "big") + 1) / 2**48
        return math.log(share) / max(1 if candidate.weight is None else candidate.weight, 0.001)

    return sorted(candidates, key=score, reverse=True)
