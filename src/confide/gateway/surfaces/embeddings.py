"""`POST /v1/embeddings` (wire contract 3.2): always one whole answer, which has no id of its own."""

import msgspec

from confide.gateway.models import ModelTable
from confide.gateway.surfaces.base import Spoken
from confide.protocol.chat_relayed import parse_relayed
from confide.protocol.embeddings import new_embeddings_id, parse_embeddings
from confide.upstream.base import Asked, SurfaceName


class Embeddings(Spoken):
    """Answered by embedding models alone."""

    name: SurfaceName = "embeddings"
    endpoint = "/v1/embeddings"
    ways: frozenset[SurfaceName] = frozenset({"embeddings"})

    def new_id(self, random: bytes) -> str:
        """See Surface.new_id."""
        return new_embeddings_id(random)

    def parse(self, body: bytes, models: ModelTable) -> Asked:
        """See Surface.parse. `stream` has no effect."""
        if models.is_relayed:
            return msgspec.structs.replace(parse_relayed(body), stream=False)
        return parse_embeddings(body)
