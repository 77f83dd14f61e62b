"""The OpenAPI 3.1 document: the same for every service of one version, made from the tables of this room."""

from collections.abc import Iterable
from functools import cache
from importlib import metadata
from typing import Any

import msgspec

from confide.errors import UpstreamNotVerified, WireError
from confide.gateway.openapi import documents
from confide.gateway.openapi.answers_messages import MessagesError
from confide.gateway.openapi.bodies import OVERRIDES
from confide.gateway.openapi.inference import INFERENCE_OPERATIONS
from confide.gateway.openapi.lookups import LOOKUPS
from confide.gateway.openapi.members import Effect, Member, Table
from confide.gateway.openapi.operations import EVENT_STREAM, JSON, WHEN, Access, Answer, Operation, Parameter
from confide.gateway.openapi.schemas import Components, Either, Schema
from confide.upstream.kinds.refusals import OF_THE_CLIENT

OPERATIONS: tuple[Operation, ...] = (*INFERENCE_OPERATIONS, *LOOKUPS)
DESCRIPTION = """An inference service that proves what it did: every answer has a signed receipt over its exact bytes, \
and the signing key is bound to a trusted execution environment.

Requests are described as models of the embedded engine take them; an upstream that judges requests itself judges them \
by its own rules. Where an API key was created the routes that take a prompt need one; without any, a service on a \
loopback address answers everybody. An unknown path is answered 404, a method that a path does not have 405, `OPTIONS` \
204 with permissive CORS headers, and `HEAD` as `GET` without its body. Every error has the same envelope; on \
`/v1/messages` it is Anthropic's."""
SECURITY: dict[Access, list[dict[str, list[str]]]] = {
    Access.OPEN: [],
    Access.KEY: [{"bearer": []}, {"x-api-key": []}],
    Access.BOUND: [{}, {"bearer": []}, {"x-api-key": []}],
}
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key of `confide keys create`."},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same key."},
}
HEADERS: dict[str, Schema] = {
    "X-ACI-Version": {"description": "The version of ACI.", "required": True, "schema": {"const": "aci/1"}},
    "X-ACI-Keyset-Digest": {
        "description": "The keyset that stands. A hint: nothing may be trusted because of it.",
        "required": True,
        "schema": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
    },
    "X-Receipt-Id": {
        "description": "Where the signed receipt of this exchange is: `/v1/aci/receipts/{id}`.",
        "schema": {"type": "string", "pattern": "^rcpt-[0-9a-f]{24}$"},
    },
    "X-E2EE-Applied": {"description": "Whether the body is sealed.", "schema": {"enum": ["false", "true"]}},
    "Retry-After": {"description": "Seconds.", "schema": {"type": "string", "pattern": "^[0-9]+$"}},
    "WWW-Authenticate": {"description": "How to say who asks.", "schema": {"const": "Bearer"}},
    "Cache-Control": {"description": "`no-store`: made for this caller.", "schema": {"const": "no-store"}},
}
OF_PROMPTS = ("X-Receipt-Id", "X-E2EE-Applied")
ALWAYS = ("X-ACI-Version", "X-ACI-Keyset-Digest")
BY_STATUS = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",), 504: ("Retry-After",)}


@cache
def openapi_bytes() -> bytes:
    """The document as it is served, the same bytes each time. Made when it is first asked for."""
    return msgspec.json.encode(openapi())


def openapi() -> Schema:
    """The document."""
    components = Components(OVERRIDES)
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = described(operation, components)
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "Confide",
            "version": metadata.version("confide"),
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(operation.tag for operation in OPERATIONS)],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.schemas.items())),
            "headers": HEADERS,
            "securitySchemes": SCHEMES,
        },
    }


def described(operation: Operation, components: Components) -> Schema:
    """One Operation Object."""
    document: Schema = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "security": SECURITY[operation.access],
    }
    if operation.parameters:
        document["parameters"] = [parameter(each) for each in operation.parameters]
    if operation.body is not None:
        document["requestBody"] = request_body(operation, operation.body, components)
    document["responses"] = responses(operation, components)
    return document


