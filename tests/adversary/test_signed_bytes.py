"""The engine, or whoever speaks in its place, writes its events in every odd way that is still legal, or no longer is.

They want the signed hash to be of other bytes than those the client read: a re-serialisation, a read taken for an
event, a part hashed and not sent. SHA-256 of the bytes from the socket must equal the signed one, for both signatures,
whatever the engine wrote; and what the client is told must be what the engine's JSON says. The twin: one byte changed
on the way to the client, and the same check fails.
"""

import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.protocol.signature import Algo, split_text, verify_text
from gateway_app import ScriptedGateway, answering, chat, finish, raw_connection, raw_post, serving_scripted
from scripted import CLOSE, LAST_CHUNK, TURN, Script, Step, chunk, sse_head

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path_factory.mktemp("home"), answering("Hi")) as gateway:
        yield gateway


async def from_the_socket(gateway: ScriptedGateway, sent: bytes) -> bytes:
    """The body of the answer, with nothing but the transfer coding taken off."""
    async with raw_connection(gateway.url) as connection:
        await connection.send(raw_post(sent))
        answer = await connection.answer()
    assert answer.status == 200
    assert answer.header("content-encoding") is None
    return answer.body


async def is_proved(gateway: ScriptedGateway, sent: bytes, received: bytes, chat_id: str) -> bool:
    """Whether both signatures of the answer hold, and are over these bytes."""
    texts = set()
    for algo in Algo:
        proof = (await gateway.client.get(f"/v1/signature/{chat_id}?signing_algo={algo}")).json()
        verify_text(proof["text"], proof["signature"], proof["signing_address"], algo)
        texts.add(split_text(proof["text"]))
    return texts == {(hashlib.sha256(sent).hexdigest(), hashlib.sha256(received).hexdigest())}


def id_and_text(received: bytes) -> tuple[str, str]:
    """The chat id, and the text of the answer, from a buffered or a streamed body."""
    if received.startswith(b"{"):
        body = json.loads(received)
        return body["id"], body["choices"][0]["message"]["content"]
    events = [json.loads(line[6:]) for line in received.split(b"\n") if line.startswith(b"data: {")]
    deltas = [event["choices"][0]["delta"] for event in events if "choices" in event]
    return events[0]["id"], "".join(delta.get("content", "") for delta in deltas)


async def assert_proved(gateway: ScriptedGateway, script: Script, text: str | None) -> None:
    """Both forms of the answer are proved; the text is the one expected, where the answer is whole."""
    gateway.follow(script)
    for stream in (False, True):
        sent = json.dumps(chat(stream=stream), indent=stream or None).encode()
        if text is None and not stream:
            continue  # a cut answer is an error in the buffered form
        received = await from_the_socket(gateway, sent)
        chat_id, told = id_and_text(received)
        assert await is_proved(gateway, sent, received, chat_id)
        assert text is None or told == text
        assert b"\r" not in received
        assert received.endswith(b"data: [DONE]\n\n" if stream else b"}")
        assert not await is_proved(gateway, sent, received + b"\n", chat_id)
        assert not await is_proved(gateway, sent + b" ", received, chat_id)


TWO = b'{"choices":[{"delta":{"content":"Two"}}]}'
DOT = b'{"choices":[{"delta":{"content":"."}}]}'
END = b'{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}'


def reads(*parts: bytes | Step) -> Script:
    """A stream whose parts arrive one by one."""
    steps: list[bytes | Step] = [sse_head()]
    for part in parts:
        steps += [chunk(part), TURN] if isinstance(part, bytes) else [part]
    return [*steps, LAST_CHUNK]


def lines(*events: bytes, end: bytes = b"\n") -> bytes:
    return b"".join(b"data: " + event + 2 * end for event in events)


