"""Images reach the model, through the whole program. PLUMBING ONLY: the projector is RANDOM.

What the model says of an image is noise by construction, so nothing here looks at it. What is shown: an image takes
positions in the prompt, answers keep their form, and what is no image is refused with 400.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from image_server import gif
from random_projector import NAME, PATCHES, png, write_random_projector
from running import home_with_weights, running

pytestmark = pytest.mark.engine

PART = "messages[0].content[1]"
CONFIG = """
[engine]
slots = 2
context_length = 1024

[[model]]
id = "random/plumbing-vision"
upstream_model = "smollm2-135m"
modalities = ["text", "image"]
projector = {projector}

[[model]]
id = "confide/text"
upstream_model = "smollm2-135m"
"""


@pytest.fixture(scope="module")
def client(engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    base = tmp_path_factory.mktemp("vision")
    projector = write_random_projector(base / "random-projector.gguf")
    home = home_with_weights(base, engine_home)
    with (
        running(home, config=CONFIG.format(projector=json.dumps(str(projector)))) as service,
        httpx2.Client(base_url=service.url, timeout=60) as client,
    ):
        yield client


def data_url(image: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(image).decode()}"


def body(*urls: str, model: str = "random/plumbing-vision", **members: object) -> dict[str, object]:
    parts: list[object] = [{"type": "text", "text": "What is this?"}]
    parts += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages = [{"role": "user", "content": parts}]
    return {"model": model, "messages": messages, "max_tokens": 4, "temperature": 0, **members}


def ask(client: httpx2.Client, *urls: str, **members: Any) -> httpx2.Response:
    return client.post("/v1/chat/completions", json=body(*urls, **members))


def prompt_tokens(client: httpx2.Client, *urls: str) -> int:
    answer = ask(client, *urls)
    assert answer.status_code == 200, answer.text
    tokens: int = answer.json()["usage"]["prompt_tokens"]
    return tokens


def refusal(client: httpx2.Client, *urls: str, **members: Any) -> dict[str, str]:
    answer = ask(client, *urls, **members)
    assert answer.status_code == 400
    error: dict[str, str] = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


def is_served(client: httpx2.Client) -> bool:
    return ask(client, data_url(png())).status_code == 200


def test_the_projector_says_that_it_is_random(tmp_path: Path) -> None:
    assert NAME.startswith("RANDOM projector")
    assert NAME.encode() in write_random_projector(tmp_path / "projector.gguf").read_bytes()


def test_an_image_is_answered(client: httpx2.Client) -> None:
    answer = ask(client, data_url(png())).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    assert answer["usage"]["completion_tokens"] >= 1


def test_each_image_takes_its_positions_in_the_prompt_whatever_its_size(client: httpx2.Client) -> None:
    without = prompt_tokens(client)
    one = prompt_tokens(client, data_url(png()))
    assert one - without >= PATCHES
    assert prompt_tokens(client, data_url(png(300, 120))) == one
    assert prompt_tokens(client, data_url(png()), data_url(png(colour=(0, 0, 255)))) - one >= PATCHES


def test_an_image_is_answered_in_a_stream(client: httpx2.Client) -> None:
    request = body(data_url(png()), stream=True, stream_options={"include_usage": True})
    with client.stream("POST", "/v1/chat/completions", json=request) as response:
        assert response.status_code == 200
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    chunks = [json.loads(event) for event in events[:-1]]
    assert events[-1] == "[DONE]"
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][-1] in ("stop", "length")
    assert chunks[-1]["usage"]["prompt_tokens"] >= PATCHES


def test_a_gif_is_answered(client: httpx2.Client) -> None:
    assert ask(client, data_url(gif(), "image/gif")).status_code == 200


def test_the_model_list_says_which_model_takes_images(client: httpx2.Client) -> None:
    models = {model["id"]: model["input_modalities"] for model in client.get("/v1/models").json()["data"]}
    assert models == {"random/plumbing-vision": ["text", "image"], "confide/text": ["text"]}


@pytest.mark.parametrize(
    "url",
    [
        data_url(png()[:50]),
        data_url(b"no image at all"),
        "data:image/png;base64,!!!!",
        data_url(png(), "image/svg+xml"),
    ],
    ids=["cut", "other bytes", "not base64", "other type"],
)
def test_a_broken_image_is_the_callers_fault_and_names_its_part(client: httpx2.Client, url: str) -> None:
    assert refusal(client, url)["param"] == PART
    assert is_served(client)


def test_an_image_that_unpacks_to_gigabytes_never_reaches_the_engine(client: httpx2.Client) -> None:
    error = refusal(client, data_url(gif(20_000, 20_000), "image/gif"))
    assert "pixels" in error["message"]
    assert error["param"] == PART


def test_an_image_that_only_a_decoder_finds_broken_is_the_callers_fault(client: httpx2.Client) -> None:
    header_alone = b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x08\x00\x08\x01\x01\x11\x00\xff\xda\x00\x02\xff\xd9"
    refusal(client, data_url(header_alone, "image/jpeg"))
    assert is_served(client)


def test_the_text_model_refuses_an_image_and_names_its_part(client: httpx2.Client) -> None:
    error = refusal(client, data_url(png()), model="confide/text")
    assert error["param"] == PART
    assert "text" in error["message"]


@pytest.mark.parametrize("url", ["https://images.test/cat.png", "http://127.0.0.1/cat.png"])
@pytest.mark.parametrize("model", ["random/plumbing-vision", "confide/text"])
def test_a_remote_image_is_refused_while_switched_off(client: httpx2.Client, url: str, model: str) -> None:
    assert refusal(client, url, model=model)["param"] == PART


def test_the_refusal_of_a_remote_image_says_what_to_do(client: httpx2.Client) -> None:
    assert "data: URL" in refusal(client, "https://images.test/cat.png")["message"]
