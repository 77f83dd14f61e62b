"""An attested upstream that another process of the same service verifies: this one goes by what it is told.

All workers of a service send their prompts in the same sessions, so that a client may list them through one worker and
pin them at another. The one who verifies tells every worker of each change before it goes on to anything else, and each
worker hears what it is told in order. So by the end of one question to it a worker knows what any other knew before.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from confide.telemetry.logs import Log
from confide.upstream.base import CHAT, Hop, Prompt, SurfaceName
from confide.upstream.health import Health
from confide.upstream.kinds.relay import Relay
from confide.upstream.sessions import AttestedSession
from confide.upstream.verified import SessionUpstream


class Lead(Protocol):
    """The one who verifies, by way of whatever leads there."""

    async def verified(self, name: str, known: str | None) -> None:
        """Return once it has told how this upstream stands, verified just now where there was no session. `known`: the
        id of the session that is known here.
        """

    def wrong_key(self, name: str, session_id: str) -> None:
        """Tell it that another key answered than those of this session."""


class FollowedUpstream(SessionUpstream):
    """See SessionUpstream. `lead`: the one who verifies; `stands` is called with what it tells."""

    def __init__(
        self,
        name: str,
        make_relay: Callable[[frozenset[bytes]], Relay],
        *,
        lead: Lead,
        health: Health,
        now: Callable[[], int],
        log: Log,
        is_attested: bool = True,
        surfaces: frozenset[SurfaceName] = CHAT,
    ) -> None:
        super().__init__(name, make_relay, health=health, now=now, log=log, is_attested=is_attested, surfaces=surfaces)
        self._lead = lead

    def stands(self, session: AttestedSession | None, reason: str) -> None:
        """The session that prompts may be sent in from now on, or why there is none."""
        if session is None:
            self._drop(reason)
        else:
            self._establish(session)

    async def ready(self, prompt: Prompt, model: str) -> Hop:
        """See SessionUpstream.ready. A session that was pinned and is not known here may be new."""
        pinned, session = prompt.constraints.session_ids, self.session
        if pinned and (session is None or session.id not in pinned):
            await self.verify()
        return await super().ready(prompt, model)

    def wrong_key(self, relay: Relay) -> None:
        """See SessionUpstream.wrong_key; for the other workers, too, that session is over."""
        if relay is self.relays[-1] and self._session is not None:
            self._lead.wrong_key(self.name, self._session.id)
        super().wrong_key(relay)

    async def watch(self) -> None:
        """Nothing is to be looked after here."""
        await asyncio.Event().wait()

    async def _verify(self) -> None:
        session = self.session
        await self._lead.verified(self.name, session.id if session is not None else None)
