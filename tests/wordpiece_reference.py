"""BERT's uncased WordPiece, one character after the other: what the program's tokenizer is compared with."""

import unicodedata
from collections.abc import Mapping


def encode(text: str, ids: Mapping[str, int]) -> list[int]:
    """Token ids of a text without special tokens in it, between those of [CLS] and [SEP]. `ids`: of vocab.txt."""
    found = [piece for word in basic_words(text) for piece in pieces(word, ids)]
    return [ids["[CLS]"], *(ids[piece] for piece in found), ids["[SEP]"]]


def pieces(word: str, ids: Mapping[str, int]) -> list[str]:
    if len(word) > 100:
        return ["[UNK]"]
    found: list[str] = []
    rest = word
    while rest:
        marked = [("##" if found else "") + rest[:end] for end in range(len(rest), 0, -1)]
        piece = next((each for each in marked if each in ids), None)
        if piece is None:
            return ["[UNK]"]
        rest = rest[len(piece) - (2 if found else 0) :]
        found.append(piece)
    return found


def basic_words(text: str) -> list[str]:
    """The words before they are cut into pieces, one character after the other."""
    spaced = ""
    for char in text:
        category = unicodedata.category(char)
        if char in "\t\n\r" or (char.isspace() and category.startswith("Z")):
            spaced += " "
        elif category not in ("Cc", "Cf", "Co") and char != "\ufffd":
            spaced += f" {char} " if is_chinese(ord(char)) else char
    words = ""
    for char in unicodedata.normalize("NFD", spaced):
        category = unicodedata.category(char)
        if category != "Mn":
            is_mark = category[0] == "P" or char in "$+<=>^`|~"
            words += f" {char} " if is_mark else char.lower()
    return words.split()


def is_chinese(code: int) -> bool:
    """CJK Unified Ideographs, their extensions A to E as BERT has them, and the compatibility ideographs."""
    blocks = "4e00-9fff 3400-4dbf 20000-2a6df 2a700-2b73f 2b740-2b81f 2b920-2ceaf f900-faff 2f800-2fa1f"
    return any(
        int(first, 16) <= code <= int(last, 16) for first, last in (block.split("-") for block in blocks.split())
    )
