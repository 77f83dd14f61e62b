"""The catalogue (wire contract 3.1): what there is, by provider, one by one, under each of its names."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI, NotFoundError

from confide.attester.simulated import SimulatedAttester
from confide.config import Config, Model, Pricing
from confide.errors import ConfigError
from gateway_app import ScriptedGateway, answering, serving_scripted
from relay_app import local, model, parsed, serving_upstreams

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODELS = (
    Model(
        id="acme/one",
        aliases=("zeta/uno", "plain"),
        upstream_model="scripted",
        name="One",
        description="The first.",
        provider="acme",
        context_length=2048,
        pricing=Pricing(prompt="0.0000001", completion="0.0000004", image="0.001"),
        max_output_length=1024,
    ),
    Model(id="other/two", upstream_model="scripted"),
)
MEMBERS = {
    "id", "object", "created", "owned_by", "name", "description", "context_length", "max_output_length", "pricing",
    "providers", "metadata", "is_tee", "architecture", "input_modalities", "output_modalities", "supported_parameters",
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    config = Config(model=MODELS)
    async with serving_scripted(tmp_path_factory.mktemp("home"), answering("Hi"), config=config) as gateway:
        yield gateway


async def listed(gateway: ScriptedGateway, path: str) -> list[str]:
    answer = await gateway.client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert set(document) == {"object", "data"}
    assert document["object"] == "list"
    return [entry["id"] for entry in document["data"]]


async def test_every_name_that_a_client_may_ask_for_is_listed(gateway: ScriptedGateway) -> None:
    names = await listed(gateway, "/v1/models")
    assert names == ["acme/one", "zeta/uno", "plain", "other/two"]
    for name in names:
        assert (await gateway.post(model=name)).json()["model"] == name


async def test_an_entry_has_every_documented_member(gateway: ScriptedGateway) -> None:
    entries = (await gateway.client.get("/v1/models")).json()["data"]
    assert entries
    for entry in entries:
        assert set(entry) == MEMBERS
        assert entry["object"] == "model"
        assert entry["metadata"]["tee"] is entry["is_tee"] is False  # simulated hardware is no TEE
        assert entry["architecture"]["input_modalities"] == entry["input_modalities"] == ["text"]
        assert entry["architecture"]["output_modalities"] == entry["output_modalities"] == ["text"]
        assert entry["architecture"]["modality"] == "text->text"
        assert type(entry["created"]) is type(entry["context_length"]) is type(entry["max_output_length"]) is int
        assert "scripted" not in entry["id"] + entry["name"]


async def test_what_the_operator_wrote_is_shown(gateway: ScriptedGateway) -> None:
    entry = (await gateway.client.get("/v1/models/acme/one")).json()
    assert (entry["name"], entry["description"], entry["context_length"]) == ("One", "The first.", 2048)
    assert entry["pricing"] == {"prompt": "0.0000001", "completion": "0.0000004", "image": "0.001"}
    assert entry["max_output_length"] == 1024
    assert (entry["owned_by"], entry["providers"]) == ("acme", ["acme"])


async def test_the_supported_parameters_are_those_the_model_honours(gateway: ScriptedGateway) -> None:
    supported = (await gateway.client.get("/v1/models/plain")).json()["supported_parameters"]
    assert {"temperature", "max_tokens", "max_completion_tokens", "stop", "tools", "response_format"} <= set(supported)
    assert not {"audio", "functions", "web_search_options", "grammar", "cache_prompt"} & set(supported)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/v1/models/acme", ["acme/one", "zeta/uno", "plain"]),
        ("/v1/models/zeta", ["acme/one", "zeta/uno", "plain"]),
        ("/v1/models/other", ["other/two"]),
        ("/v1/models/confide", ["other/two"]),
        ("/v1/models/nobody", []),
        ("/v1/models/ACME", []),
        ("/v1/models/acm", []),
        ("/v1/models/providers/acme", ["acme/one", "zeta/uno", "plain"]),
        ("/v1/models/providers/nobody", []),
        ("/v1/models?provider=acme", ["acme/one", "zeta/uno", "plain"]),
        ("/v1/models?provider=other", ["other/two"]),
        ("/v1/models?provider=nobody", []),
        ("/v1/models?provider=%2e%2e%2f", []),
        ("/v1/models?unknown=x", ["acme/one", "zeta/uno", "plain", "other/two"]),
        ("/v1/embeddings/models", []),
    ],
)
async def test_a_list_keeps_the_models_of_its_provider(gateway: ScriptedGateway, path: str, names: list[str]) -> None:
    assert await listed(gateway, path) == names


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/models/acme/one", "acme/one"),
        ("/v1/models/acme%2Fone", "acme/one"),
        ("/v1/models/acme%2fone", "acme/one"),
        ("/v1/models/zeta%2Funo", "zeta/uno"),
        ("/v1/models/plain", "plain"),
        ("/v1/models/%70lain", "plain"),
    ],
)
async def test_one_model_is_found_under_each_of_its_names(gateway: ScriptedGateway, path: str, name: str) -> None:
    entry = (await gateway.client.get(path)).json()
    assert entry["id"] == name
    assert set(entry) == MEMBERS


@pytest.mark.parametrize("path", ["/v1/models/acme/CANARY", "/v1/models/acme%2FCANARY", "/v1/models/a/b/CANARY"])
async def test_an_unknown_model_is_not_found(gateway: ScriptedGateway, path: str) -> None:
    answer = await gateway.client.get(path)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("model_not_found", "model_not_found")
    assert "CANARY" not in answer.text


async def test_the_official_sdk_lists_and_retrieves(gateway: ScriptedGateway) -> None:
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == ["acme/one", "zeta/uno", "plain", "other/two"]
        model = await client.models.retrieve("acme/one")
        assert (model.id, model.owned_by, model.object) == ("acme/one", "acme", "model")
        with pytest.raises(NotFoundError):
            await client.models.retrieve("acme/three")


async def test_the_catalogue_is_open_and_asks_no_engine(gateway: ScriptedGateway) -> None:
    before = len(gateway.engine.requests)
    await gateway.new_key()
    wrong: list[dict[str, Any]] = [{}, {"Authorization": "Bearer wrong"}, {"x-api-key": "wrong"}]
    for headers in wrong:
        for path in ("/v1/models", "/v1/models/acme", "/v1/models/acme/one", "/v1/embeddings/models"):
            assert (await gateway.client.get(path, headers=headers)).status_code == 200
    assert len(gateway.engine.requests) == before


async def test_the_platforms_name_of_the_application_stands_in_what_runs_inside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimulatedAttester, "app_id", "86e59625be93207b")
    async with serving_scripted(tmp_path, answering("Hi"), config=Config(model=MODELS)) as gateway:
        for entry in (await gateway.client.get("/v1/models")).json()["data"]:
            assert entry["metadata"] == {"tee": False, "simulated_tee": True, "appid": "86e59625be93207b"}


async def test_what_the_engine_behind_an_upstream_honours_is_its_operators_to_say(tmp_path: Path) -> None:
    text = local(1) + model('"engine"', supported_parameters=["temperature", "max_tokens"])
    async with serving_upstreams(tmp_path, text) as gateway:
        [entry] = (await gateway.client.get("/v1/models")).json()["data"]
        assert entry["supported_parameters"] == ["max_tokens", "temperature"]


async def test_of_the_embedded_engine_it_is_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="supported_parameters"):
        parsed(tmp_path, model('"embedded"', upstream_model="smollm2-135m", supported_parameters=["temperature"]))
