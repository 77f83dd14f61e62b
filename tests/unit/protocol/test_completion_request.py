"""A text completion's request: what is taken, and what is refused by which name (wire contract 3.3)."""

import json
from typing import Any

import pytest

from confide.errors import InvalidRequest
from confide.protocol.chat_body import FREE_FORM_BYTES
from confide.protocol.completions import CompletionRequest, new_completion_id, parse_completion
from confide.protocol.text_inputs import ARRAY_BYTES


def parsed(**members: Any) -> CompletionRequest:
    return parse_completion(json.dumps({"model": "m", "prompt": "Once", **members}).encode())


def refused(**members: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parsed(**members)
    assert caught.value.__context__ is None
    return caught.value


def test_the_least_that_can_be_asked_has_the_defaults_of_the_contract() -> None:
    request = parsed()
    assert (request.model, request.prompts, request.token_limit, request.n) == ("m", ("Once",), 16, 1)
    assert (request.stream, request.include_usage, request.echo, request.stop) == (False, False, False, ())
    assert (request.temperature, request.logprobs, request.provider) == (None, None, None)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("Once", ("Once",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
)
def test_a_prompt_is_one_text_or_many_as_words_or_tokens(prompt: object, prompts: object) -> None:
    assert parsed(prompt=prompt).prompts == prompts


@pytest.mark.parametrize(
    "prompt",
    ["", [], [""], ["a", 1], [1, "a"], [[]], [["a"]], [-1], [1.5], [2**31], {}, None, 7, ["a"] * 129, [[1]] * 129],
)
def test_other_prompts_are_refused(prompt: object) -> None:
    assert refused(prompt=prompt).param == "prompt"


def test_an_array_that_takes_long_to_decode_is_refused() -> None:
    body = b'{"model":"m","prompt":[%b1]}' % (b"1," * (ARRAY_BYTES // 2))
    with pytest.raises(InvalidRequest, match="too large") as caught:
        parse_completion(body)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("member", ["logit_bias", "provider"])
def test_free_form_members_are_measured_before_they_are_decoded(member: str) -> None:
    body = b'{"model":"m","prompt":"a","%b":{"x":"%b"}}' % (member.encode(), b"y" * FREE_FORM_BYTES)
    with pytest.raises(InvalidRequest, match="too large") as caught:
        parse_completion(body)
    assert caught.value.param == member


def test_a_long_prompt_is_not_a_large_free_form_member() -> None:
    assert len(parsed(prompt="x" * FREE_FORM_BYTES).prompts[0]) == FREE_FORM_BYTES


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"model": None}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 65, "prompt": ["a", "b"]}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 0, "echo": True}, "logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stop": []}, "stop"),
        ({"temperature": 2.1}, "temperature"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"tools": []}, "tools"),
        ({"colour": "red"}, "colour"),
        ({"My own text": "red"}, None),
    ],
)
def test_what_breaks_a_rule_is_named(members: dict[str, object], param: str | None) -> None:
    assert refused(**members).param == param


def test_all_that_is_taken_is_kept() -> None:
    request = parsed(
        max_tokens=3, n=2, best_of=2, stop="x", stream=True, stream_options={"include_usage": True}, logprobs=0,
        echo=False, suffix="", temperature=0, top_p=0.5, presence_penalty=1, frequency_penalty=-1, seed=-5,
        logit_bias={"5": -2}, user="u", top_k=3, min_p=0.1, repetition_penalty=1.2, provider={"order": ["a"]},
    )  # fmt: skip
    assert (request.token_limit, request.n, request.stop, request.logprobs) == (3, 2, ("x",), 0)
    assert (request.stream, request.include_usage, request.seed) == (True, True, -5)
    assert (request.temperature, request.top_p, request.top_k, request.min_p) == (0, 0.5, 3, 0.1)
    assert (request.presence_penalty, request.frequency_penalty, request.repetition_penalty) == (1, -1, 1.2)
    assert (request.logit_bias, request.provider) == ({5: -2}, {"order": ["a"]})
    assert parsed(stop=["a", "b"]).stop == ("a", "b")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'"x"', b"[" * 100_000])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_completion(body)


def test_an_id_is_of_its_own_kind() -> None:
    assert new_completion_id(bytes(range(16))) == "cmpl-000102030405060708090a0b0c0d0e0f"
