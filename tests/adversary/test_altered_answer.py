"""The attacker relays plain HTTP and changes the answer: a byte, an event, their order, the end, the connection.

They want an application to act on an answer that the service never gave, or on half of one as if it were whole. The
receipt names the hash of every byte that left; whatever arrives otherwise is refused, a stream before the event that
would end it. The twin: the same relay that changes nothing.
"""

from collections.abc import Callable

import pytest

from attested_service import ANSWER, TEXTS, AttestedService, Reply, Seen
from callers import BUFFERED, EVERY, STREAMED, Kind, asking, assert_latched, assert_refused, refusal

Parts = tuple[bytes, ...]


@pytest.mark.parametrize("kind", EVERY)
def test_what_is_passed_on_unchanged_is_proven(service: AttestedService, kind: Kind) -> None:
    service.alter["answer"] = lambda reply, _: reply.but(*reply.parts)
    with asking(service, kind) as caller:
        assert caller.ask() == ANSWER


@pytest.mark.parametrize("kind", STREAMED)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_how_the_bytes_are_cut_into_reads_changes_nothing(service: AttestedService, kind: Kind, size: int) -> None:
    def cut_up(reply: Reply, _: Seen) -> Reply:
        body = reply.body
        return reply.but(*(body[at : at + size] for at in range(0, len(body), size)))

    service.alter["answer"] = cut_up
    with asking(service, kind) as caller:
        assert caller.ask() == ANSWER


@pytest.mark.parametrize("kind", BUFFERED)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda body: body.replace(b"42", b"43"), id="a digit of the answer"),
        pytest.param(lambda body: body.replace(b'"stop"', b'"length"'), id="the finish reason"),
        pytest.param(lambda body: body.replace(b"vendor/model", b"vendor/mode1"), id="the model"),
        pytest.param(lambda body: body.replace(b"chatcmpl-", b"chatcmpl_"), id="the id"),
        pytest.param(lambda body: body + b"\n", id="a line feed more"),
        pytest.param(lambda body: b" " + body, id="a space before"),
        pytest.param(lambda body: body.replace(b'", "', b'","'), id="other white space"),
        pytest.param(lambda body: body.replace(b"answer", b"\\u0061nswer"), id="an escape"),
        pytest.param(lambda body: body[:-1] + b', "id": "x"}', id="a member twice"),
        pytest.param(lambda body: body[:-1], id="a byte less"),
        pytest.param(lambda _: b"", id="nothing"),
        pytest.param(lambda _: b"null", id="something else"),
    ],
)
def test_a_changed_body_is_refused(service: AttestedService, kind: Kind, change: Callable[[bytes], bytes]) -> None:
    def changed(reply: Reply, _: Seen) -> Reply:
        assert change(reply.body) != reply.body
        return reply.but(change(reply.body))

    service.alter["answer"] = changed
    with asking(service, kind) as caller:
        error = assert_refused(caller, service, "receipt-4")
        assert "got sha256:" in error.message
        assert "expected sha256:" in error.message
        assert ANSWER not in error.message


def test_every_bit_of_the_body_counts(service: AttestedService) -> None:
    """Each byte once, another bit each time; nothing of it reaches the caller."""
    with asking(service) as caller:
        caller.ask()
        length = len(caller.answer.to_json())  # of about this length
        for at in range(0, length, 7):

            def flipped(reply: Reply, _: Seen, at: int = at) -> Reply:
                body = bytearray(reply.body)
                body[at % len(body)] ^= 1 << at % 8
                return reply.but(bytes(body))

            service.alter["answer"] = flipped
            refusal(caller.ask, "receipt-4")
            caller.reset()


