"""The OpenAPI document by itself: whole, the same each time, and about the routes and errors that there are."""

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from schemathesis.specs.openapi.definitions import OPENAPI_31

from confide import errors
from confide.config import Config
from confide.gateway.openapi.document import openapi_bytes
from confide.gateway.openapi.inference import MODEL
from confide.gateway.openapi.schemas import Components
from confide.protocol import chat_body, responses_body
from gateway_app import serving_scripted
from openapi_document import DOCUMENT, operations


def everything(value: Any) -> Iterator[Any]:
    yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from everything(each)


def test_every_reference_resolves_and_every_shape_is_used() -> None:
    refs = {each["$ref"] for each in everything(DOCUMENT) if isinstance(each, dict) and "$ref" in each}
    mapped = {
        ref
        for each in everything(DOCUMENT)
        if isinstance(each, dict) and "discriminator" in each
        for ref in each["discriminator"]["mapping"].values()
    }
    there = {f"#/components/{kind}/{name}" for kind in ("schemas", "headers") for name in DOCUMENT["components"][kind]}
    assert refs | mapped <= there
    assert {ref for ref in there if "/schemas/" in ref} <= refs


def test_it_is_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert [error.message for error in Draft202012Validator(OPENAPI_31).iter_errors(DOCUMENT)] == []
    incomplete = {name: value for name, value in DOCUMENT.items() if name != "info"}
    assert not Draft202012Validator(OPENAPI_31).is_valid(incomplete)


def test_every_schema_is_a_schema_with_patterns_of_its_own_kind() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert schema["description"], name
    patterns = [each["pattern"] for each in everything(DOCUMENT) if isinstance(each, dict) and "pattern" in each]
    assert [pattern for pattern in patterns if re.search(r"\\[AZz]", str(pattern))] == []


def test_operations_have_ids_of_their_own_and_say_every_kind_of_answer() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(ids) == len(set(ids))
    for _, path, operation in operations():
        assert {"200", "500"} <= set(operation["responses"]), path
        assert set(re.findall(r"\{(\w+)\}", path)) == {
            each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"
        }


def wire_errors(of: type[errors.WireError] = errors.WireError) -> Iterator[type[errors.WireError]]:
    for each in of.__subclasses__():
        yield each
        yield from wire_errors(each)


def test_every_error_that_a_client_may_see_is_described() -> None:
    told = [response["description"] for _, _, each in operations() for response in each["responses"].values()]
    missing = [
        each.__name__
        for each in wire_errors()
        if hasattr(each, "type")
        and each.__module__ == errors.__name__  # the proxy of the client has one of its own
        and each is not errors.MethodNotAllowed
        and not any(f"`{each.type}`" in one for one in told)
    ]
    assert missing == []  # MethodNotAllowed is told of in the introduction: it is of no operation


@pytest.mark.asyncio
async def test_every_route_is_described_and_nothing_else(tmp_path: Any) -> None:
    async with serving_scripted(tmp_path, [], config=Config()) as gateway:
        routed = {re.sub(r":path\}", "}", route.path) for route in gateway.app._others.routes}  # type: ignore[attr-defined]  # all are Route
        assert routed | set(gateway.app._prompts) == set(DOCUMENT["paths"])
    assert Config().model[0].id == MODEL


@pytest.mark.parametrize("seed", ["1", "2"])
def test_it_is_the_same_bytes_in_every_process(seed: str) -> None:
    program = (
        "import hashlib; from confide.gateway.openapi.document import openapi_bytes as a; "
        "from confide.gateway.openapi.page import page as b; print(hashlib.sha256(a() + b()).hexdigest())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
    ).stdout
    from confide.gateway.openapi.page import page

    assert printed.strip() == hashlib.sha256(openapi_bytes() + page()).hexdigest()


def test_two_structs_of_one_name_are_not_taken_for_each_other() -> None:
    components = Components({})
    components.of(chat_body.StreamOptions, "a")
    components.of(chat_body.StreamOptions, "a")
    with pytest.raises(ValueError, match="StreamOptions"):
        components.of(responses_body.StreamOptions, "a")


def test_what_no_schema_can_be_made_of_is_no_schema() -> None:
    with pytest.raises(TypeError, match="no schema"):
        Components({}).of(bytes, "a")
