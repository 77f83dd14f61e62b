"""Texts that a tokenizer takes for tokens of its own, and how they are made harmless in a client's words."""

import re
from collections.abc import Iterable

UNSEEN = "\u200b"  # zero width space: keeps a special token's text readable, and no longer a token
MARKERS = frozenset(
    ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>", "<__media__>"]
)


def special_pattern(special_tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern for the tokenizer's special tokens and the markers of template and engine, the longest first.

    Left out is what an inserted character cannot break: a single one, and a token that holds that character itself.
    """
    breakable = (token for token in special_tokens if len(token.strip()) > 1 and UNSEEN not in token)
    texts = sorted({*MARKERS, *breakable}, key=len, reverse=True)
    return re.compile("|".join(re.escape(text) for text in texts))


def neutralise(text: str, special: re.Pattern[str]) -> str:
    """The text with every special token broken by a zero-width space, so that it cannot open or close a turn."""
    while special.search(text):  # again, as tokens may overlap
        text = special.sub(lambda found: found[0][0] + UNSEEN + found[0][1:], text)
    return text


def neutralised(value: object, special: re.Pattern[str]) -> object:
    """The same for every string inside a JSON value, names of members included."""
    if isinstance(value, str):
        return neutralise(value, special)
    if isinstance(value, dict):
        return {neutralise(name, special): neutralised(member, special) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [neutralised(member, special) for member in value]
    return value
