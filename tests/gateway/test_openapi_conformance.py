"""The real service against its own OpenAPI document, by schemathesis: every check that it has, on requests it makes up.

What is not taken at its word: a request that fits the schemas may still break a rule between members, which no schema
says, and is then a 400. And in the document that schemathesis reads, `model` is one that there is, or most requests
would end at a 404.
"""

import asyncio
import copy
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from confide.gateway.openapi.inference import EMBEDDING_MODEL, MODEL
from gateway_app import ScriptedGateway, finish, serving_scripted, token
from obliging_engine import CONFIG, obliging
from openapi_document import DOCUMENT, Document
from scripted import LAST_CHUNK, Script, sse_head

SETTINGS = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "404", "412"]
"""
PROMPTS = "^/v1/(chat|completions|responses|messages|embeddings)"


class Run(NamedTuple):
    """How it ended: the exit status, how many requests were made, and what was printed."""

    status: int
    cases: int
    printed: str


def generate(asked: Document) -> Script:
    """An engine that never fails. What is to keep to a grammar is cut before its first token, which keeps to any."""
    return [sse_head(), *([] if "grammar" in asked else [token("Hi")]), cut_or_done(asked), LAST_CHUNK]


def cut_or_done(asked: Document) -> bytes:
    return finish("length" if "grammar" in asked else "stop")


@asynccontextmanager
async def serving(home: Path) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(home, [], config=CONFIG) as gateway:
        gateway.engine.choose = obliging(generate)
        await gateway.app.archive.keep_current()
        yield gateway


def with_one_model(document: Document, *, has_keys: bool = True) -> Document:
    """`has_keys`: without any, no route asks for one."""
    document = copy.deepcopy(document)
    for path in document["paths"].values():
        for operation in path.values():
            operation["security"] = operation["security"] if has_keys else []
    for name, schema in document["components"]["schemas"].items():
        model = schema.get("properties", {}).get("model", {})
        if "x-effect" in model:
            model["enum"] = [EMBEDDING_MODEL if name.startswith("embeddings.") else MODEL]
    return document


async def conformance(gateway: ScriptedGateway, home: Path, document: Document, *options: str) -> Run:
    """Run schemathesis over this document. Its own settings and what it writes are in `home`."""
    (home / "openapi.json").write_text(json.dumps(document))
    (home / "schemathesis.toml").write_text(SETTINGS)
    program = Path(sys.executable).parent / "schemathesis"
    fixed = ("--checks", "all", "--continue-on-failure", "--suppress-health-check", "all", "--warnings", "off")
    running = await asyncio.create_subprocess_exec(
        program,
        *("--config-file", home / "schemathesis.toml", "run", home / "openapi.json", "--url", gateway.url),
        *(*fixed, "--seed", "20", *options),
        cwd=home,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        printed = (await running.communicate())[0].decode()
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()
    cases = re.search(r"(\d+) generated", printed)
    assert running.returncode is not None
    return Run(running.returncode, int(cases[1]) if cases else 0, printed)


def assert_conforms(run: Run, gateway: ScriptedGateway, *, least: int) -> None:
    assert run.status == 0, run.printed[-8000:]
    assert run.cases >= least, run.printed[-2000:]
    assert '"fault"' not in gateway.log_text()


@pytest.mark.timeout(300)
async def test_some_hundred_requests_are_answered_as_described(tmp_path: Path) -> None:
    async with serving(tmp_path) as gateway:
        document = with_one_model(DOCUMENT, has_keys=False)
        options = ("--phases", "examples,fuzzing", "--max-examples", "18")
        assert_conforms(await conformance(gateway, tmp_path, document, *options), gateway, least=300)


@pytest.mark.timeout(120)
async def test_without_its_key_nobody_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as gateway:
        key = await gateway.new_key()
        options = ("--phases", "examples,fuzzing", "--max-examples", "4", "--include-path-regex", PROMPTS)
        header = ("--header", f"Authorization: Bearer {key}")
        run = await conformance(gateway, tmp_path, with_one_model(DOCUMENT), *header, *options)
        assert_conforms(run, gateway, least=20)


@pytest.mark.timeout(120)
async def test_a_document_that_is_not_true_is_found_out(tmp_path: Path) -> None:
    """The twin: each of these checks can fail."""
    document = with_one_model(DOCUMENT)
    paths, shown = document["paths"], document["components"]
    del paths["/v1/aci/keysets/{digest}"]["get"]["responses"]["404"]
    shown["schemas"]["proof.Health"]["properties"]["status"] = {"const": "fine"}
    paths["/"]["get"]["responses"]["200"]["headers"]["X-ACI-Version"] = {"schema": {"const": "aci/2"}}
    paths["/v1/models"]["get"]["security"] = [{"bearer": []}]
    paths["/llms.txt"]["get"]["responses"]["200"]["content"] = {"application/json": {}}
    lies = ("/v1/aci/keysets/{digest}", "/health", "/", "/v1/models", "/llms.txt")
    options = [part for path in lies for part in ("--include-path", path)]
    async with serving(tmp_path) as gateway:
        run = await conformance(gateway, tmp_path, document, *options, "--max-examples", "3", "--phases", "fuzzing")
    assert run.status == 1, run.printed[-4000:]
    assert {"ST103", "ST105", "ST108", "ST401"} <= set(re.findall(r"\bST\d{3}\b", run.printed)), run.printed[-4000:]
    assert set(re.findall(r"^_+ GET (\S+) _+$", run.printed, re.MULTILINE)) == set(lies)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_ten_thousand_requests_are_answered_as_described(tmp_path: Path) -> None:
    """All phases; three quarters without keys, as what has no key is refused before it is read."""
    async with serving(tmp_path) as gateway:
        open_document, document = with_one_model(DOCUMENT, has_keys=False), with_one_model(DOCUMENT)
        open_run = await conformance(gateway, tmp_path, open_document, "--max-examples", "160")
        assert_conforms(open_run, gateway, least=6000)
        header = ("--header", f"Authorization: Bearer {await gateway.new_key()}")
        keyed_run = await conformance(gateway, tmp_path, document, *header, "--max-examples", "20")
        assert_conforms(keyed_run, gateway, least=1000)
        assert open_run.cases + keyed_run.cases >= 10_000
        print(f"{open_run.cases} without keys, {keyed_run.cases} with keys")
