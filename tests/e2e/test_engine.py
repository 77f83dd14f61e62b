"""The embedded model behind the whole service: what it promises about slots, caches, forms and its own process."""

import json
import random
import re
import shutil
import signal
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from os import kill
from pathlib import Path
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator

from e2e.engine_process import engines_of, needs_proc
from running import Running, home_with_weights, running

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]

CONFIG = """
[engine]
slots = 4
context_length = 512
"""
NO_END = {"logit_bias": {"2": -100}}  # 2 is the token that ends SmolLM2's turn
HOT = 1.2
SECRET = "CANARY-5029"


@pytest.fixture(scope="module")
def service(engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = home_with_weights(tmp_path_factory.mktemp("engine"), engine_home)
    with running(home, config=CONFIG, environ={"SOME_TOKEN": SECRET}) as service:
        yield service


@pytest.fixture(scope="module")
def client(service: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=service.url, timeout=300) as client:
        yield client


def body(text: str, **members: object) -> dict[str, object]:
    messages = [{"role": "user", "content": text}]
    return {"model": "confide/smollm2-135m", "messages": messages, "max_tokens": 16, **members}


def asked(client: httpx2.Client, text: str, **members: object) -> dict[str, Any]:
    """The answer to a buffered request."""
    response = client.post("/v1/chat/completions", json=body(text, **members))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def choice(client: httpx2.Client, text: str, **members: object) -> dict[str, Any]:
    (only,) = asked(client, text, **members)["choices"]
    found: dict[str, Any] = only
    return found


def streamed(client: httpx2.Client, text: str, **members: object) -> list[dict[str, Any]]:
    """The chunks of a stream that ended whole."""
    with client.stream("POST", "/v1/chat/completions", json=body(text, stream=True, **members)) as response:
        assert response.status_code == 200, response.read()
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def put_together(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """One choice's message and finish reason, out of its chunks."""
    text, finish = "", None
    calls: list[dict[str, Any]] = []
    for chunk in chunks:
        (part,) = chunk["choices"]
        assert finish is None, "a chunk behind the finish reason"
        finish, delta = part["finish_reason"], part["delta"]
        text += delta.get("content") or ""
        for call in delta.get("tool_calls", []):
            if "id" in call:
                assert call["index"] == len(calls)
                calls.append({"id": call["id"], **call["function"]})
            else:
                calls[call["index"]]["arguments"] += call["function"]["arguments"]
    return {"text": text, "calls": calls, "finish_reason": finish}


def calls_of(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """A buffered choice's calls in the same shape."""
    return [{"id": call["id"], **call["function"]} for call in answer["message"].get("tool_calls", [])]


def test_a_long_generation_does_not_end_the_others(client: httpx2.Client) -> None:
    """With one context shared by all slots it did: each was cut with an error."""
    long = {**NO_END, "max_tokens": 4000}
    with ThreadPoolExecutor(4) as pool:
        filling = pool.submit(asked, client, "Count as far as you can. " * 60, **long)
        others = [pool.submit(choice, client, f"Say the number {number}.", max_tokens=40) for number in range(3)]
        assert {future.result()["finish_reason"] for future in others} <= {"stop", "length"}
        assert all(future.result()["message"]["content"] for future in others)
        answer = filling.result()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert 508 <= answer["usage"]["total_tokens"] <= 513  # its own context, and no more


def test_a_prompt_longer_than_the_context_is_the_callers_fault(client: httpx2.Client) -> None:
    for text in ("word " * 600, "word " * 200_000):
        response = client.post("/v1/chat/completions", json=body(text))
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "messages"
        assert "512" in response.json()["error"]["message"]


def test_a_prompt_is_not_answered_faster_the_second_time(client: httpx2.Client) -> None:
    """A cache would answer in a fiftieth of the time, and so tell what others have asked."""
    text = "The quick brown fox jumps over the lazy dog. " * 42

    def seconds() -> float:
        began = time.perf_counter()
        answer = asked(client, text, max_tokens=1)
        assert answer["usage"].keys() == {"prompt_tokens", "completion_tokens", "total_tokens"}
        assert answer["usage"]["prompt_tokens"] > 400
        return time.perf_counter() - began

    first = seconds()
    assert min(seconds() for _ in range(2)) > first / 3  # 2 with room for a busy machine; a hit is a hundredth


@pytest.mark.parametrize("member", ["cache_prompt", "id_slot", "n_keep"])
def test_a_member_of_the_engines_own_changes_nothing(client: httpx2.Client, member: str) -> None:
    plain = asked(client, "Say hello.", seed=1)
    assert asked(client, "Say hello.", seed=1, **{member: 1})["choices"] == plain["choices"]


def prompt_tokens(client: httpx2.Client, text: str) -> int:
    count: int = asked(client, text, max_tokens=1)["usage"]["prompt_tokens"]
    return count


def test_a_special_token_in_a_prompt_is_text(client: httpx2.Client) -> None:
    empty = prompt_tokens(client, "a")
    for token in ("<|im_end|>", "<|im_start|>", "<|endoftext|>"):
        assert prompt_tokens(client, "a" + token) - empty >= len("im_end") // 2


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Look up the {name} of a city",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"$ref": "#/$defs/City"},
                    "days": {"type": "integer", "minimum": 1, "maximum": 9},
                },
                "required": ["city", "days"],
                "additionalProperties": False,
                "$defs": {"City": {"type": "string", "maxLength": 12}},
            },
        },
    }
    for name in ("weather", "population")
]
PARAMETERS = {tool["function"]["name"]: Draft202012Validator(tool["function"]["parameters"]) for tool in TOOLS}  # type: ignore[index]  # a literal
CALL_ID = re.compile(r"chatcmpl-tool-[0-9a-f]{32}")
QUESTION = "What is the weather in Paris?"


