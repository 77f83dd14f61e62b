"""An embeddings request, what is taken and what is refused by which name, and its answer (wire contract 3.2)."""

import base64
import json
import struct
from typing import Any

import pytest

from confide.errors import InvalidRequest
from confide.protocol.chat_body import FREE_FORM_BYTES
from confide.protocol.embeddings import (
    EmbeddingsRequest,
    embedding_document,
    embeddings_body,
    new_embeddings_id,
    parse_embeddings,
)


def parsed(**members: Any) -> EmbeddingsRequest:
    return parse_embeddings(json.dumps({"model": "m", "input": "Hello", **members}).encode())


def refused(**members: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parsed(**members)
    assert caught.value.__context__ is None
    return caught.value


def test_the_least_that_can_be_asked_has_the_defaults_of_the_contract() -> None:
    request = parsed()
    assert (request.model, request.texts, request.encoding, request.dimensions) == ("m", ("Hello",), "float", None)
    assert (request.user, request.provider, request.stream) == (None, None, False)


def test_null_is_absent() -> None:
    assert parsed(encoding_format=None, dimensions=None, user=None, stream=None, provider=None) == parsed()


def test_an_embedding_is_never_streamed() -> None:
    assert not parsed(stream=True).stream


def test_what_was_sent_comes_through() -> None:
    request = parsed(encoding_format="base64", dimensions=384, user="u", provider={"aci_verified": True, "order": []})
    assert (request.encoding, request.dimensions, request.user) == ("base64", 384, "u")
    assert request.provider == {"aci_verified": True, "order": []}


@pytest.mark.parametrize(
    ("input", "texts"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
        (["a"] * 2048, ("a",) * 2048),
        ([[0]] * 2048, ((0,),) * 2048),
    ],
)
def test_the_input_is_one_text_or_many_as_words_or_tokens(input: object, texts: object) -> None:
    assert parsed(input=input).texts == texts


@pytest.mark.parametrize(
    "input",
    [
        *("", [], [""], ["a", ""], ["a", 1], [1, "a"], [[]], [[1], []], [["a"]], [-1], [1.5], [True], [2**31]),
        *({}, None, 7, ["a"] * 2049, [[1]] * 2049),
    ],
)
def test_other_inputs_are_refused(input: object) -> None:
    assert refused(input=input).param == "input"


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"model": 7}, "model"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"encoding_format": 1}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 1.5}, "dimensions"),
        ({"dimensions": "384"}, "dimensions"),
        ({"user": 1}, "user"),
        ({"stream": "yes"}, "stream"),
        ({"provider": []}, "provider"),
        ({"provider": {"x": "y" * FREE_FORM_BYTES}}, "provider"),
        ({"input_type": "query"}, "input_type"),
        ({"truncate": True}, "truncate"),
    ],
)
def test_other_members_are_refused_by_name(members: dict[str, object], param: str) -> None:
    error = refused(**members)
    assert error.param == param
    assert param in error.message


def test_a_member_that_reads_like_text_is_not_repeated() -> None:
    error = refused(**{"A secret sentence": 1})
    assert error.param is None
    assert "secret" not in error.message


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"model":"m"}', b'{"input":"x"}', b'{"model":"m","input":"\xff"}', b"[" * 100_000]
)
def test_a_body_that_is_no_such_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_embeddings(body)
    assert caught.value.status == 400


def test_no_text_shows_in_a_request_s_own_words() -> None:
    assert "Hello" not in repr(parsed())


def test_an_id_of_the_log_is_made_of_the_random_bytes() -> None:
    assert new_embeddings_id(bytes(range(16))) == "embd-000102030405060708090a0b0c0d0e0f"


VECTOR = struct.pack("<3f", 0.1, -2.0, 3e-5)


def test_an_answer_has_exactly_the_documented_shape() -> None:
    entries = [embedding_document(0, VECTOR, "float"), embedding_document(1, VECTOR, "base64")]
    body = json.loads(embeddings_body(entries, model='a "model"', prompt_tokens=8))
    numbers = list(struct.unpack("<3f", VECTOR))
    assert body == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": numbers},
            {"object": "embedding", "index": 1, "embedding": base64.b64encode(VECTOR).decode()},
        ],
        "model": 'a "model"',
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }
    assert struct.pack("<3f", *body["data"][0]["embedding"]) == VECTOR
