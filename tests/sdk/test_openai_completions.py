"""The official SDK's text completions against the real program (wire contract 3.3)."""

import pytest
from openai import BadRequestError, OpenAI

import confide
from running import Running
from sdk.builders import MODEL

pytestmark = pytest.mark.engine
FRANCE = "The capital of France is"


def test_text_goes_on_where_the_prompt_ends(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=FRANCE, max_tokens=3, temperature=0)
    [choice] = answer.choices
    assert answer.id.startswith("cmpl-")
    assert choice.text
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 3)


def test_a_stream_gives_the_text_of_the_buffered_answer(client: OpenAI) -> None:
    buffered = client.completions.create(model=MODEL, prompt=FRANCE, max_tokens=6, temperature=0, echo=True)
    stream = client.completions.create(
        model=MODEL, prompt=FRANCE, max_tokens=6, temperature=0, echo=True, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == buffered.choices[0].text
    assert buffered.choices[0].text.startswith(FRANCE)
    assert last.usage == buffered.usage


def test_tokens_are_the_prompt_that_they_stand_for(client: OpenAI) -> None:
    as_tokens = client.completions.create(model=MODEL, prompt=[504, 3575, 282], max_tokens=2, echo=True, temperature=0)
    assert as_tokens.choices[0].text.startswith("The capital of")
    several = client.completions.create(model=MODEL, prompt=[[504, 3575, 282], [504]], max_tokens=2, n=2, seed=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]


def test_log_probabilities_add_up_to_the_text(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=FRANCE, max_tokens=4, temperature=0, logprobs=2)
    [choice] = answer.choices
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.text_offset is not None
    assert choice.logprobs.top_logprobs is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.text[choice.logprobs.text_offset[1] :] == "".join(choice.logprobs.tokens[1:])
    assert all(2 <= len(likeliest) <= 3 for likeliest in choice.logprobs.top_logprobs)


@pytest.mark.parametrize("tokens", [[99_999_999], [60_000]])
def test_tokens_that_the_model_does_not_have_are_the_callers_fault(client: OpenAI, tokens: list[int]) -> None:
    for echo in (False, True):
        with pytest.raises(BadRequestError) as caught:
            client.completions.create(model=MODEL, prompt=tokens, echo=echo)
        assert caught.value.param == "prompt"


def test_every_answer_is_verified(service: Running) -> None:
    policy = confide.Policy(trust_roots=(service.home / "simulator" / "root.pem",), require_channel=False)
    with (
        confide.Client(policy=policy) as verifying,
        OpenAI(base_url=service.url + "/v1", api_key="any", max_retries=0, http_client=verifying) as client,
    ):
        answer = client.completions.create(model=MODEL, prompt=FRANCE, max_tokens=3)
        assert confide.proof(answer).receipt_id.startswith("rcpt-")
        assert list(client.completions.create(model=MODEL, prompt=FRANCE, max_tokens=3, stream=True))
