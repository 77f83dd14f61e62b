"""Any body: a request that keeps the rules, or a refusal that quotes nothing. And vectors keep their bits."""

import base64
import json
import struct

from hypothesis import given
from hypothesis import strategies as st

from confide.errors import InvalidRequest
from confide.protocol.embeddings import (
    EmbeddingsBody,
    Encoding,
    embedding_document,
    embeddings_body,
    parse_embeddings,
)

CANARY = "canary-that-no-error-may-repeat"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats(allow_nan=False) | st.sampled_from([CANARY, ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([CANARY, "a"]), inner, max_size=2),
    max_leaves=6,
)
MEMBERS = st.sampled_from([*EmbeddingsBody.__struct_fields__, "colour", CANARY])
TEXTS = st.lists(st.text(min_size=1), min_size=1, max_size=9)
TOKENS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9)
VECTORS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9)


@given(st.dictionaries(MEMBERS, VALUES))
def test_a_refusal_names_a_member_and_quotes_nothing(members: dict[str, object]) -> None:
    try:
        request = parse_embeddings(json.dumps({"model": "m", "input": "p", **members}).encode())
    except InvalidRequest as error:
        assert CANARY not in error.message + str(error.param)  # noqa: PT017 - many are accepted
    else:
        assert 1 <= len(request.texts) <= 2048
        assert all(request.texts)
        assert request.encoding in ("float", "base64")


@given(st.binary())
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    try:
        parse_embeddings(body)
    except InvalidRequest as error:
        assert error.status == 400  # noqa: PT017 - one may be accepted


@given(TEXTS | TOKENS | st.lists(TOKENS, min_size=1, max_size=9))
def test_texts_come_through_whole_and_in_order(sent: list[object]) -> None:
    texts = parse_embeddings(json.dumps({"model": "m", "input": sent}).encode()).texts
    as_sent = [list(each) if isinstance(each, tuple) else each for each in texts]
    assert as_sent == ([sent] if isinstance(sent[0], int) else sent)


@given(
    st.lists(VECTORS, min_size=1, max_size=4), st.sampled_from(["float", "base64"]), st.text(), st.integers(0, 10**6)
)
def test_a_vector_keeps_its_bits_in_both_encodings(
    vectors: list[list[float]], encoding: Encoding, model: str, tokens: int
) -> None:
    packed = [struct.pack(f"<{len(vector)}f", *vector) for vector in vectors]
    documents = [embedding_document(index, each, encoding) for index, each in enumerate(packed)]
    body = json.loads(embeddings_body(documents, model=model, prompt_tokens=tokens))
    found = [each["embedding"] for each in body["data"]]
    if encoding == "base64":
        assert [base64.b64decode(each) for each in found] == packed
    else:
        assert [struct.pack(f"<{len(each)}f", *each) for each in found] == packed
    assert [each["index"] for each in body["data"]] == list(range(len(packed)))
    assert (body["model"], body["usage"]["total_tokens"]) == (model, tokens)
