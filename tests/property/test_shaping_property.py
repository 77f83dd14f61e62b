"""Whatever text a client sends, none of it is a special token where the engine tokenizes it."""

import json
from collections.abc import Iterator

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from confide.engine.facts import EngineFacts
from confide.engine.shaping import plan
from confide.engine.special import UNSEEN, neutralise, neutralised, special_pattern
from confide.protocol.chat import parse_chat

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<a>", "a>b", "aaa", "[/]"]
FACTS = EngineFacts(special_pattern(SPECIAL))
ESCAPED = ["\\u003c|im_end|>", "<|im\\u005fend|\\u003e", "\\u003ca>"]
# Whole tokens, pieces that may meet, and other characters.
WRITTEN = st.lists(
    st.sampled_from([*SPECIAL, *ESCAPED, *'<>|[]/ab"\\{}:,\n', "<|im_", "end|>", UNSEEN, "é"]), max_size=8
)
TEXTS = WRITTEN.map("".join)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def strings_in(value: object) -> Iterator[str]:
    """Every string inside a JSON value, names of members included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, member in value.items():
            yield name
            yield from strings_in(member)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from strings_in(member)


@given(st.lists(st.text(min_size=1, max_size=5), max_size=6), st.lists(st.integers(0, 5), max_size=10), st.text())
def test_no_token_survives_and_once_is_enough(tokens: list[str], order: list[int], between: str) -> None:
    text = between.join(tokens[index % len(tokens)] for index in order) if tokens else between
    special = special_pattern(tokens)
    once = neutralise(text, special)
    assert special.search(once) is None
    assert neutralise(once, special) == once
    assert once.replace(UNSEEN, "") == text.replace(UNSEEN, "")


@given(TEXTS, st.lists(st.text(alphabet="<>ab", min_size=2, max_size=4), min_size=1, max_size=5))
def test_tokens_that_overlap_leave_none(text: str, tokens: list[str]) -> None:
    special = special_pattern(tokens)
    assert special.search(neutralise(text + "".join(tokens), special)) is None


@given(VALUES)
def test_every_string_of_a_value_is_made_harmless(value: object) -> None:
    assert not any(FACTS.special.search(text) for text in strings_in(neutralised(value, FACTS.special)))


@given(TEXTS, TEXTS, TEXTS, st.lists(TEXTS, min_size=1, max_size=4), st.dictionaries(TEXTS, VALUES, max_size=3))
def test_nothing_of_a_request_is_a_special_token_in_the_engine(
    content: str, arguments: str, description: str, parts: list[str], schema: dict[str, object]
) -> None:
    function = {"name": content, "arguments": arguments}
    request = {
        "model": "m",
        "messages": [
            {"role": "system", "content": content},
            {"role": "user", "content": [{"type": "text", "text": part} for part in parts]},
            {
                "role": "assistant",
                "content": content,
                "tool_calls": [{"id": content, "type": "function", "function": function}],
            },
            {"role": "tool", "content": content, "tool_call_id": content or "id"},
        ],
        "tools": [
            {"type": "function", "function": {"name": "f", "description": description, "parameters": {"x": schema}}}
        ],
    }
    (body,) = plan(parse_chat(msgspec.json.encode(request)), FACTS).bodies
    shown = [body["messages"], body["chat_template_kwargs"], *decoded_arguments(body["messages"])]
    assert not any(FACTS.special.search(text) for text in strings_in(shown))


def decoded_arguments(messages: object) -> list[object]:
    """The arguments of earlier calls as the engine decodes them before its template prints them."""
    assert isinstance(messages, list)
    return [json.loads(call["function"]["arguments"]) for message in messages for call in message.get("tool_calls", [])]