def assert_valid_call(call: dict[str, Any]) -> None:
    assert CALL_ID.fullmatch(call["id"])
    PARAMETERS[call["name"]].validate(json.loads(call["arguments"]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tool_choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_forced_call_is_valid_buffered_and_streamed(client: httpx2.Client, tool_choice: object, seed: int) -> None:
    members = {"tools": TOOLS, "tool_choice": tool_choice, "temperature": HOT, "seed": seed, "max_tokens": 80}
    buffered = choice(client, QUESTION, **members)
    assert buffered["message"]["content"] is None
    assert buffered["finish_reason"] == "tool_calls"
    (call,) = calls_of(buffered)
    assert_valid_call(call)
    stream = put_together(streamed(client, QUESTION, **members))
    assert (stream["text"], stream["finish_reason"]) == ("", "tool_calls")
    (other,) = stream["calls"]
    assert_valid_call(other)
    assert (other["name"], other["arguments"]) == (call["name"], call["arguments"])
    assert other["id"] != call["id"]


@pytest.mark.parametrize("seed", range(5))
def test_an_automatic_answer_is_text_or_valid_calls(client: httpx2.Client, seed: int) -> None:
    members = {"tools": TOOLS, "temperature": HOT, "seed": seed, "max_tokens": 40}
    stream = put_together(streamed(client, QUESTION, **members))
    assert "<tool_call>\n" not in stream["text"]
    for call in stream["calls"]:
        if stream["finish_reason"] == "tool_calls":
            assert_valid_call(call)
    assert stream["text"] or stream["calls"]
    assert (stream["finish_reason"] == "tool_calls") <= bool(stream["calls"])


def test_an_automatic_answer_may_call(client: httpx2.Client) -> None:
    """So small a model calls when it has seen itself do so four times."""
    parameters = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
    function = {"name": "weather", "description": "Weather of a city", "parameters": parameters}
    turns = [turn for city in ("Rome", "Oslo", "Lima", "Cairo") for turn in asked_and_called(city)]
    settings = {"temperature": 0, "repetition_penalty": 1.0, "parallel_tool_calls": False, "max_tokens": 60}
    request = {**body(""), "tools": [{"type": "function", "function": function}], **settings}
    request["messages"] = [*turns, {"role": "user", "content": "Weather in Paris?"}]
    response = client.post("/v1/chat/completions", json=request)
    assert response.status_code == 200, response.text
    (answer,) = response.json()["choices"]
    assert (answer["finish_reason"], answer["message"]["content"]) == ("tool_calls", None)
    (call,) = calls_of(answer)
    assert (call["name"], json.loads(call["arguments"])) == ("weather", {"city": "Paris"})


def asked_and_called(city: str) -> list[dict[str, object]]:
    """A question, the call that it led to, and the result."""
    function = {"name": "weather", "arguments": json.dumps({"city": city})}
    return [
        {"role": "user", "content": f"Weather in {city}?"},
        {"role": "assistant", "tool_calls": [{"id": city, "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": city, "content": "18 C"},
    ]


def random_schema(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema whose shortest and longest values are a few dozen tokens."""
    leaves: list[dict[str, Any]] = [
        {"type": "boolean"},
        {"enum": draw.sample(["red", "green", 3, None, "é"], 3)},
        {"type": "integer", "minimum": draw.randint(-9, 0), "maximum": draw.randint(1, 500)},
        {"type": "string", "maxLength": draw.randint(1, 10)},
        {"type": "string", "pattern": draw.choice(["^[A-Z]{2}-[0-9]{3}$", "^(a|bb){1,4}$", "[0-9]$"]), "maxLength": 8},
        {"anyOf": [{"type": "null"}, {"const": "x"}]},
    ]
    if depth >= 2 or draw.random() < 0.3:
        return draw.choice(leaves)
    if draw.random() < 0.4:
        return {"type": "array", "items": random_schema(draw, depth + 1), "minItems": 1, "maxItems": 2}
    names = draw.sample("abcd", draw.randint(1, 3))
    members = {name: random_schema(draw, depth + 1) for name in names}
    return {
        "type": "object",
        "properties": members,
        "required": draw.sample(names, draw.randint(1, len(names))),
        "additionalProperties": False,
    }


@pytest.mark.parametrize("number", range(20))
def test_an_answer_is_valid_under_its_schema(client: httpx2.Client, number: int) -> None:
    schema = random_schema(random.Random(number))
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    answer = choice(client, "Give an example.", response_format=form, temperature=HOT, seed=number, max_tokens=300)
    assert answer["finish_reason"] == "stop"
    Draft202012Validator(schema).validate(json.loads(answer["message"]["content"]))


def test_a_json_object_is_one(client: httpx2.Client) -> None:
    answer = choice(
        client, "A small JSON object.", response_format={"type": "json_object"}, temperature=0.2, max_tokens=300, seed=2
    )
    text = answer["message"]["content"]
    assert text.startswith("{")
    assert answer["finish_reason"] == "length" or isinstance(json.loads(text), dict)


def test_a_costly_schema_is_refused_while_others_are_served(client: httpx2.Client) -> None:
    costly = {"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}]}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": costly}}
    began = time.perf_counter()
    response = client.post("/v1/chat/completions", json=body("x", response_format=form))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "response_format")
    assert time.perf_counter() - began < 5


def test_a_seed_repeats_and_another_differs(client: httpx2.Client) -> None:
    texts = [
        choice(client, "Tell me a story.", seed=seed, temperature=HOT, max_tokens=24)["message"]["content"]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_text_ends_the_answer_and_is_not_in_it(client: httpx2.Client) -> None:
    whole = choice(client, "Count to ten.", temperature=0, max_tokens=40)["message"]["content"]
    stop = whole[10:13]
    answer = choice(client, "Count to ten.", temperature=0, max_tokens=40, stop=[stop])
    assert answer["message"]["content"] == whole[: whole.index(stop)]
    assert answer["finish_reason"] == "stop"


def test_a_logit_bias_makes_a_token_certain(client: httpx2.Client) -> None:
    first = choice(client, "Hello", temperature=0, max_tokens=1, logprobs=True, top_logprobs=0)
    biased = choice(client, "Hello", max_tokens=8, logit_bias={"33": 100})
    assert first["message"]["content"] not in biased["message"]["content"]
    assert len(set(biased["message"]["content"])) == 1


@pytest.mark.parametrize("limit", [1, 7])
def test_a_token_limit_is_kept(client: httpx2.Client, limit: int) -> None:
    answer = asked(client, "Count as far as you can.", **NO_END, max_tokens=limit)
    assert answer["usage"]["completion_tokens"] == limit
    assert answer["choices"][0]["finish_reason"] == "length"


def test_three_choices_are_counted_together_and_differ(client: httpx2.Client) -> None:
    answer = asked(client, "Tell me a story.", **NO_END, n=3, seed=5, temperature=HOT, max_tokens=10)
    assert [part["index"] for part in answer["choices"]] == [0, 1, 2]
    assert len({part["message"]["content"] for part in answer["choices"]}) == 3
    assert answer["usage"]["completion_tokens"] == 30


def test_log_probabilities_have_the_tokens_of_the_text(client: httpx2.Client) -> None:
    answer = choice(client, "Say hello.", temperature=0, logprobs=True, top_logprobs=2, tools=TOOLS)
    entries = answer["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == answer["message"]["content"]
    assert all(entry.keys() == {"token", "logprob", "bytes", "top_logprobs"} for entry in entries)
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)


def test_nothing_of_the_engines_own_is_in_an_answer(client: httpx2.Client) -> None:
    buffered = asked(client, "Say hello.")
    assert buffered.keys() == {"id", "object", "created", "model", "choices", "usage"}
    for chunk in streamed(client, "Say hello."):
        assert chunk.keys() == {"id", "object", "created", "model", "choices"}
    assert all(".gguf" not in json.dumps(part) for part in buffered["choices"])


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(client: httpx2.Client) -> None:
    chunks = [chunk["choices"][0] for chunk in streamed(client, "Say hello.")]
    assert chunks[0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["delta"] == {}
    assert all(before["finish_reason"] is None for before, _ in pairwise(chunks))


# The engine's process.


@needs_proc
def test_the_engine_knows_no_setting_or_key_of_the_service(service: Running) -> None:
    (engine,) = engines_of(service)
    environment = Path(f"/proc/{engine}/environ").read_bytes()
    assert b"CONFIDE_" not in environment
    assert SECRET.encode() not in environment
    assert Path(f"/proc/{engine}/cmdline").read_bytes().count(b"\0") == 3  # python -m module: nothing else to read


@needs_proc
def test_the_engine_listens_on_no_port_and_on_one_private_socket(service: Running) -> None:
    (engine,) = engines_of(service)
    held = {link for fd in Path(f"/proc/{engine}/fd").iterdir() if (link := inode(fd)) is not None}
    assert held
    for table in ("tcp", "tcp6", "udp", "udp6"):
        rows = [line.split() for line in Path(f"/proc/{engine}/net/{table}").read_text().splitlines()[1:]]
        assert not held & {row[9] for row in rows}
    rows = [line.split() for line in Path(f"/proc/{engine}/net/unix").read_text().splitlines()[1:]]
    paths = {Path(row[7]) for row in rows if row[6] in held and len(row) > 7}
    assert {path.parent for path in paths} == {service.home / "run"}
    assert stat.S_IMODE((service.home / "run").stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in paths)


def inode(descriptor: Path) -> str | None:
    """The inode of a socket that a process holds open."""
    try:
        found = re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink()))
    except OSError:
        return None
    return found[1] if found else None


@needs_proc
def test_a_crash_of_the_engine_leaves_no_memory_image(service: Running) -> None:
    (engine,) = engines_of(service)
    limits = Path(f"/proc/{engine}/limits").read_text()
    assert re.search(r"Max core file size +[01] +[01] ", limits)


def test_the_engine_answers_nobody_without_the_key(service: Running) -> None:
    sockets = list((service.home / "run").glob("*.sock"))
    assert sockets  # one a model
    for socket in sockets:
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(socket)), base_url="http://engine") as stranger:
            assert stranger.post("/v1/chat/completions", json=body("Hi")).status_code == 401
            assert stranger.post("/v1/embeddings", json={"input": "Hi"}).status_code == 401
            assert stranger.get("/metrics").status_code == 401
            assert stranger.get("/slots").status_code in (401, 404, 501)


def test_nothing_of_a_request_is_written_to_the_log(service: Running, client: httpx2.Client) -> None:
    pattern = {"type": "string", "pattern": f"{SECRET}[ab]*a[ab]{{30}}"}
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {SECRET: pattern}}},
    }
    for members in (
        {"tools": [tool]},
        {"tools": [tool], "tool_choice": "required"},
        {"response_format": {"type": "json_schema", "json_schema": {"name": SECRET, "schema": pattern}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": SECRET, "schema": {"type": SECRET}}}},
    ):
        client.post("/v1/chat/completions", json=body(SECRET, max_tokens=40, **members))
    assert SECRET not in service.output()


@needs_proc
def test_weights_that_changed_are_not_loaded_again_after_a_crash(engine_home: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    shutil.copytree(engine_home / "models", home / "models")
    with running(home, config=CONFIG) as service, httpx2.Client(base_url=service.url, timeout=60) as client:
        assert asked(client, "Say hello.")["choices"]
        (engine,) = engines_of(service)
        flip_a_byte(next((home / "models").glob("*/*.gguf")))
        kill(engine, signal.SIGKILL)
        until = time.monotonic() + 20
        while service.output().count('"engine.start_failed"') < 2 and time.monotonic() < until:
            time.sleep(0.05)
        assert '"error":"VerificationError"' in service.output()
        assert engines_of(service) == []
        response = client.post("/v1/chat/completions", json=body("Hi"))
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert client.get("/health").status_code == 200


def flip_a_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1000, 2)
        (byte,) = file.read(1)
        file.seek(-1000, 2)
        file.write(bytes([byte ^ 1]))
