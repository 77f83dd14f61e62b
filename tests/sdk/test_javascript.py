"""The official JavaScript SDKs, in Node, against the real program with the real model (tests/js has what they ask)."""

import asyncio
import json
from pathlib import Path

import pytest

import javascript
from confide.config import Config, Engine, Limits, Model, Server
from gateway_app import MODEL as SCRIPTED
from gateway_app import serving_scripted, token
from running import Running
from scripted import CLOSE, HANG, Script, sse_head
from sdk.builders import MODEL

BROKEN: Script = [sse_head(), token("half an ans"), CLOSE]
HANGING: Script = [sse_head(), token("I think"), HANG]
NARROW = Config(
    server=Server(max_body_bytes=1000),
    engine=Engine(slots=1),
    limits=Limits(queue=0),
    model=(Model(id=SCRIPTED, upstream_model="scripted"),),
)

Ended = dict[str, str | None]


@pytest.fixture(scope="module")
def openai(node: Path, service: Running) -> Ended:
    return javascript.run(node, "openai", service.url, MODEL)


@pytest.fixture(scope="module")
def anthropic(node: Path, service: Running) -> Ended:
    return javascript.run(node, "anthropic", service.url, MODEL)


@pytest.mark.engine
@pytest.mark.parametrize("name", javascript.names("openai"))
def test_openai(openai: Ended, name: str) -> None:
    assert openai[name] is None


@pytest.mark.engine
@pytest.mark.parametrize("name", javascript.names("anthropic"))
def test_anthropic(anthropic: Ended, name: str) -> None:
    assert anthropic[name] is None


@pytest.mark.parametrize("file", ["openai_errors", "anthropic_errors"])
async def test_failures_become_the_errors_of_the_sdk(node: Path, tmp_path: Path, file: str) -> None:
    async with serving_scripted(tmp_path, BROKEN, HANGING, config=NARROW) as gateway:
        key = await gateway.new_key()
        ended = await asyncio.to_thread(javascript.run, node, file, gateway.url, SCRIPTED, key=key)
        assert ended == dict.fromkeys(javascript.names(file))
        assert len(gateway.engine.requests) == 2


def test_the_lock_file_names_no_registry_and_has_a_hash_for_every_package() -> None:
    lock = (javascript.SCRIPTS / "package-lock.json").read_text()
    packages = {name: package for name, package in json.loads(lock)["packages"].items() if name}
    assert {"node_modules/openai", "node_modules/@anthropic-ai/sdk"} <= packages.keys()
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    assert not any("resolved" in package for package in packages.values())
