"""An upstream that must prove itself before it is sent a prompt, and goes on proving itself (wire contract 7.5).

What holds on entry: the policy and the address are the operator's; everything else comes from the upstream. What holds
whenever `ready` returns: a verification that the policy accepts was made no longer ago than `session_s`, the session it
cites is in the store, and the relay that `accept` uses reaches nobody but the keys of that session.

    no session ──verify──▶ session ──renew in time──▶ next session, while the first still may be cited
         ▲                    │
         └────────────────────┴── it failed to prove itself, its key is another, or its time is over

Not checked here: that its answers are true, or signed. One verification is under way at a time, whoever waits for it.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from confide.errors import ConfideError, SessionNotAccepted, UpstreamNotVerified
from confide.store.base import Store
from confide.telemetry.logs import Log
from confide.upstream.base import CHAT, Claim, Hop, Prompt, SurfaceName, Unserved
from confide.upstream.health import Health
from confide.upstream.kinds.relay import Relay, RelayedAnswer
from confide.upstream.sessions import AttestedSession, Shown, new_session

LONGEST_ANSWER_S = 900
RETRY_S = 2.0
RETRY_MOST_S = 60.0
NOT_VERIFIED = "the model's service could not be verified, and nothing was sent to it; try again later"
WRONG_KEY = "its TLS key is another than the verified one"
NOT_PINNED = "no attested session that can serve now is one of aci_session_ids; nothing was sent"


class CannotVerify(ConfideError):
    """The upstream could not be asked: that says nothing of what was verified before."""


class DoesNotHold(ConfideError):
    """It was asked, and what it showed does not hold. The message names the check, and no host."""


class Appraiser(Protocol):
    """Asks one upstream for its evidence and judges it: one for each kind."""

    @property
    def verifier_id(self) -> str: ...

    async def appraise(self) -> Shown:
        """Raises CannotVerify, DoesNotHold."""


class SessionUpstream(ABC):
    """An attested service that prompts are sent to in the session of a verification, and in no other way. Whoever
    verifies is one of the classes below. `make_relay`: a relay to these keys and to no other. `now`: Unix seconds.
    `is_attested`: False where a simulator's root is trusted.
    """

    context_length = None
    supported_parameters: frozenset[str] = frozenset()
    reads_body = True
    serving: Claim = "aggregator"

    def __init__(
        self,
        name: str,
        make_relay: Callable[[frozenset[bytes]], Relay],
        *,
        health: Health,
        now: Callable[[], int],
        log: Log,
        is_attested: bool = True,
        surfaces: frozenset[SurfaceName] = CHAT,
    ) -> None:
        self.name = name
        self.surfaces = surfaces
        self.is_attested = is_attested
        self.description = f"{name}, attested"
        self.relays: list[Relay] = []  # the newest is the one in use; older ones have exchanges to end
        self.reason = "not verified yet"  # why there is no session
        self.on_change: Callable[[], None] = lambda: None  # there is another session, or none any more
        self._make_relay = make_relay
        self._health = health
        self._now = now
        self._log = log
        self._session: AttestedSession | None = None
        self._verifying: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        return self.session is not None and not self._health.is_left_alone

    @property
    def session(self) -> AttestedSession | None:
        """The session that a prompt may be sent in now."""
        if self._session is not None and self._now() >= self._session.usable_until:
            self._drop("its verification is over")
        return self._session

    async def ready(self, prompt: Prompt, model: str) -> Hop:
        """The hop, verified. Raises Unserved, and then nothing may be sent."""
        if self.session is None:
            await self.verify()
        session = self.session
        if session is None:
            raise Unserved(UpstreamNotVerified(NOT_VERIFIED, retry_after_s=int(RETRY_S)), self.reason)
        pinned = prompt.constraints.session_ids
        if pinned and session.id not in pinned:
            error = SessionNotAccepted(NOT_PINNED, param="provider.aci_session_ids")
            raise Unserved(error, "its current session is none of those that were asked for")
        return Hop(self.name, model, required=True, session_id=session.id)

    async def accept(self, prompt: Prompt, model: str) -> RelayedAnswer:
        """See Upstream.accept. `ready` has just returned: nothing else ran in between. No answer outlives the session
        that its receipt cites.
        """
        assert self._session is not None
        return self.relays[-1].accept(prompt, model, within_s=max(1, self._session.expires_at - self._now()))

    async def verify(self) -> None:
        """Verify it now, or wait for the verification that is under way. How that ended, `session` tells."""
        if self._verifying is None:
            self._verifying = asyncio.create_task(self._verify(), name=f"verify {self.name}")
            self._verifying.add_done_callback(self._verified)
        await asyncio.wait({self._verifying})

    def wrong_key(self, relay: Relay) -> None:
        """Another key than that of the session answered: who has it must prove itself before anything is sent.

        On an earlier relay that is no news: what was verified since then is another key.
        """
        if relay is self.relays[-1]:
            self._drop(WRONG_KEY)

    def revoke(self, session_id: str) -> None:
        """Another key answered than those of this session, and it is over, if it is the one in use."""
        if self._session is not None and self._session.id == session_id:
            self._drop(WRONG_KEY)

    @abstractmethod
    async def watch(self) -> None:
        """Look after the session until cancelled."""

    @abstractmethod
    async def _verify(self) -> None:
        """Verify it; how that ended, `session` and `reason` tell."""

    async def stop_verifying(self) -> None:
        """End a verification that is under way."""
        if self._verifying is not None:
            self._verifying.cancel()
            await asyncio.gather(self._verifying, return_exceptions=True)

    def _establish(self, session: AttestedSession) -> None:
        """From now on prompts go in this session. To other keys than before they go over another channel, so that no
        receipt cites a session whose keys are not those that were used.
        """
        if self._session is None or self._session.pins != session.pins or not self.relays:
            self._revoke()
            relay = self._make_relay(session.pins)
            relay.on_wrong_key = lambda: self.wrong_key(relay)
            self.relays = [each for each in self.relays if each.channel.live] + [relay]
        self._session = session
        self.on_change()

    def _drop(self, reason: str) -> None:
        self._session, self.reason = None, reason
        self._revoke()
        self.on_change()

    def _revoke(self) -> None:
        """No further prompt over the channels there are; what is under way comes to its end."""
        for relay in self.relays:
            relay.channel.pin(frozenset())

    @property
    def relay(self) -> Relay | None:
        """What a probe may ask over, None while there is no session."""
        return self.relays[-1] if self.session is not None else None

    def _verified(self, task: "asyncio.Task[None]") -> None:
        self._verifying = None
        if not task.cancelled() and task.exception() is not None:  # a fault of ours is no verification
            self._drop("the verification failed")
            self._log.write("fault", error=type(task.exception()).__name__)


class AttestedUpstream(SessionUpstream):
    """One that this process verifies. `session_s`: how long one verification is used. `kept_s`: how long after its end
    a session may be asked about. `answer_s`: the longest answer.
    """

    def __init__(
        self,
        name: str,
        appraiser: Appraiser,
        make_relay: Callable[[frozenset[bytes]], Relay],
        *,
        origin: str,
        health: Health,
        store: Store,
        session_s: int,
        kept_s: int,
        now: Callable[[], int],
        log: Log,
        answer_s: int = LONGEST_ANSWER_S,
        is_attested: bool = True,
        surfaces: frozenset[SurfaceName] = CHAT,
    ) -> None:
        super().__init__(name, make_relay, health=health, now=now, log=log, is_attested=is_attested, surfaces=surfaces)
        self._appraiser = appraiser
        self._origin = origin
        self._store = store
        self._session_s = session_s
        self._answer_s = answer_s
        self._kept_s = kept_s

    async def watch(self) -> None:
        """Verify at once, and again before each verification is over; until cancelled."""
        retry_s = RETRY_S
        while True:
            session = self.session
            if session is None or self._now() >= session.renew_at:
                await self.verify()
            fresh = self.session
            if fresh is None or self._now() >= fresh.renew_at:
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_MOST_S)
            else:
                retry_s = RETRY_S
                await asyncio.sleep(max(0.05, min(60.0, fresh.renew_at - self._now())))  # the clock may be set

    async def _verify(self) -> None:
        try:
            shown = await self._appraiser.appraise()
            session = new_session(
                shown,
                upstream_name=self.name,
                origin=self._origin,
                verifier_id=self._appraiser.verifier_id,
                now=self._now(),
                used_s=self._session_s,
                answer_s=self._answer_s,
            )
            # Before it is used: a receipt may cite it from then on.
            await self._store.keep_session(session.id, session.raw(), expires_at=session.expires_at + self._kept_s)
        except CannotVerify as error:
            self.reason = error.message
            self._log.write("upstream", name=self.name, error=error.message)
        except DoesNotHold as error:
            self._drop(error.message)
            self._log.write("upstream", name=self.name, error=error.message)
        except ConfideError as error:  # the store: without the session there is nothing to cite
            self.reason = "the session could not be kept"
            self._log.write("upstream", name=self.name, error=type(error).__name__)
        else:
            self._establish(session)
            self._log.write("upstream", name=self.name, session=session.id, not_after=session.expires_at)
