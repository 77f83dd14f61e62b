"""An ordinary provider of OpenAI's API: it proves nothing, and every receipt says so (wire contract 7.5).

It is there only because its operator said `allow_unverified`, and it never gets a prompt that asks for more.
"""

from confide.errors import SessionNotAccepted, UpstreamNotVerified
from confide.upstream.base import CHAT, Claim, Hop, Prompt, SurfaceName, Unserved
from confide.upstream.health import Health
from confide.upstream.kinds.relay import Relay, RelayedAnswer
from confide.upstream.verified import NOT_PINNED, NOT_VERIFIED

REASON = "this upstream offers no attestation"


class OpenAiUpstream:
    """Serves whatever models its provider has."""

    context_length = None
    supported_parameters: frozenset[str] = frozenset()
    reads_body = True
    is_attested = False
    serving: Claim = "aggregator"

    def __init__(self, name: str, relay: Relay, health: Health, *, surfaces: frozenset[SurfaceName] = CHAT) -> None:
        self.surfaces = surfaces
        self.name = name
        self.description = f"{name}, not attested"
        self._relay = relay
        self._health = health

    @property
    def is_ready(self) -> bool:
        return not self._health.is_left_alone

    async def ready(self, prompt: Prompt, _: str) -> Hop:
        """The hop, as one that nobody verified. Raises Unserved for a prompt that demands more."""
        if prompt.constraints.session_ids:
            raise Unserved(SessionNotAccepted(NOT_PINNED, param="provider.aci_session_ids"), REASON)
        if prompt.is_verification_required:
            raise Unserved(UpstreamNotVerified(NOT_VERIFIED), REASON)
        return Hop(self.name, prompt.head.model, required=False, reason=REASON)

    async def accept(self, prompt: Prompt, model: str) -> RelayedAnswer:
        """See Upstream.accept."""
        return self._relay.accept(prompt, model)
