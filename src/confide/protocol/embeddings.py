"""An embeddings request, from one decode of its body, and the bytes of its answer (wire contract 3.2).

Proved by `parse_embeddings`: every member has its type, nothing is asked for that is not known here, and there are 1 to
2048 texts or lists of token ids, none of them empty. Not checked here: what only the model knows, which is the length
of an entry in tokens, the ids that its vocabulary has, and `dimensions`.
"""

import base64
import itertools
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Raw

from confide.errors import InvalidRequest
from confide.protocol.chat_body import FREE_FORM_BYTES, MAX_INTEGER, TokenId
from confide.protocol.chat_errors import RuleBroken, refusal
from confide.protocol.chat_messages import ClosedStruct, PromptStruct

MAX_ENTRIES = 2048
MAX_TOKENS = 300_000  # of one request, as OpenAI has it; a text has at least one
FLOAT_BYTES = 4

Encoding = Literal["float", "base64"]
Texts: TypeAlias = tuple[str, ...]
TokenLists: TypeAlias = tuple[tuple[int, ...], ...]

INPUT: Final = "input"
SHAPE = "a string, an array of strings, an array of token ids or an array of such arrays"
EXPECTED: Mapping[str, str] = {
    INPUT: SHAPE,
    "encoding_format": "float or base64",
    "dimensions": "an integer of at least 1",
}
# What separates values outside of texts: with as many of them come as many values, and one.
SEPARATOR = re.compile(rb'"(?:[^"\\]|\\.)*+"|([\[,])', re.DOTALL)


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
    """A request whose rules hold. One of `texts` and `token_lists` has the entries in order, the other is empty.

    `dimensions`: elements of each vector, None for as many as the model makes.
    """

    model: str
    texts: Texts = ()
    token_lists: TokenLists = ()
    encoding: Encoding = "float"
    dimensions: int | None = None
    user: str | None = None
    provider: Mapping[str, object] | None = None
    stream: bool = False


class Entries(msgspec.Struct, frozen=True, gc=False):
    """`input`, by what its first character says that it is."""

    texts: Texts = ()
    token_lists: TokenLists = ()


decode_body = msgspec.json.Decoder(EmbeddingsBody).decode
decode_text = msgspec.json.Decoder(str).decode
decode_texts = msgspec.json.Decoder(tuple[str, ...]).decode
decode_ids = msgspec.json.Decoder(tuple[TokenId, ...]).decode
decode_id_lists = msgspec.json.Decoder(tuple[tuple[TokenId, ...], ...]).decode
decode_provider = msgspec.json.Decoder(dict[str, object] | None).decode


def parse_embeddings(body: bytes) -> EmbeddingsRequest:
    """The request in `body`, one UTF-8 JSON object. Raises InvalidRequest, `param` the member (wire contract 3.2).

    Of duplicate member names the last wins. What the body makes of memory is bounded: values are counted before they
    are decoded.
    """
    at = ""
    try:
        sent = decode_body(body)
        at = "provider"
        provider = read_provider(sent.provider)
        at = INPUT
        entries = read_input(bytes(sent.input).strip(b" \t\n\r"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RuleBroken) as error:
        refused: InvalidRequest = refusal(error, EXPECTED, at=at)
    else:
        return EmbeddingsRequest(
            model=sent.model,
            texts=entries.texts,
            token_lists=entries.token_lists,
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


def read_input(raw: bytes) -> Entries:
    """The entries. Raises RuleBroken or msgspec.ValidationError for what is none of the four forms."""
    inner = raw[1:].lstrip(b" \t\n\r")[:1] if raw[:1] == b"[" else b""
    if raw[:1] == b'"':
        return Entries(texts=checked((decode_text(raw),)))
    if raw == b"null":
        raise RuleBroken("", "is required")
    require_few(raw)
    if inner in (b'"', b"]"):
        return Entries(texts=checked(decode_texts(raw)))
    if inner == b"[":
        return Entries(token_lists=checked(decode_id_lists(raw)))
    return Entries(token_lists=checked((decode_ids(raw),)))


def require_few(raw: bytes) -> None:
    """Raise RuleBroken where there are more values in it than a request may have."""
    most = MAX_TOKENS + MAX_ENTRIES
    separators = (found for found in SEPARATOR.finditer(raw) if found[1])
    if next(itertools.islice(separators, most, None), None) is not None:
        raise RuleBroken("", f"has too many values: a request may have {MAX_TOKENS} tokens")


Sized = TypeVar("Sized", Texts, TokenLists)


def checked(entries: Sized) -> Sized:
    """The entries where their number is right and none is empty."""
    if not 0 < len(entries) <= MAX_ENTRIES:
        raise RuleBroken("", f"must have 1 to {MAX_ENTRIES} entries")
    if not all(entries):
        raise RuleBroken("", "must have no empty entries")
    return entries


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
