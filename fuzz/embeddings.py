"""Fuzz embeddings: a request is parsed or refused, and its texts are cut into tokens whatever they hold."""

import sys

import msgspec

from confide.engine import bert
from confide.engine.entries import Limits, batches, prepared
from confide.engine.wordpiece import WordPiece
from confide.errors import InvalidRequest
from confide.protocol.embeddings import EmbeddingsBody, parse_embeddings
from fuzz.chat import spell

REQUIRED: dict[str, object] = {"model": "m", "input": "hello"}
MEMBERS = list(EmbeddingsBody.__struct_fields__)
VOCABULARY = [*bert.SPECIAL, *(mark + char for char in "abcdefghijklmnopqrstuvwxyz0123456789" for mark in ("", "##"))]
TOKENIZER = WordPiece([bert.spelled(token) for token in VOCABULARY])
LIMITS = Limits(context_length=64, token_count=TOKENIZER.size)


def fuzz_one(data: bytes) -> None:
    """One input: as a body, as choices that spell one, and as a text."""
    parse(data)
    spelt = spell(iter(data), MEMBERS)
    parse(msgspec.json.encode({**REQUIRED, **spelt} if isinstance(spelt, dict) else spelt))
    ids = TOKENIZER.encode(data.decode("utf-8", errors="replace"), 64)
    if not 2 <= len(ids) <= 65 or not all(0 <= number < TOKENIZER.size for number in ids):
        raise AssertionError("a text with other tokens than those of the vocabulary, or more than the limit")


def parse(body: bytes) -> None:
    """What is accepted comes out in batches, whole; a refusal carries nothing with it."""
    try:
        request = parse_embeddings(body)
        entries = prepared(request.texts, TOKENIZER, LIMITS)
    except InvalidRequest as refused:
        if refused.__context__ is not None:
            raise AssertionError("the refusal carries the decoder's error, which quotes the body") from None
        return
    if [entry for batch in batches(entries) for entry in batch] != entries:
        raise AssertionError("an entry was lost between the batches")


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
