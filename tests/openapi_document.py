"""The OpenAPI document as a test reads it: schemas to validate against, and closed ones that name all there is."""

import copy
import json
from typing import Any

from jsonschema import Draft202012Validator

from confide.gateway.openapi.document import openapi_bytes

Document = dict[str, Any]
DOCUMENT: Document = json.loads(openapi_bytes())


def operation(method: str, path: str) -> Document:
    found: Document = DOCUMENT["paths"][path][method.lower()]
    return found


def operations() -> list[tuple[str, str, Document]]:
    """Method, path and operation of each."""
    return [(method, path, each) for path, by in DOCUMENT["paths"].items() for method, each in by.items()]


def closed() -> Document:
    """The components, where no object may have a member that is not named."""
    components: Document = copy.deepcopy(DOCUMENT["components"])
    for schema in components["schemas"].values():
        schema["additionalProperties"] = False
    return components


CLOSED = closed()


def faults(schema: Document, value: object, *, is_closed: bool = True) -> list[str]:
    """Why `value` is not what the schema says. `is_closed`: nor may it have a member that the schema does not name."""
    components = CLOSED if is_closed else DOCUMENT["components"]
    validator = Draft202012Validator({**schema, "components": components})
    return [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(value)]
