"""One text or many, as words or as token ids: what `prompt` and `input` hold (wire contract 3.2, 3.3)."""

from contextlib import suppress
from typing import Annotated

import msgspec

from confide.protocol.chat_body import TokenId
from confide.protocol.chat_errors import RuleBroken

ARRAY_BYTES = 4 * 1024 * 1024  # most JSON of an array: millions of numbers take long to decode
EXPECTED = "a string, an array of strings, of token ids, or of arrays of token ids"

Text = str | tuple[int, ...]
Words = Annotated[str, msgspec.Meta(min_length=1)]
Tokens = Annotated[tuple[TokenId, ...], msgspec.Meta(min_length=1)]

decode_one = msgspec.json.Decoder(str).decode
decode_words = msgspec.json.Decoder(tuple[Words, ...]).decode
decode_tokens = msgspec.json.Decoder(tuple[TokenId, ...]).decode
decode_token_arrays = msgspec.json.Decoder(tuple[Tokens, ...]).decode


def read_texts(raw: msgspec.Raw, *, member: str, most: int) -> tuple[Text, ...]:
    """The texts in `raw`, each a string or token ids, 1 to `most` of them and none empty.

    Raises RuleBroken for `member`.
    """
    data = bytes(raw).lstrip()
    if data[:1] == b'"':
        text = decode_one(data)
        return (text,) if text else refuse(member, "must not be empty")
    if data[:1] != b"[":
        refuse(member, f"must be {EXPECTED}")
    if len(data) > ARRAY_BYTES:
        refuse(member, f"is too large: an array may have {ARRAY_BYTES} bytes")
    texts = read_array(data)
    if texts is None:
        return refuse(member, f"must be {EXPECTED}, none of them empty")
    if len(texts) > most:
        refuse(member, f"must have 1 to {most} entries, got {len(texts)}")
    return texts


def read_array(data: bytes) -> tuple[Text, ...] | None:
    """The texts of the array, of whichever kind it is; None for another or an empty one."""
    with suppress(msgspec.ValidationError):
        return decode_words(data) or None
    with suppress(msgspec.ValidationError):
        return (decode_tokens(data),)  # not empty: then it would have been words
    with suppress(msgspec.ValidationError):
        return decode_token_arrays(data)
    return None


def refuse(member: str, expected: str) -> tuple[Text, ...]:
    raise RuleBroken(member, expected)
