"""What an embedding model is given of a request: entries that it can take, in batches that it is done with soon."""

from collections.abc import Iterator, Sequence

import msgspec

from confide.engine.wordpiece import WordPiece
from confide.errors import InvalidRequest
from confide.protocol.embeddings import INPUT, MAX_TOKENS
from confide.protocol.text_inputs import Text

BATCH_TOKENS = 512
BATCH_ENTRIES = 64
# No piece of a vocabulary is longer; white space and unknown words may be, and are refused beyond that.
CHARS_A_TOKEN = 64
BYTES_A_TOKEN = 3  # of texts that the engine cuts into tokens: a guess that makes batches rather too small


class Limits(msgspec.Struct, frozen=True):
    """Of a model. `context_length`: tokens of one entry. `token_count`: of its vocabulary."""

    context_length: int
    token_count: int


def prepared(texts: Sequence[Text], tokenizer: WordPiece | None, limits: Limits) -> list[Text]:
    """The entries as the engine gets them: token ids, or without a tokenizer of ours the texts themselves.

    Raises InvalidRequest for one that the model cannot take, and where there is too much in all.
    """
    entries: list[Text] = []
    left = MAX_TOKENS
    for index, text in enumerate(texts):
        entry = entry_of(text, tokenizer, limits)
        if problem := problem_of(entry, limits):
            name = INPUT if len(texts) == 1 else f"{INPUT}[{index}]"
            raise InvalidRequest(f"{name} has {problem}", param=INPUT)
        left -= size_of(entry)
        if left < 0:
            raise InvalidRequest(f"{INPUT} has more than {MAX_TOKENS} tokens in all; send less at a time", param=INPUT)
        entries.append(entry)
    return entries


def entry_of(text: Text, tokenizer: WordPiece | None, limits: Limits) -> Text:
    """Token ids where we can tell them. What is too long in any case is not looked at."""
    if tokenizer is None or not isinstance(text, str) or len(text) > limits.context_length * CHARS_A_TOKEN:
        return text
    return tuple(tokenizer.encode(text, limits.context_length))


def problem_of(entry: Text, limits: Limits) -> str | None:
    """What of it the model cannot take, None for nothing that shows here."""
    most = limits.context_length * (CHARS_A_TOKEN if isinstance(entry, str) else 1)
    if len(entry) > most:
        return f"more tokens than the {limits.context_length} that this model takes"
    if not isinstance(entry, str) and max(entry) >= limits.token_count:
        return f"a token id that this model does not know; they are below {limits.token_count}"
    return None


def size_of(entry: Text) -> int:
    """Tokens, or about as many."""
    return -(-len(entry.encode()) // BYTES_A_TOKEN) if isinstance(entry, str) else len(entry)


def batches(entries: Sequence[Text]) -> Iterator[Sequence[Text]]:
    """The entries in order, in parts that the engine works on for a short time; a long entry is one of its own."""
    begin, tokens = 0, 0
    for end, entry in enumerate(entries):
        size = size_of(entry)
        if end > begin and (tokens + size > BATCH_TOKENS or end - begin == BATCH_ENTRIES):
            yield entries[begin:end]
            begin, tokens = end, 0
        tokens += size
    yield entries[begin:]
