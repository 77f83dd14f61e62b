"""Fuzz the chat request: any bytes give a request or InvalidRequest, which quotes no body."""

import sys
from collections.abc import Iterator

import msgspec

from confide.errors import InvalidRequest
from confide.protocol.chat import parse_chat
from confide.protocol.chat_body import ChatBody

REQUIRED: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

# A byte picks one: random bytes hardly ever spell a member name, and msgspec gives the fuzzer no coverage to climb.
INNER_MEMBERS = """
role content type text image_url url detail input_audio data format file tool_calls id tool_call_id function name
arguments parameters strict json_schema schema effort enabled exclude include_usage
"""
WORDS = """
system developer user assistant tool text image_url input_audio file function json_schema json_object
auto none required low high wav data:image/png;base64, https://a # #/ #/$defs/a #/properties/a/items
object string array integer ^a$ [ (a{99999999999} \\$ a b
"""
MEMBERS = [*ChatBody.__struct_fields__, *INNER_MEMBERS.split()]
NUMBERS = [0, 1, -1, 2.0, 0.5, 129, 2**63, 2**70]
SCALARS: list[object] = [*WORDS.split(), *NUMBERS, None, True, False, [], {}, "", "é", "\n"]


def fuzz_one(data: bytes) -> None:
    """One input: as a body, and as choices that spell a request."""
    parse(data)
    request = spell(iter(data), MEMBERS)
    parse(msgspec.json.encode({**REQUIRED, **request} if isinstance(request, dict) else request))


def spell(choices: Iterator[int], names: list[str], depth: int = 0) -> object:
    """A JSON value out of `names` and SCALARS; an object at the top, null when the choices run out."""
    choice = next(choices, 255) if depth else 0
    if choice < 96 and depth < 80:
        size = next(choices, 0) % 8
        return {names[next(choices, 0) % len(names)]: spell(choices, names, depth + 1) for _ in range(size)}
    if choice < 128 and depth < 80:
        return [spell(choices, names, depth + 1) for _ in range(next(choices, 0) % 8)]
    return None if choice == 255 else SCALARS[choice % len(SCALARS)]


def parse(body: bytes) -> None:
    """A parsed request keeps its promises; a refusal comes from nowhere else and carries nothing with it."""
    try:
        request = parse_chat(body)
    except InvalidRequest as refused:
        if refused.__context__ is not None:
            raise AssertionError("the refusal carries the decoder's error, which quotes the body") from None
        return
    if not request.messages or not 1 <= request.n <= 128 or (request.tool_choice != "none" and not request.tools):
        raise AssertionError("a request that breaks a rule was let through")
    for text in (request.model, *request.stop):
        text.encode()  # no lone surrogate comes through


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
