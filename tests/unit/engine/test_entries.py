"""What an embedding model is given: entries that it can take, in batches, none lost and none out of order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.engine import bert
from confide.engine.entries import BATCH_ENTRIES, BATCH_TOKENS, CHARS_A_TOKEN, Limits, batches, prepared, size_of
from confide.engine.wordpiece import WordPiece
from confide.errors import InvalidRequest
from confide.protocol.embeddings import MAX_TOKENS
from confide.protocol.text_inputs import Text

VOCABULARY = (*bert.SPECIAL, "hello", "##s")
TOKENIZER = WordPiece([bert.spelled(token) for token in VOCABULARY])
LIMITS = Limits(context_length=8, token_count=len(VOCABULARY))


def refused(*texts: Text, tokenizer: WordPiece | None = TOKENIZER, limits: Limits = LIMITS) -> str:
    with pytest.raises(InvalidRequest) as caught:
        prepared(texts, tokenizer, limits)
    assert caught.value.param == "input"
    return caught.value.message


def test_texts_become_ids_and_ids_stay() -> None:
    assert prepared(("hello", "Hellos hello"), TOKENIZER, LIMITS) == [(2, 5, 3), (2, 5, 6, 5, 3)]
    assert prepared(((5,), (2, 3)), TOKENIZER, LIMITS) == [(5,), (2, 3)]


def test_without_a_tokenizer_texts_stay_texts() -> None:
    assert prepared(("hello",), None, LIMITS) == ["hello"]


def test_the_context_is_full_at_its_last_token() -> None:
    assert len(prepared(("hello " * 6,), TOKENIZER, LIMITS)[0]) == 8
    assert refused("hello " * 7) == "input has more tokens than the 8 that this model takes"
    assert refused("hello", "hello " * 7).startswith("input[1] has more tokens")
    assert prepared(((5,) * 8,), TOKENIZER, LIMITS)
    assert refused((5,) * 9).startswith("input has more tokens")


@pytest.mark.parametrize("tokenizer", [TOKENIZER, None])
def test_a_text_that_is_longer_than_any_tokens_could_be_is_not_cut(tokenizer: WordPiece | None) -> None:
    most = LIMITS.context_length * CHARS_A_TOKEN
    assert prepared((" " * most,), tokenizer, LIMITS)
    assert "more tokens than the 8" in refused(" " * (most + 1), tokenizer=tokenizer)


def test_an_id_that_the_vocabulary_does_not_have_is_named() -> None:
    assert refused((5,), (5, 7)) == "input[1] has a token id that this model does not know; they are below 7"


def test_a_request_has_a_limit_in_all() -> None:
    limits = Limits(context_length=MAX_TOKENS, token_count=7)
    assert prepared(((5,) * (MAX_TOKENS - 1), (5,)), None, limits)
    assert "in all" in refused((5,) * MAX_TOKENS, (5,), limits=limits)
    assert "in all" in refused(*["a" * 30_000] * 31, tokenizer=None, limits=Limits(512, 7))


ENTRIES = st.lists(
    st.integers(1, 600).map(lambda count: (5,) * count) | st.integers(1, 1800).map(lambda count: "a" * count),
    min_size=1,
    max_size=200,
)


@given(ENTRIES)
def test_batches_hold_every_entry_once_and_are_small(entries: list[Text]) -> None:
    parts = list(batches(entries))
    assert [entry for part in parts for entry in part] == entries
    for part in parts:
        assert 0 < len(part) <= BATCH_ENTRIES
        assert len(part) == 1 or sum(map(size_of, part)) <= BATCH_TOKENS


def test_short_entries_go_together() -> None:
    assert [len(part) for part in batches([(5,)] * 130)] == [64, 64, 2]
    assert [len(part) for part in batches([(5,) * 500, (5,) * 20, (5,) * 10])] == [1, 2]
