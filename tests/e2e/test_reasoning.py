"""A model whose template can be told to think, in the real engine: its reasoning stands beside its answer.

The weights are those of the embedded model with another template in their place for it, of the same length: what it
thinks is worth nothing, and where it stands is what counts.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import BadRequestError, OpenAI

from confide.engine import gguf
from e2e.test_start_failures import environment
from running import CONFIDE, Running, running

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(300)]

TEMPLATE = """{%for m in messages%}<|im_start|>{{m.role}}
{%if m.role=='assistant' and m.reasoning_content%}<think>
{{m.reasoning_content}}
</think>

{%endif%}{{m.content}}<|im_end|>
{%endfor%}{%if add_generation_prompt%}<|im_start|>assistant
{%if enable_thinking is false%}<think>

</think>

{%else%}<think>
{%endif%}{%endif%}"""
MODEL = "acme/thinker"
CONFIG = f'[[model]]\nid = "{MODEL}"\nupstream_model = "thinker"\n'
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "What is 2+2?"}], "max_tokens": 12, "temperature": 0}


def thinker(weights: Path, to: Path) -> None:
    """The weights with the template in place of their own."""
    own = gguf.read_metadata(weights).chat_template
    assert own is not None
    padding = len(own.encode()) - len(TEMPLATE.encode()) - len("{##}")
    assert padding >= 0
    replaced = (TEMPLATE + "{#" + " " * padding + "#}").encode()
    data = weights.read_bytes()
    assert data.count(own.encode()) == 1
    to.write_bytes(data.replace(own.encode(), replaced))


@pytest.fixture(scope="module")
def service(engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    base = tmp_path_factory.mktemp("thinker")
    [weights] = (engine_home / "models" / "smollm2-135m").glob("*.gguf")
    home = base / "home"
    home.mkdir(mode=0o700)
    thinker(weights, base / "thinker.gguf")
    added = subprocess.run(
        [str(CONFIDE), "models", "add", str(base / "thinker.gguf"), "--id", "thinker"],
        env=environment(home), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert added.returncode == 0, added.stderr
    with running(home, config=CONFIG) as started:
        yield started


@pytest.fixture(scope="module")
def client(service: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=service.url + "/v1", api_key="any", max_retries=0, timeout=120) as opened:
        yield opened


def message(client: OpenAI, **members: object) -> dict[str, object]:
    answer = client.chat.completions.with_raw_response.create(**{**ASKED, **members})  # type: ignore[call-overload]
    document: dict[str, object] = json.loads(answer.content)["choices"][0]["message"]
    return document


def test_what_is_thought_stands_beside_what_is_said(client: OpenAI) -> None:
    thought = message(client, reasoning_effort="low")
    assert thought["reasoning_content"]
    said = message(client, reasoning_effort="none")
    assert "reasoning_content" not in said
    assert said["content"]


def test_a_budget_ends_the_thinking_and_not_the_answer(client: OpenAI) -> None:
    cut = message(client, extra_body={"reasoning": {"max_tokens": 3}})
    assert cut["reasoning_content"]
    assert cut["content"]


def test_reasoning_can_be_left_out_and_is_counted_all_the_same(client: OpenAI) -> None:
    answer = client.chat.completions.create(**ASKED, extra_body={"include_reasoning": False})  # type: ignore[call-overload]
    assert "reasoning_content" not in answer.choices[0].message.to_dict()
    assert answer.usage.completion_tokens > 3


def test_a_stream_has_its_reasoning_first(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(**ASKED, stream=True, extra_body={"reasoning": {"max_tokens": 3}})  # type: ignore[call-overload]
    )
    kinds = [name for chunk in chunks for name in chunk.choices[0].delta.to_dict() if name != "role"]
    reasoned = [index for index, name in enumerate(kinds) if name == "reasoning_content"]
    assert reasoned
    assert reasoned == list(range(reasoned[0], reasoned[-1] + 1))
    assert "content" in kinds[reasoned[-1] + 1 :]


def test_another_surface_has_it_in_its_own_shape(client: OpenAI) -> None:
    response = client.responses.create(
        model=MODEL, input="What is 2+2?", max_output_tokens=16, reasoning={"effort": "low"}
    )
    assert response.output[0].type == "reasoning"


def test_thinking_and_a_form_exclude_each_other(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        message(client, reasoning_effort="low", response_format={"type": "json_object"})
    assert caught.value.param == "reasoning_effort"


def test_the_catalogue_says_that_it_reasons(client: OpenAI) -> None:
    supported = client.models.retrieve(MODEL).to_dict()["supported_parameters"]
    assert isinstance(supported, list)
    assert {"reasoning", "reasoning_effort", "include_reasoning"} <= set(supported)