def parameter(of: Parameter) -> Schema:
    document: Schema = {"name": of.name, "in": of.place, "description": of.description, "schema": of.schema}
    return (
        document | ({"required": True} if of.place == "path" else {}) | ({"example": of.example} if of.example else {})
    )


def request_body(operation: Operation, table: Table, components: Components) -> Schema:
    """The body, each member of it with what becomes of it."""
    name = components.name_of(table.body, operation.namespace)
    schema = components.schemas[name]
    schema["description"] = f"The members of `POST {table.endpoint}`. " + unknown(table)
    for member in table.members:
        said = schema["properties"][member.name]
        said["description"] = effect_of(member)
        said["x-effect"] = member.effect.name.lower()
    examples = {name: {"value": value} for name, value in operation.examples.items()}
    content: Schema = {"schema": {"$ref": f"#/components/schemas/{name}"}, "examples": examples}
    return {"required": True, "content": {JSON: content}}


def unknown(table: Table) -> str:
    """What becomes of a member that is not there."""
    is_refused = table.refuses_unknown
    return f"A member that is not listed is {'refused with its name' if is_refused else 'ignored'}."


def effect_of(member: Member) -> str:
    """In a sentence or two."""
    note = "" if member.note is None else f"{'; ' if member.effect is Effect.BY_SOME else ': '}{member.note}"
    takes = "" if member.takes is None else f" Takes {member.takes}."
    return f"{member.effect.sentence}{note}.{takes}"


def responses(operation: Operation, components: Components) -> Schema:
    """By status. What is not an answer is an error, in the shape of the surface."""
    content: Schema = {answer.media: media(answer, operation, components) for answer in operation.answers}
    found: Schema = {"200": response("As asked.", content, operation.headers, required=True)}
    if operation.not_ready:
        found["503"] = response("It cannot answer now.", content, ())
    for status, errors in by_status(operation.errors):
        said = " ".join(f"`{each.type}`: {WHEN[each]}" for each in errors)
        found[str(status)] = error(operation, status, said, components)
    if UpstreamNotVerified in operation.errors:  # it may be passed on to another service, which judges it
        for status in sorted(OF_THE_CLIENT - {each.status for each in operation.errors}):
            said = "The model's upstream finds the request at fault, in its words."
            found[str(status)] = error(operation, status, said, components)
    return dict(sorted(found.items()))


def by_status(errors: Iterable[type[WireError]]) -> list[tuple[int, list[type[WireError]]]]:
    grouped: dict[int, list[type[WireError]]] = {}
    for each in errors:
        grouped.setdefault(each.status, []).append(each)
    return sorted(grouped.items())


def media(answer: Answer, operation: Operation, components: Components) -> Schema:
    """One Media Type Object. OpenAPI 3.1 has no word for streams; as others do, the schema is that of each event."""
    schema = components.of(answer.what, operation.namespace)
    if answer.media != EVENT_STREAM:
        return {"schema": schema}
    data: Schema = {"type": "string", "contentMediaType": JSON, "contentSchema": schema}
    members: Schema = {"data": data if answer.is_named else {"anyOf": [data, {"const": "[DONE]"}]}}
    if answer.is_named:
        members = {"event": {"type": "string"}, **members}
    event: Schema = {"type": "object", "description": "Each event.", "properties": members, "required": list(members)}
    return {"schema": event}


def error(operation: Operation, status: int, said: str, components: Components) -> Schema:
    """An error response. Of those to a prompt some have a receipt, and those that ACI defines its shape everywhere."""
    envelope = Either(MessagesError, documents.Error) if operation.error_shape == "messages" else documents.Error
    shape = components.of(envelope, "errors")
    receipted = [name for name in operation.headers if name in OF_PROMPTS]
    return response(said, {JSON: {"schema": shape}}, (*receipted, *BY_STATUS.get(status, ())))


def response(said: str, content: Schema, headers: Iterable[str], *, required: bool = False) -> Schema:
    """One Response Object. `required`: these headers are there always, as those are that every response has."""
    named: dict[str, Any] = {name: {"$ref": f"#/components/headers/{name}"} for name in (*ALWAYS, *headers)}
    if required:
        named |= {name: {**HEADERS[name], "required": True} for name in headers if name != "Cache-Control"}
    return {"description": said, "headers": named, "content": content}
