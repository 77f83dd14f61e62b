"""Fuzz Messages: a request is a request of chat or is refused, and events do not depend on how a stream was split."""

import sys

import msgspec

from confide.errors import InvalidRequest
from confide.protocol.chat import parse_chat
from confide.protocol.messages_body import MessagesBody
from confide.protocol.messages_request import parse_messages
from confide.protocol.messages_translation import MessagesTranslation
from confide.protocol.translation import Untranslatable
from fuzz.chat import spell

REQUIRED: dict[str, object] = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
REQUEST = parse_messages(msgspec.json.encode(REQUIRED))
INNER_MEMBERS = """
role content type text source media_type data url id name input tool_use_id is_error thinking signature cache_control
ttl citations input_schema description strict disable_parallel_tool_use budget_tokens display effort format schema
choices delta index finish_reason stop_reason reasoning_content tool_calls function arguments usage prompt_tokens
"""
MEMBERS = [*MessagesBody.__struct_fields__, *INNER_MEMBERS.split()]


def fuzz_one(data: bytes) -> None:
    """One input: as a body, as choices that spell a request, and as a stream cut where its first byte says."""
    parse(data)
    spelt = spell(iter(data), MEMBERS)
    parse(msgspec.json.encode({**REQUIRED, **spelt} if isinstance(spelt, dict) else spelt))
    whole(data)
    whole(msgspec.json.encode(spelt))
    for stream in (data[1:], b"data: " + msgspec.json.encode(spelt) + b"\n\n"):
        cut = data[0] if data else 0
        if events_of(stream[:cut], stream[cut:]) != events_of(stream):
            raise AssertionError(f"the split at {cut} changed the events")


def parse(body: bytes) -> None:
    """What is accepted, chat accepts; a refusal carries nothing with it."""
    try:
        made = parse_messages(body).chat_body()
    except InvalidRequest as refused:
        if refused.__context__ is not None:
            raise AssertionError("the refusal carries the decoder's error, which quotes the body") from None
        return
    parse_chat(made)


def whole(body: bytes) -> None:
    """A message, or what is said of an answer that is none of chat's."""
    try:
        msgspec.json.decode(MessagesTranslation(REQUEST, id="msg_1", model="m").whole(body))
    except Untranslatable:
        return


def events_of(*parts: bytes) -> bytes | None:
    """The events, None where the stream is none of chat's."""
    translation = MessagesTranslation(REQUEST, id="msg_1", model="m")
    try:
        return b"".join([*(translation.feed(part) for part in parts), translation.end()])
    except Untranslatable:
        return None


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
