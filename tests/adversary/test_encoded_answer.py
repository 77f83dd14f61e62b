"""A relay compresses what passes, as proxies do, with or without a purpose; the attacker hides a change in it.

What a client would unpack is not what was hashed: an encoding that somebody put on is refused by its name, so that a
person finds the proxy, and nothing is unpacked before it is proven. The twin: `identity`, said or unsaid.
"""

import gzip
import zlib
from collections.abc import Callable

import pytest

from attested_service import ANSWER, AttestedService
from callers import EVERY, Kind, asking, assert_refused


@pytest.mark.parametrize("kind", EVERY)
def test_nothing_is_asked_to_be_encoded_and_identity_is_fine(service: AttestedService, kind: Kind) -> None:
    service.alter["answer"] = lambda reply, _: reply.but(content_encoding="identity")
    with asking(service, kind, headers={"accept-encoding": "gzip, br"}) as caller:
        assert caller.ask() == ANSWER
    assert {seen.headers["accept-encoding"] for seen in service.seen} == {"identity"}


ENCODINGS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("GZIP", gzip.compress),
    ("deflate", zlib.compress),
    ("gzip, gzip", lambda body: gzip.compress(gzip.compress(body))),
    ("gzip", lambda body: body),  # it only says so
    ("br", lambda body: body),
    ("identity, gzip", gzip.compress),
    ("", lambda body: body),
]


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(("encoding", "encode"), ENCODINGS, ids=[each[0] or "empty" for each in ENCODINGS])
def test_an_encoded_answer_is_refused(
    service: AttestedService, kind: Kind, encoding: str, encode: Callable[[bytes], bytes]
) -> None:
    service.alter["answer"] = lambda reply, _: reply.but(encode(reply.body), content_encoding=encoding)
    with asking(service, kind) as caller:
        error = assert_refused(caller, service, "receipt-4")
        assert f"content-encoding {encoding}" in error.message


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(("document", "check"), [("report", "id-1"), ("receipt", "receipt-1")])
def test_an_encoded_document_is_refused_by_its_name(
    service: AttestedService, kind: Kind, document: str, check: str
) -> None:
    service.alter[document] = lambda reply, _: reply.but(
        gzip.compress(reply.body), content_encoding="gzip", content_length=None
    )
    with asking(service, kind) as caller:
        assert_refused(caller, service, check, prompts=int(document == "receipt"))


@pytest.mark.parametrize("kind", EVERY)
def test_a_bomb_is_not_unpacked(service: AttestedService, kind: Kind) -> None:
    bomb = gzip.compress(b"\0" * 50_000_000, 9)
    service.alter["answer"] = lambda reply, _: reply.but(bomb, content_encoding="gzip")
    with asking(service, kind) as caller:
        assert_refused(caller, service, "receipt-4")
