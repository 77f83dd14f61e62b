"""The attacker relays plain HTTP and writes the end of a stream so that an SDK sees it, and what withholds it does not.

A reader stops at the end that it sees. If that could be passed on before the proof, half an answer, or another one,
would be taken for whole, and nothing would ever be checked. Escapes, events in several lines, other line ends, split
reads: an end that the official SDKs see is held back however it is written. The twin: the plain end, proven.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import pytest

import confide
from attested_service import ANSWER, API_KEY, MODEL, AttestedService, Reply, Seen
from callers import PROMPT, SYNC_STREAM, asking, assert_latched, refusal


def ending_early(end: bytes) -> Callable[[Reply, Seen], Reply]:
    """Three events of the answer, an end, and then, so that nothing is over, the rest in small reads."""

    def alter(reply: Reply, _: Seen) -> Reply:
        rest = b"".join(reply.parts[3:])
        return reply.but(*reply.parts[:3], end, *(rest[at : at + 50] for at in range(0, len(rest), 50)))

    return alter


DONE = [
    b"data: [DONE]\n\n",
    b"data:[DONE]\n\n",
    b"data: [DONE]\r\n\r\n",
    b"data: [DONE]\r\r",
    b"data: [DONE]\n\r\n",
    b"data: [DONE]\r\n\n",
    b"data: [DONE] and more\n\n",
    b"data: [DONE]\ndata: more\n\n",
    b": comment\ndata: [DONE]\n\n",
    b"id: 1\nretry: 5\ndata: [DONE]\n\n",
    b"event: message\ndata: [DONE]\n\n",
    b"event\ndata: [DONE]\n\n",
    b"\n\n\ndata: [DONE]\n\n",
    b'data: {"error":{"message":"stop here"}}\n\n',
    b'data: {"err\\u006fr":{"message":"stop here"}}\n\n',
    b'data: {"x":NaN,"error":{"message":"stop here"}}\n\n',
    b'data: {"x":"\\ud800","error":{"message":"stop here"}}\n\n',
    b'data: {"error":null,"error":{"message":"stop here"}}\n\n',
    b'data: {"type":5,"error":{"message":"stop here"}}\n\n',
]


@pytest.mark.parametrize("end", DONE, ids=repr)
def test_no_end_that_the_openai_sdk_sees_comes_before_the_proof(service: AttestedService, end: bytes) -> None:
    service.alter["answer"] = ending_early(end)
    with asking(service, SYNC_STREAM) as caller:
        refusal(caller.ask, "receipt-4")
        assert "".join(caller.texts) == "The answer is "[: len("".join(caller.texts))]
        assert_latched(caller, service, "receipt-4")


def test_the_plain_end_is_proven(service: AttestedService) -> None:
    with asking(service, SYNC_STREAM) as caller:
        assert caller.ask() == ANSWER


@contextmanager
def reading(service: AttestedService) -> Iterator[Callable[[], list[Any]]]:
    """The events of the Anthropic SDK up to the one that ends the message, where a reader stops."""
    with (
        confide.Client(service.policy()) as http,
        anthropic.Anthropic(base_url=service.url, api_key=API_KEY, http_client=http, max_retries=0) as sdk,
    ):

        def read() -> list[Any]:
            seen = []
            messages: Any = [{"role": "user", "content": PROMPT}]
            with sdk.messages.create(model=MODEL, max_tokens=9, messages=messages, stream=True) as events:
                for event in events:
                    seen.append(event)
                    if event.type in ("message_stop", "error"):
                        break
            return seen

        yield read


STOP = [
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    b'event:message_stop\ndata:{"type":"message_stop"}\n\n',
    b'event: ping2\ndata: {"type":"message_stop"}\n\n',
    b'event: message_delta\ndata: {"type":"message\\u005fstop"}\n\n',
    b'event: message_delta\ndata: {"type":"\\u006dessage_stop"}\n\n',
    b'event: message_delta\ndata: {"ty\\u0070e":"message_stop"}\n\n',
    b'event: message_delta\ndata: {"type":"x","type":"message_stop"}\n\n',
    b'event: message_delta\ndata: {"type":\ndata: "message_stop"}\n\n',
    b'event: message_delta\r\ndata: {"type":"message_stop"}\r\n\r\n',
    b'event: message_delta\rdata: {"type":"message_stop"}\r\r',
    b'event: message_delta\ndata: {"x":NaN,"type":"message_stop"}\n\n',
    b'event: message_delta\ndata: {"x":"\\udc00","type":"message_stop"}\n\n',
    b'data: {"type":"message_stop"}\nevent: message_delta\n\n',
]


@pytest.mark.parametrize("end", STOP, ids=repr)
def test_no_end_that_the_anthropic_sdk_sees_comes_before_the_proof(service: AttestedService, end: bytes) -> None:
    service.alter["answer"] = ending_early(end)
    with reading(service) as read:
        refusal(read, "receipt-4")


def test_an_error_that_is_put_in_is_an_unproven_answer_and_no_error_of_the_service(service: AttestedService) -> None:
    service.alter["answer"] = ending_early(b'event: error\ndata: {"type":"error","error":{"type":"x"}}\n\n')
    with reading(service) as read:
        refusal(read, "receipt-4")


def test_the_plain_message_is_proven(service: AttestedService) -> None:
    with reading(service) as read:
        assert [event.type for event in read()][-1] == "message_stop"
    assert confide.proof(next(iter(reversed(service.receipts)))).ok


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_an_end_in_pieces_is_an_end(service: AttestedService, size: int) -> None:
    def in_pieces(reply: Reply, _: Seen) -> Reply:
        body = b"".join((*reply.parts[:3], b"data: [DONE]\r\n\r\n", *reply.parts[3:]))
        return reply.but(*(body[at : at + size] for at in range(0, len(body), size)))

    service.alter["answer"] = in_pieces
    with asking(service, SYNC_STREAM) as caller:
        refusal(caller.ask, "receipt-4")
