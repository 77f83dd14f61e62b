"""Text to token ids as BERT's own tokenizer has them: uncased WordPiece.

llama.cpp has a WordPiece tokenizer too. It is not asked, because it differs from the one that the models were trained
with: measured against that, it drops the vowels of Korean and Hindi, and cuts up words of more than 100 characters,
which are one unknown word for the model. The rules here are those of the field's fast tokenizer ("BertNormalizer",
"BertPreTokenizer", "WordPiece"), in its order.
"""

import itertools
import re
import string
import unicodedata
from collections.abc import Iterator, Sequence

from confide.engine.bert import SPECIAL, WORD_START
from confide.errors import ConfigError

MAX_WORD_CHARS = 100  # a longer word is unknown as a whole
ASCII_WORD = re.compile(r"[!-/:-@\[-`{-~]|[^\s!-/:-@\[-`{-~]+")
ASCII_PUNCTUATION = frozenset(string.punctuation)  # also what Unicode has for symbols: $ + < = > ^ ` | ~
ASCII_CONTROL = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 127])
SPECIAL_TOKEN = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")
# Ranges that BERT takes for Chinese characters: each is a word. Hangul, Hiragana and Katakana are not among them.
IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class WordPiece:
    """One vocabulary. `tokens`: as a GGUF file has them, words with U+2581 before them, in the order of their ids."""

    def __init__(self, tokens: Sequence[str]) -> None:
        ids = {token: number for number, token in enumerate(tokens)}
        if missing := SPECIAL.keys() - ids.keys():
            raise ConfigError(f"the vocabulary has no {', '.join(sorted(missing))}")
        self.size = len(tokens)
        self._special = {token: ids[token] for token in SPECIAL}
        self._first = {token[1:]: number for token, number in ids.items() if token.startswith(WORD_START)}
        self._next = {
            token: number
            for token, number in ids.items()
            if not token.startswith(WORD_START) and token not in self._special
        }
        self._longest = max(map(len, (*self._first, *self._next)))
        self._unknown = self._special["[UNK]"]

    def encode(self, text: str, limit: int) -> list[int]:
        """The ids of `text` between those of [CLS] and [SEP], `limit` + 1 of them where there would be more."""
        return list(itertools.islice(self._ids(text), limit + 1))

    def _ids(self, text: str) -> Iterator[int]:
        yield self._special["[CLS]"]
        for part in SPECIAL_TOKEN.split(text):
            if part in self._special:
                yield self._special[part]
            else:
                for word in words(part):
                    yield from self._pieces(word)
        yield self._special["[SEP]"]

    def _pieces(self, word: str) -> list[int]:
        """The longest pieces first to last, or the one id of what is unknown."""
        if len(word) > MAX_WORD_CHARS:
            return [self._unknown]
        known = self._first
        found: list[int] = []
        start = 0
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                piece = known.get(word[start:end])
                if piece is not None:
                    break
            else:
                return [self._unknown]
            found.append(piece)
            start, known = end, self._next
        return found


def words(text: str) -> Iterator[str]:
    """The words of a text, lower case and without accents; each punctuation mark and each ideograph is one."""
    if text.isascii():
        plain = text.translate(ASCII_CONTROL).lower()
        return (found[0] for found in ASCII_WORD.finditer(plain))
    # One rule a character that occurs, and then the text in one go: no table is kept from one text to the next.
    spaced = text.translate({ord(char): cleaned(char) for char in set(text)})
    parted = unicodedata.normalize("NFD", spaced)
    return iter(parted.translate({ord(char): plain_form(char) for char in set(parted)}).split())


def cleaned(char: str) -> str:
    """The character, a space for white space, nothing for what is not written, and spaces around an ideograph."""
    if char in "\t\n\r":
        return " "
    if char == REPLACEMENT or unicodedata.category(char) in ("Cc", "Cf", "Co"):
        return ""
    if char.isspace():
        return " "
    return f" {char} " if is_ideograph(char) else char


def plain_form(char: str) -> str:
    """Of a character after decomposition: nothing for an accent, spaces around a punctuation mark, lower case."""
    category = unicodedata.category(char)
    if category == "Mn":
        return ""
    return f" {char} " if char in ASCII_PUNCTUATION or category.startswith("P") else char.lower()


def is_ideograph(char: str) -> bool:
    return any(first <= ord(char) <= last for first, last in IDEOGRAPHS)
