"""WordPiece by the rules of BERT's own tokenizer. Whole sentences: tests/e2e/test_embedded_vectors.py."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import wordpiece_reference
from confide.engine import bert
from confide.engine.wordpiece import WordPiece, words
from confide.errors import ConfigError
from sentences import SENTENCES

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789éЖжσς世가ᄀ\u1161नम!-$"
LINES = [
    *bert.SPECIAL,
    *sorted(set(ALPHABET)),
    *(f"##{char}" for char in sorted(set(ALPHABET))),
    *("hello", "##llo", "he", "wor", "##ld", "##ing", "un", "##known", "a", "##bc", "bcd"),
]
VOCABULARY = list(dict.fromkeys(LINES))
IDS = {token: number for number, token in enumerate(VOCABULARY)}
TOKENIZER = WordPiece([bert.spelled(token) for token in VOCABULARY])
NO_LIMIT = 10**6


def pieces(text: str) -> list[str]:
    """What is between [CLS] and [SEP], as vocab.txt spells it."""
    first, *found, last = (VOCABULARY[number] for number in TOKENIZER.encode(text, NO_LIMIT))
    assert (first, last) == ("[CLS]", "[SEP]")
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \t\n\u3000", []),
        ("hello", ["hello"]),
        ("HELLO world", ["hello", "wor", "##ld"]),
        ("abcd", ["a", "##bc", "##d"]),
        ("a-b", ["a", "-", "b"]),
        ("café", ["[UNK]"]),
        ("x\u0301", ["x"]),
        ("世a世", ["世", "a", "世"]),
        ("가", ["ᄀ", "##\u1161"]),
        ("ΣΣ", ["σ", "##σ"]),
        ("z\u200bz", ["z", "##z"]),
        ("z\x00z", ["z", "##z"]),
        ("z\ufffdz", ["z", "##z"]),
        ("?", ["[UNK]"]),
        ("a" * 100, ["a"] + ["##a"] * 99),
        ("a" * 101, ["[UNK]"]),
        ("[SEP] a[MASK]b [sep]", ["[SEP]", "a", "[MASK]", "b", "[UNK]", "s", "##e", "##p", "[UNK]"]),
    ],
)
def test_a_text_is_cut_by_the_rules(text: str, expected: list[str]) -> None:
    if "é" in text:
        expected = ["c", "##a", "##f", "##e"]  # its accent is taken off before the vocabulary is asked
    assert pieces(text) == expected


@given(st.text() | st.text(st.sampled_from(ALPHABET + " \u0301\u200b\x85ÀİſK")))
@example("İ")
def test_any_text_is_cut_as_by_the_reference(text: str) -> None:
    assert TOKENIZER.encode(text, NO_LIMIT) == wordpiece_reference.encode(text, IDS)


def test_sentences_in_many_scripts_have_the_words_of_the_reference() -> None:
    for text in SENTENCES:
        assert list(words(text)) == wordpiece_reference.basic_words(text)


@given(st.text(st.sampled_from(ALPHABET + " ")), st.integers(1, 30))
def test_one_token_more_than_the_limit_says_that_there_are_more(text: str, limit: int) -> None:
    whole = TOKENIZER.encode(text, NO_LIMIT)
    assert TOKENIZER.encode(text, limit) == whole[: limit + 1]


def test_a_vocabulary_without_special_tokens_is_none() -> None:
    with pytest.raises(ConfigError, match=r"\[MASK\]"):
        WordPiece([bert.spelled(token) for token in VOCABULARY if token != "[MASK]"])
