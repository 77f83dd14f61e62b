"""Any body at all: a request that keeps the rules, or a refusal that quotes nothing (wire contract 3.3, 4)."""

import json

from hypothesis import given
from hypothesis import strategies as st

from confide.errors import InvalidRequest
from confide.protocol.completions import CompletionBody, parse_completion

CANARY = "canary-that-no-error-may-repeat"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats(allow_nan=False) | st.sampled_from([CANARY, ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([CANARY, "a"]), inner, max_size=2),
    max_leaves=6,
)
MEMBERS = st.sampled_from([*CompletionBody.__struct_fields__, "colour", CANARY])
TEXTS = st.lists(st.text(min_size=1), min_size=1, max_size=9)
TOKENS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9)


@given(st.dictionaries(MEMBERS, VALUES))
def test_a_refusal_names_a_member_and_quotes_nothing(members: dict[str, object]) -> None:
    try:
        request = parse_completion(json.dumps({"model": "m", "prompt": "p", **members}).encode())
    except InvalidRequest as error:
        assert CANARY not in error.message + str(error.param)  # noqa: PT017 - many are accepted
    else:
        assert 1 <= len(request.prompts) * request.n <= 128
        assert all(request.prompts)


@given(st.binary())
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    try:
        parse_completion(body)
    except InvalidRequest as error:
        assert error.status == 400  # noqa: PT017 - one may be accepted


@given(TEXTS | TOKENS | st.lists(TOKENS, min_size=1, max_size=9))
def test_texts_come_through_whole_and_in_order(prompt: list[object]) -> None:
    prompts = parse_completion(json.dumps({"model": "m", "prompt": prompt}).encode()).prompts
    as_sent = [list(each) if isinstance(each, tuple) else each for each in prompts]
    assert as_sent == ([prompt] if isinstance(prompt[0], int) else prompt)
