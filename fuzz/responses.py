"""Fuzz the Responses surface: any bytes give a request of chat or InvalidRequest, and any stream of chat gives the same
events wherever it is cut.
"""

import sys

import msgspec

from confide.errors import InvalidRequest
from confide.protocol.chat import parse_chat
from confide.protocol.responses import ResponsesTranslation
from confide.protocol.responses_body import ResponsesBody
from confide.protocol.responses_request import parse_responses
from confide.protocol.translation import Untranslatable
from fuzz.chat import INNER_MEMBERS, spell

REQUIRED: dict[str, object] = {"model": "m", "input": "hi"}
OF_ITEMS = "call_id output summary refusal status annotations reasoning encrypted_content verbosity"
MEMBERS = [*ResponsesBody.__struct_fields__, *INNER_MEMBERS.split(), *OF_ITEMS.split()]
OF_CHUNKS = """
choices index delta content refusal reasoning_content tool_calls id function name arguments finish_reason usage error
"""
REQUEST = parse_responses(msgspec.json.encode(REQUIRED))


def fuzz_one(data: bytes) -> None:
    """One input: as a body, as choices that spell a request, and as a stream of chunks."""
    parse(data)
    request = spell(iter(data), MEMBERS)
    parse(msgspec.json.encode({**REQUIRED, **request} if isinstance(request, dict) else request))
    choices = iter(data)
    chunks = [spell(choices, OF_CHUNKS.split()) for _ in range(4)]
    stream = b"".join(b"data: %b\n\n" % msgspec.json.encode(chunk) for chunk in chunks)
    cut = len(data) % (len(stream) + 1)
    if told(stream) != told(stream[:cut], stream[cut:]):
        raise AssertionError("the events depend on how the stream was cut")


def parse(body: bytes) -> None:
    """What is accepted is a request of chat too; a refusal carries nothing with it."""
    try:
        request = parse_responses(body)
    except InvalidRequest as refused:
        if refused.__context__ is not None:
            raise AssertionError("the refusal carries the decoder's error, which quotes the body") from None
        return
    parse_chat(request.chat_body())


def told(*parts: bytes) -> tuple[bytes, bool]:
    """The bytes of the answer, and whether the stream was one."""
    translation = ResponsesTranslation(REQUEST, id="resp_" + "0" * 32, created=1, model="m")
    sent = b""
    try:
        for part in parts:
            sent += translation.feed(part)
        return sent + translation.end(), True
    except Untranslatable:
        return sent + translation.tail("it broke", "upstream_error", 502), False


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