EVENTS: list[tuple[str, Callable[[Parts], Parts]]] = [
    ("a text event dropped", lambda parts: parts[:2] + parts[3:]),
    ("a text event twice", lambda parts: (*parts[:3], *parts[2:])),
    ("two events swapped", lambda parts: (*parts[:1], parts[2], parts[1], *parts[3:])),
    ("the finish reason dropped", lambda parts: parts[:-2] + parts[-1:]),
    ("truncated after a text", lambda parts: parts[:3]),
    ("truncated before [DONE]", lambda parts: parts[:-1]),
    ("truncated, with a [DONE]", lambda parts: (*parts[:3], parts[-1])),
    ("only [DONE]", lambda parts: parts[-1:]),
    ("nothing", lambda _: (b"",)),
    ("the first event dropped", lambda parts: parts[1:]),
    ("an event put in", lambda parts: (*parts[:2], parts[1].replace(TEXTS[0].encode(), b"No"), *parts[2:])),
    ("a keep-alive put in", lambda parts: (*parts[:2], b": PROCESSING\n\n", *parts[2:])),
    ("a keep-alive first", lambda parts: (b": PROCESSING\n\n", *parts)),
    ("a blank line put in", lambda parts: (*parts[:2], b"\n", *parts[2:])),
    ("an event after [DONE]", lambda parts: (*parts, parts[2])),
    ("a comment after [DONE]", lambda parts: (*parts, b": bye\n\n")),
    ("a line feed after [DONE]", lambda parts: (*parts, b"\n")),
    ("[DONE] twice", lambda parts: (*parts, parts[-1])),
    ("[DONE] early", lambda parts: (*parts[:3], parts[-1], *parts[3:])),
    ("CRLF", lambda parts: tuple(part.replace(b"\n", b"\r\n") for part in parts)),
    ("no last line feed", lambda parts: (*parts[:-1], parts[-1][:-1])),
    ("a text changed", lambda parts: tuple(part.replace(b"42.", b"43.") for part in parts)),
    ("an error event put in", lambda parts: (*parts[:3], b'data: {"error":{"message":"x"}}\n\n', *parts[3:])),
]


@pytest.mark.parametrize("kind", STREAMED)
@pytest.mark.parametrize("change", [each[1] for each in EVENTS], ids=[each[0] for each in EVENTS])
def test_a_changed_stream_is_refused(service: AttestedService, kind: Kind, change: Callable[[Parts], Parts]) -> None:
    def changed(reply: Reply, _: Seen) -> Reply:
        assert b"".join(change(reply.parts)) != reply.body
        return reply.but(*change(reply.parts))

    service.alter["answer"] = changed
    with asking(service, kind) as caller:
        assert_refused(caller, service, "receipt-4")


@pytest.mark.parametrize("kind", STREAMED)
def test_a_stream_that_is_cut_is_never_taken_for_whole(service: AttestedService, kind: Kind) -> None:
    """Nothing was learned about the service, so the client is not latched; and nothing is sent again by itself."""
    for kept in range(1, 7):

        def cut(reply: Reply, _: Seen, kept: int = kept) -> Reply:
            return reply.but(*reply.parts[:kept]).cut()

        service.alter["answer"] = cut
        before = len(service.prompts)
        with asking(service, kind) as caller:
            error = refusal(caller.ask, "receipt-4")
            assert "broke before the end" in error.message
            assert len(service.prompts) == before + 1
            del service.alter["answer"]
            assert caller.ask() == ANSWER


@pytest.mark.parametrize("kind", STREAMED)
def test_the_end_does_not_reach_a_reader_before_the_proof(service: AttestedService, kind: Kind) -> None:
    """The receipt is not to be had: all but the end of the stream was passed on, and the end is an error."""
    service.alter["receipt"] = lambda reply, _: reply.but(status=404)
    with asking(service, kind) as caller:
        refusal(caller.ask, "receipt-1")
        assert "".join(caller.texts) == ANSWER
        assert_latched(caller, service, "receipt-1")


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(
    "content_type", ["text/plain", "TEXT/EVENT-STREAM", "application/json", "text/event-stream; charset=x", ""]
)
def test_a_content_type_does_not_get_round_the_proof(service: AttestedService, kind: Kind, content_type: str) -> None:
    """A relay relabels a stream as a document or the other way, and changes it: refused as what it is."""
    service.alter["answer"] = lambda reply, _: reply.replacing(b"42.", b"43.").but(content_type=content_type)
    with asking(service, kind) as caller:
        assert_refused(caller, service, "receipt-4")


@pytest.mark.parametrize("status", [201, 202, 203, 204, 206, 226])
def test_another_success_does_not_get_round_the_proof(service: AttestedService, status: int) -> None:
    service.alter["answer"] = lambda reply, _: reply.but(status=status, x_receipt_id=None)
    with asking(service) as caller:
        assert_refused(caller, service, "receipt-1")
