"""An engine's answer of embeddings, which is never streamed (wire contract 3.2)."""

from contextlib import suppress

import msgspec

from confide.upstream.base import Tally
from confide.upstream.kinds.reading import StreamBroken


class VectorsUsage(msgspec.Struct):
    prompt_tokens: int | None = None


class Vectors(msgspec.Struct):
    """What is read of an answer. The vectors themselves are not decoded."""

    data: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()


decode_vectors = msgspec.json.Decoder(Vectors).decode
decode_usage = msgspec.json.Decoder(VectorsUsage | None).decode


class EmbeddingsReading:
    """See reading.Reading. An id that an engine gives them is none to find a receipt by."""

    path = b"/embeddings"
    last: bytes | None = None
    inside: str | None = None
    events = 0
    has_finished = False

    def whole(self, body: bytes, tally: Tally) -> None:
        """See Reading.whole."""
        told = decode_vectors(body)
        if not told.data:  # an error with status 200, for example
            raise StreamBroken("an answer without vectors")
        with suppress(msgspec.DecodeError):
            usage = decode_usage(told.usage) if told.usage else None
            tally.prompt_tokens = (usage.prompt_tokens if usage is not None else None) or 0

    def event(self, _data: bytes, _tally: Tally) -> bool:
        """See Reading.event."""
        raise StreamBroken("a stream of embeddings")
