"""What an embedding model is given of a request: entries that it can take, in batches that it is done with soon."""

from collections.abc import Iterator, Sequence

import msgspec

from confide.engine.wordpiece import WordPiece
from confide.errors import InvalidRequest
from confide.protocol.embeddings import INPUT, MAX_TOKENS

BATCH_TOKENS = 512
BATCH_ENTRIES = 64
# No piece of a vocabulary is longer; white space and unknown words may be, and are refused beyond that.
CHARS_A_TOKEN = 64
BYTES_A_TOKEN = 3  # of texts that the engine cuts into tokens: a guess that makes batches rather too small

Entry = str | Sequence[int]


class Limits(msgspec.Struct, frozen=True):
    """Of a model. `context_length`: tokens of one entry. `token_count`: of its vocabulary."""

    context_length: int
    token_count: int


def check_ids(lists: Sequence[Sequence[int]], limits: Limits) -> None:
    """Raise InvalidRequest for a list that is too long, or an id that the vocabulary does not have."""
    for index, ids in enumerate(lists):
        if len(ids) > limits.context_length:
            raise too_long(index, len(lists), limits)
        if max(ids) >= limits.token_count:
            raise InvalidRequest(
                f"{named(index, len(lists))} has a token id that this model does not know; they are below "
                f"{limits.token_count}",
                param=INPUT,
            )


def check_texts(texts: Sequence[str], limits: Limits) -> None:
    """Raise InvalidRequest for a text that is too long to be cut into tokens at all."""
    for index, text in enumerate(texts):
        if len(text) > limits.context_length * CHARS_A_TOKEN:
            raise too_long(index, len(texts), limits)


def tokenized(texts: Sequence[str], tokenizer: WordPiece, limits: Limits) -> list[list[int]]:
    """The ids of each text. Raises InvalidRequest where one has too many, or all have together."""
    entries: list[list[int]] = []
    left = MAX_TOKENS
    for index, text in enumerate(texts):
        ids = tokenizer.encode(text, limits.context_length)
        left -= len(ids)
        if len(ids) > limits.context_length:
            raise too_long(index, len(texts), limits)
        if left < 0:
            raise too_many()
        entries.append(ids)
    return entries


def too_long(index: int, count: int, limits: Limits) -> InvalidRequest:
    return InvalidRequest(
        f"{named(index, count)} has more tokens than the {limits.context_length} that this model takes", param=INPUT
    )


def too_many() -> InvalidRequest:
    return InvalidRequest(f"input has more than {MAX_TOKENS} tokens in all; send less at a time", param=INPUT)


def named(index: int, count: int) -> str:
    """What an entry of `count` is called in an error."""
    return INPUT if count == 1 else f"{INPUT}[{index}]"


def batches(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """The entries in order, in parts that the engine works on for a short time; a long entry is one of its own."""
    begin, tokens = 0, 0
    for end, entry in enumerate(entries):
        size = -(-len(entry.encode()) // BYTES_A_TOKEN) if isinstance(entry, str) else len(entry)
        if end > begin and (tokens + size > BATCH_TOKENS or end - begin == BATCH_ENTRIES):
            yield entries[begin:end]
            begin, tokens = end, 0
        tokens += size
    yield entries[begin:]