SPACED = b'{ "choices" : [ { "delta" : { "content" : "Two" } , "index" : 0 } ] }'
ESCAPED = b'{"choi\\u0063es":[{"delta":{"content":"\\u0054\\u0077\\u006f"}}]}'
TWICE = b'{"choices":[{"delta":{"content":"Three"}}],"choices":[{"delta":{"content":"no","content":"Two"}}]}'
NUMBERS = b'{"choices":[{"index":0.0,"delta":{"content":"Two"},"x":1e400,"y":-0,"z":1.0E+2}],"created":1e9}'
WITH_ID = b'{"id":"engine","object":"other","created":1,"model":"/path","choices":[{"delta":{"content":"Two"}}]}'
EXTRA = b'{"choices":[{"delta":{"content":"Two","role":"user","x":[{}]},"x":null}],"x":{"choices":[{"delta":{}}]}}'

ODD: dict[str, Script] = {
    "as usual": reads(lines(TWO), lines(DOT), lines(END), lines(b"[DONE]")),
    "spaces in the JSON": reads(lines(SPACED), lines(DOT), lines(END)),
    "escapes, in names too": reads(lines(ESCAPED), lines(DOT), lines(END)),
    "duplicate names": reads(lines(TWICE), lines(DOT), lines(END)),
    "odd numbers": reads(lines(NUMBERS), lines(DOT), lines(END)),
    "an id of the engine's": reads(lines(WITH_ID), lines(DOT), lines(END)),
    "members that nobody knows": reads(lines(EXTRA), lines(DOT), lines(END)),
    "all in one read": reads(lines(TWO, DOT, END, b"[DONE]")),
    "two events in one read": reads(lines(TWO, DOT), lines(END, b"[DONE]")),
    "half an event in a read": reads(b'data: {"choices":[{"de', b'lta":{"content":"Two"}}]}\n\n', lines(DOT, END)),
    "a field name in two reads": reads(b"da", b"ta: " + TWO, b"\n", b"\n", lines(DOT, END)),
    "an event and a half": reads(lines(TWO) + b"data: ", DOT + b"\n\nda", b"ta: " + END + b"\n\n"),
    "CRLF": reads(lines(TWO, DOT, END, b"[DONE]", end=b"\r\n")),
    "CRLF cut in the middle": reads(b"data: " + TWO + b"\r", b"\n\r", b"\n", lines(DOT, END)),
    "CR alone": reads(lines(TWO, DOT, END, end=b"\r")),
    "line ends mixed": reads(lines(TWO, end=b"\r\n"), lines(DOT, end=b"\r"), lines(END)),
    "a comment first": reads(b": PROCESSING\n\n", lines(TWO, DOT, END)),
    "comments everywhere": reads(b":\n:x\n", lines(TWO), b": PROCESSING\n\n", lines(DOT), b":\n", lines(END), b":\n\n"),
    "a comment within an event": reads(b": a\ndata: " + TWO + b"\n: b\n\n", lines(DOT, END)),
    "blank lines first": reads(b"\n\n\n\n", lines(TWO, DOT, END)),
    "blank lines everywhere": reads(b"\n", lines(TWO), b"\n\n\n", lines(DOT), b"\n", lines(END), b"\n\n"),
    "no space after the colon": reads(b"data:" + TWO + b"\n\n", b"data:" + DOT + b"\n\n", b"data:" + END + b"\n\n"),
    "data in two lines": reads(b'data: {"choices":[{"delta":\ndata: {"content":"Two"}}]}\n\n', lines(DOT, END)),
    "other fields": reads(b"event: x\nid: 7\nretry: 9\n" + lines(TWO), b"id: 8\n" + lines(DOT), lines(END)),
    "an event of other fields alone": reads(b"event: ping\nid: 1\n\n", lines(TWO, DOT, END)),
    "a byte order mark": reads(b"\xef\xbb\xbf" + lines(TWO, DOT, END)),
    "events without a choice": reads(lines(b"{}"), lines(TWO, b'{"choices":[]}', DOT, b"{}", END)),
    "the id late": reads(lines(TWO), lines(DOT), lines(b'{"id":"late","choices":[]}'), lines(END)),
    "no terminator": reads(lines(TWO), lines(DOT), lines(END)),
    "the terminator twice": reads(lines(TWO), lines(DOT), lines(END), lines(b"[DONE]", b"[DONE]")),
    "a comment after the terminator": reads(lines(TWO, DOT, END, b"[DONE]"), b": bye\n\n"),
    "a byte a read": reads(*(bytes([byte]) for byte in lines(TWO, DOT, END))),
    "empty text between": reads(lines(TWO, b'{"choices":[{"delta":{"content":""}}]}', DOT, END)),
    "null text between": reads(lines(TWO, b'{"choices":[{"delta":{"content":null},"finish_reason":null}]}', DOT, END)),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
async def test_the_signed_bytes_are_the_sockets_bytes(gateway: ScriptedGateway, name: str) -> None:
    await assert_proved(gateway, ODD[name], "Two.")


BROKEN: dict[str, Script] = {
    "the end missing": reads(lines(TWO, DOT)),
    "the end cut": reads(lines(TWO, DOT) + b"data: " + END[:30]),
    "a last event without its blank line": reads(lines(TWO), b"data: " + END + b"\n"),
    "text that is no JSON": reads(lines(TWO), b"data: nonsense\n\n"),
    "JSON of another shape": reads(lines(TWO), lines(b'{"choices":{}}')),
    "half a surrogate pair": reads(lines(TWO), lines(b'{"choices":[{"delta":{"content":"\\ud83d"}}]}')),
    "an error event": reads(lines(TWO), lines(b'{"error":{"code":500,"message":"x"}}')),
    "a close": reads(lines(TWO), CLOSE),
    "an event over a megabyte": reads(lines(TWO), b"data: " + b"x" * 1_100_000),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_stream_is_signed_as_it_was_sent(gateway: ScriptedGateway, name: str) -> None:
    await assert_proved(gateway, BROKEN[name], None)


TEXTS = st.lists(st.text(max_size=8).filter(bool), min_size=1, max_size=4)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(texts=TEXTS, end=ENDS, ascii_only=st.booleans(), cuts=st.lists(st.integers(0, 400), max_size=5))
async def test_any_text_in_any_framing_is_proved(
    gateway: ScriptedGateway, texts: Sequence[str], end: bytes, ascii_only: bool, cuts: list[int]
) -> None:
    events = [json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=ascii_only) for text in texts]
    wire = lines(*(event.encode() for event in events), END, end=end)
    places = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    parts = [wire[start:stop] for start, stop in pairwise(places)]
    await assert_proved(gateway, reads(*parts), "".join(texts))


async def test_a_byte_changed_on_the_way_is_noticed(gateway: ScriptedGateway) -> None:
    gateway.follow(answering("Two", "."))
    sent = json.dumps(chat(stream=True)).encode()
    received = await from_the_socket(gateway, sent)
    chat_id, _ = id_and_text(received)
    assert await is_proved(gateway, sent, received, chat_id)
    for at in range(0, len(received), 97):
        changed = received[:at] + bytes([received[at] ^ 1]) + received[at + 1 :]
        assert not await is_proved(gateway, sent, changed, chat_id)
    assert not await is_proved(gateway, sent, received.replace(b"\n\n", b"\n\n\n"), chat_id)
    assert not await is_proved(gateway, sent, received.replace(b"\n", b"\r\n"), chat_id)
    assert not await is_proved(gateway, sent, received[:-1], chat_id)


async def test_usage_from_the_engine_changes_no_byte_that_is_not_hashed(gateway: ScriptedGateway) -> None:
    gateway.follow([sse_head(), chunk(lines(TWO, DOT)), finish(), LAST_CHUNK])
    sent = json.dumps(chat(stream=True, stream_options={"include_usage": True})).encode()
    received = await from_the_socket(gateway, sent)
    assert b'"choices":[],"usage":{"prompt_tokens":3' in received
    chat_id = json.loads(received.split(b"\n\n")[0].removeprefix(b"data: "))["id"]
    assert await is_proved(gateway, sent, received, chat_id)
