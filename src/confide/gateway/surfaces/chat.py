"""`POST /v1/chat/completions` (wire contract 2)."""

from confide.gateway.models import ModelTable
from confide.gateway.surfaces.base import Spoken
from confide.protocol.chat import new_chat_id, parse_chat
from confide.protocol.chat_relayed import parse_relayed
from confide.upstream.base import CHAT, Asked, SurfaceName


class ChatCompletions(Spoken):
    """What all upstreams of chat models speak."""

    name: SurfaceName = "chat"
    endpoint = "/v1/chat/completions"
    ways = CHAT

    def new_id(self, random: bytes) -> str:
        """See Surface.new_id."""
        return new_chat_id(random)

    def parse(self, body: bytes, models: ModelTable) -> Asked:
        """See Surface.parse."""
        return parse_relayed(body) if models.is_relayed else parse_chat(body)
