"""An embeddings request, from one decode of its body, and the bytes of its answer (wire contract 3.2).

Proved by `parse_embeddings`: every member has its type, nothing is asked for that is not known here, and there are 1 to
2048 texts or lists of token ids, none of them empty. Not checked here: what only the model knows, which is the length
of an entry in tokens, the ids that its vocabulary has, and `dimensions`.
"""

import base64
import struct
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Raw

from confide.errors import InvalidRequest
from confide.protocol.chat_body import FREE_FORM_BYTES, MAX_INTEGER
from confide.protocol.chat_errors import RuleBroken, refusal
from confide.protocol.chat_messages import ClosedStruct, PromptStruct
from confide.protocol.text_inputs import Text, read_texts

MAX_ENTRIES = 2048
MAX_TOKENS = 300_000  # of one request, as OpenAI has it
FLOAT_BYTES = 4

Encoding = Literal["float", "base64"]
INPUT: Final = "input"
EXPECTED: Mapping[str, str] = {
    "encoding_format": "float or base64",
    "dimensions": "an integer of at least 1",
}


class EmbeddingsBody(ClosedStruct, frozen=True):
    """The members as sent; `null` means absent. `stream` has no effect: an answer is always whole."""

    model: str
    input: Raw
    encoding_format: Encoding | None = None
    dimensions: Annotated[int, Meta(ge=1, le=MAX_INTEGER)] | None = None
    user: str | None = None
    stream: bool | None = None
    provider: Raw = Raw()


class EmbeddingsRequest(PromptStruct, frozen=True):
    """A request whose rules hold. `texts`: all of them strings, or all of them token ids.

    `dimensions`: numbers of each vector, None for as many as the model makes.
    """

    model: str
    texts: tuple[Text, ...]
    encoding: Encoding = "float"
    dimensions: int | None = None
    user: str | None = None
    provider: Mapping[str, object] | None = None
    stream: bool = False


decode_body = msgspec.json.Decoder(EmbeddingsBody).decode
decode_provider = msgspec.json.Decoder(dict[str, object] | None).decode


def parse_embeddings(body: bytes) -> EmbeddingsRequest:
    """The request in `body`, one UTF-8 JSON object. Raises InvalidRequest, `param` the member (wire contract 3.2).

    Of duplicate member names the last wins.
    """
    at = ""
    try:
        sent = decode_body(body)
        at = "provider"
        provider = read_provider(sent.provider)
        at = ""
        texts = read_texts(sent.input, member=INPUT, most=MAX_ENTRIES)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RuleBroken) as error:
        refused: InvalidRequest = refusal(error, EXPECTED, at=at)
    else:
        return EmbeddingsRequest(
            model=sent.model,
            texts=texts,
            encoding=sent.encoding_format or "float",
            dimensions=sent.dimensions,
            user=sent.user,
            provider=provider,
        )
    raise refused  # outside the handler: the context of an exception is logged with it, and this one quotes the body


def read_provider(raw: Raw) -> Mapping[str, object] | None:
    if not raw:
        return None
    if len(raw) > FREE_FORM_BYTES:
        raise RuleBroken("", f"is too large: it may have {FREE_FORM_BYTES} bytes")
    provider: dict[str, object] | None = decode_provider(raw)
    return provider


def new_embeddings_id(random: bytes) -> str:
    """What the service's own log calls an answer; the answer itself has no id. `random`: 16 bytes."""
    return f"embd-{random.hex()}"


def embedding_document(index: int, vector: bytes, encoding: Encoding) -> bytes:
    """One entry of the answer's `data`, as JSON. `vector`: IEEE-754 single floats, little-endian."""
    if encoding == "base64":
        value: object = base64.b64encode(vector).decode()
    else:
        value = struct.unpack(f"<{len(vector) // FLOAT_BYTES}f", vector)
    return msgspec.json.encode({"object": "embedding", "index": index, "embedding": value})


def embeddings_body(documents: Sequence[bytes], *, model: str, prompt_tokens: int) -> bytes:
    """The body of the answer. `documents`: of each entry, in order. `model`: as the client named it."""
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    end = b'],"model":%b,"usage":%b}' % (msgspec.json.encode(model), msgspec.json.encode(usage))
    return b"".join((b'{"object":"list","data":[', b",".join(documents), end))
