"""An engine inside this workload: vLLM, SGLang or any other that speaks OpenAI's API, over loopback or a unix socket.

It is part of what was measured, so there is no second hop and nothing of its own to verify.
"""

from confide.upstream.base import CHAT, Claim, Prompt, SurfaceName, refuse_sessions
from confide.upstream.health import Health
from confide.upstream.kinds.relay import Relay, RelayedAnswer


class LocalUpstream:
    """Serves whatever models its engine has."""

    context_length = None
    supported_parameters: frozenset[str] = frozenset()
    reads_body = True
    is_attested = True
    serving: Claim = "direct"

    def __init__(
        self, relay: Relay, health: Health, *, description: str, surfaces: frozenset[SurfaceName] = CHAT
    ) -> None:
        self.surfaces = surfaces
        self._relay = relay
        self._health = health
        self.description = description

    @property
    def is_ready(self) -> bool:
        return not self._health.is_left_alone

    async def ready(self, prompt: Prompt, _: str) -> None:
        """There is no second hop. Raises SessionNotAccepted."""
        refuse_sessions(prompt.constraints)

    async def accept(self, prompt: Prompt, model: str) -> RelayedAnswer:
        """See Upstream.accept."""
        return self._relay.accept(prompt, model)
