"""A new configuration for a running service: all of it or nothing."""

import asyncio
from pathlib import Path

import pytest

from confide.config import Config
from confide.errors import ConfigError
from confide.gateway.reload import require_reloadable
from relay_app import DONE, answered, completion, delta, local, model, parsed, serving_upstreams
from scripted import LAST_CHUNK, Script, ScriptedUpstream, chunk, sse_head


async def test_upstreams_and_models_change_while_streams_run(tmp_path: Path) -> None:
    gate = asyncio.Event()
    old_script: Script = [
        sse_head(),
        chunk(delta("Hi")),
        gate,
        chunk(delta("", finish="stop")),
        chunk(DONE),
        LAST_CHUNK,
    ]
    async with ScriptedUpstream(old_script) as old, ScriptedUpstream(answered(completion("new"))) as new:
        text = local(old.port, "old") + model('"old"')
        async with serving_upstreams(tmp_path, text) as gateway:
            content = b'{"model":"vendor/model","messages":[],"stream":true}'
            async with gateway.client.stream("POST", "/v1/chat/completions", content=content) as answer:
                parts = answer.aiter_raw()
                assert await anext(parts) == delta("Hi")
                config = parsed(tmp_path, local(new.port, "new") + model('"new"', aliases=["short"]))
                result = await gateway.reload(config)()
                assert result.error is None
                assert result.changes == (
                    "upstream new: added",
                    "upstream old: removed",
                    "model vendor/model: changed",
                )
                assert (await gateway.post(model="short")).json()["choices"][0]["message"]["content"] == "new"
                gate.set()
                rest = b"".join([part async for part in parts])
                assert rest == delta("", finish="stop") + DONE  # what had begun ended where it was
            await old.until_open(0)
            assert set(gateway.upstreams.opened) == {"new"}


async def test_an_upstream_that_stays_the_same_keeps_its_connections(tmp_path: Path) -> None:
    async with ScriptedUpstream(answered(completion())) as engine:
        text = local(engine.port) + model('"engine"')
        async with serving_upstreams(tmp_path, text) as gateway:
            await gateway.post()
            result = await gateway.reload(parsed(tmp_path, text + 'description = "the same engine"\n'))()
            assert result.changes == ("model vendor/model: changed",)
            await gateway.post()
            assert {request.connection for request in engine.requests} == {1}


async def test_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    async with ScriptedUpstream(answered(completion())) as engine:
        text = local(engine.port) + model('"engine"')
        async with serving_upstreams(tmp_path, text) as gateway:
            opened = dict(gateway.upstreams.opened)
            other = local(engine.port, "other") + model('"other"')
            refused = [
                text + "[server]\nport = 1\n",
                text + "[limits]\nqueue = 1\n",
                text.replace('kind = "local"', 'kind = "openai"\nallow_unverified = true'),
                other.replace("probe", f'key_file = "{tmp_path}/absent"\nprobe'),
            ]
            for new in refused:
                result = await gateway.reload(parsed(tmp_path, new))()
                assert result.error, new
                assert result.remedy
                assert gateway.upstreams.opened == opened
                assert (await gateway.post()).status_code == 200


async def test_a_file_that_does_not_parse_changes_nothing(tmp_path: Path) -> None:
    async with ScriptedUpstream(answered(completion())) as engine:
        text = local(engine.port) + model('"engine"')
        async with serving_upstreams(tmp_path, text) as gateway:
            reload = gateway.reload(parsed(tmp_path, text))

            def reread() -> None:
                raise ConfigError("[[model]]: no", remedy="Write it.")

            reload._reread = reread  # type: ignore[assignment]  # what a file that does not parse does
            assert (await reload()).error == "[[model]]: no"
            assert (await gateway.post()).status_code == 200


def test_a_loaded_model_stays_of_its_kind(tmp_path: Path) -> None:
    entry = '[[model]]\nid = "m"\nupstream_model = "all-minilm-l6-v2"\n'
    chat, vectors = parsed(tmp_path, entry), parsed(tmp_path, entry + 'kind = "embeddings"\n')
    require_reloadable(vectors, vectors)
    with pytest.raises(ConfigError, match="neither loads nor unloads"):
        require_reloadable(chat, vectors)
    with pytest.raises(ConfigError, match="confide/all-minilm-l6-v2"):
        require_reloadable(Config(), Config(model=Config().model[:1]))
