"""`POST /v1/completions` (wire contract 3.3): text goes on where the prompt ends, without turns and without tools."""

from confide.gateway.models import ModelTable
from confide.gateway.surfaces.base import Spoken
from confide.protocol.chat_relayed import parse_relayed
from confide.protocol.completions import new_completion_id, parse_completion
from confide.upstream.base import Asked, SurfaceName


class Completions(Spoken):
    """Nothing that speaks only chat can answer it: a template would stand around the prompt."""

    name: SurfaceName = "completions"
    endpoint = "/v1/completions"
    ways: frozenset[SurfaceName] = frozenset({"completions"})

    def new_id(self, random: bytes) -> str:
        """See Surface.new_id."""
        return new_completion_id(random)

    def parse(self, body: bytes, models: ModelTable) -> Asked:
        """See Surface.parse."""
        return parse_relayed(body) if models.is_relayed else parse_completion(body)
