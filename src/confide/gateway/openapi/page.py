"""`/docs`: the OpenAPI document as a page. No script, nothing from elsewhere, one style sheet in it."""

import base64
import hashlib
from collections.abc import Iterator
from functools import cache

import msgspec

from confide.gateway.openapi.document import openapi_bytes
from confide.gateway.openapi.html import Html, anchor, element, inline, joined, raw, table
from confide.gateway.openapi.members import Effect
from confide.gateway.openapi.operations import EVENT_STREAM
from confide.gateway.openapi.schemas import Schema
from confide.gateway.openapi.shelf import documents
from confide.gateway.openapi.style import STYLE
from confide.gateway.openapi.words import limits, type_of

STYLE_SHA256 = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{STYLE_SHA256}'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
INTEGRATIONS = "integrations/README.md"
BASE_URL = "http://127.0.0.1:8080"


@cache
def page() -> bytes:
    """The page, the same bytes each time."""
    document = msgspec.json.decode(openapi_bytes())
    operations = [
        Shown(path, method, operation) for path, by in document["paths"].items() for method, operation in by.items()
    ]
    schemas = document["components"]["schemas"]
    body = joined(
        element("a", "Skip to the routes", href="#routes", class_="skip"),
        header(document["info"]),
        element("div", joined(navigation(operations), main(operations, schemas)), class_="columns"),
    )
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,"><title>Confide: the API</title>'
        f"<style>{STYLE}</style></head>\n<body>{body.text}</body></html>\n"
    ).encode()


class Shown:
    """One operation."""

    def __init__(self, path: str, method: str, operation: Schema) -> None:
        self.path, self.method, self.operation = path, method.upper(), operation
        self.id: str = operation["operationId"]

    @property
    def access(self) -> str:
        schemes = self.operation["security"]
        if not schemes:
            return "open"
        return "as the request that it is about" if {} in schemes else "needs a key, once there is one"


def header(info: Schema) -> Html:
    title = element("h1", f"{info['title']} {info['version']}")
    paragraphs = [element("p", inline(text)) for text in info["description"].split("\n\n")]
    further = joined(
        raw("Also: "),
        element("a", "openapi.json", href="/openapi.json"),
        raw(" · "),
        element("a", "llms.txt", href="/llms.txt"),
    )
    return element("header", joined(title, *paragraphs, element("p", further, class_="further")))


def navigation(operations: list[Shown]) -> Html:
    parts = [element("summary", "Routes")]
    for tag in dict.fromkeys(each.operation["tags"][0] for each in operations):
        links = [
            element("li", element("a", joined(method(each), raw(" "), element("code", each.path)), href=f"#{each.id}"))
            for each in operations
            if each.operation["tags"][0] == tag
        ]
        parts += [element("h2", tag), element("ul", joined(*links))]
    pages = [
        element("li", element("a", each.title, href=f"/docs/{each.name}"))
        for each in documents().values()
        if "/" not in each.name or each.name == INTEGRATIONS
    ]
    parts += [element("h2", "Documents"), element("ul", joined(*pages))]
    return element("nav", element("details", joined(*parts), open=""), aria_label="Routes")


def method(shown: Shown) -> Html:
    return element("span", shown.method, class_=f"method {shown.method.lower()}")


def main(operations: list[Shown], schemas: dict[str, Schema]) -> Html:
    sections = [route(each, schemas) for each in operations]
    shapes = [shape(name, schema) for name, schema in schemas.items() if name not in bodies(operations)]
    return element(
        "main",
        joined(*sections, element("h2", "Shapes", id="shapes"), *shapes),
        id="routes",
    )


def bodies(operations: list[Shown]) -> set[str]:
    """The schemas that stand at their routes already."""
    found = (each.operation.get("requestBody") for each in operations)
    return {body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2] for body in found if body}


def route(shown: Shown, schemas: dict[str, Schema]) -> Html:
    operation = shown.operation
    heading = element("h2", joined(method(shown), raw(" "), element("code", shown.path)))
    parts = [
        heading,
        element("p", joined(element("strong", operation["summary"]), raw(". "), inline(operation["description"]))),
        element("p", f"Access: {shown.access}.", class_="access"),
        *examples(shown),
    ]
    if "parameters" in operation:
        rows = [
            (element("code", each["name"]), each["in"], type_of(each["schema"]), inline(each["description"]))
            for each in operation["parameters"]
        ]
        parts += [element("h3", "Parameters"), table(("name", "in", "type", "meaning"), rows)]
    if "requestBody" in operation:
        name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        parts += [element("h3", "Members"), element("p", inline(schemas[name]["description"])), members(schemas[name])]
    parts += [element("h3", "Answers"), table(("status", "content", "meaning"), list(answers(operation["responses"])))]
    return element("section", joined(*parts), id=shown.id)


def members(schema: Schema) -> Html:
    """The table of a body: what is required first, what is refused last."""
    required, order = schema.get("required", []), [each.name.lower() for each in Effect]

    def rank(named: tuple[str, Schema]) -> tuple[bool, int, str]:
        return named[0] not in required, order.index(named[1]["x-effect"]), named[0]

    rows = [
        (told(name, name in required), type_of(member), limits(member), effect(member))
        for name, member in sorted(schema["properties"].items(), key=rank)
    ]
    return table(("member", "type", "limits", "what becomes of it"), rows)


def told(name: str, is_required: bool) -> Html:
    return joined(element("code", name), raw(" required" if is_required else ""))


def effect(member: Schema) -> Html:
    """Its description, of which the effect stands out."""
    shown, _, rest = member["description"].partition(Effect[member["x-effect"].upper()].sentence)
    marked = element("span", Effect[member["x-effect"].upper()].sentence, class_=f"effect {member['x-effect']}")
    return joined(inline(shown), marked, inline(rest))


def examples(shown: Shown) -> Iterator[Html]:
    """With curl, as they can be pasted."""
    body = shown.operation.get("requestBody")
    if body is None:
        yield element("pre", element("code", f"curl -s '{BASE_URL}{target(shown)}'"), tabindex="0")
        return
    for name, example in body["content"]["application/json"]["examples"].items():
        text = msgspec.json.format(msgspec.json.encode(example["value"]), indent=2).decode().replace("'", "'\\''")
        flags = "-sN" if example["value"].get("stream") else "-s"
        command = (
            f'curl {flags} {BASE_URL}{shown.path} \\\n  -H "Authorization: Bearer $CONFIDE_API_KEY" \\\n'
            f"  -H 'Content-Type: application/json' \\\n  -d '{text}'"
        )
        code = element("pre", element("code", command), tabindex="0")
        yield element(
            "details", joined(element("summary", f"Example: {name}"), code), open="" if name == "hello" else None
        )


def target(shown: Shown) -> str:
    """The path with its examples filled in, and those of the query behind it."""
    path, query = shown.path, []
    for each in shown.operation.get("parameters", ()):
        if "example" in each and each["in"] == "path":
            path = path.replace(f"{{{each['name']}}}", each["example"])
        elif "example" in each:
            query.append(f"{each['name']}={each['example']}")
    return f"{path}?{'&'.join(query)}" if query else path


def answers(responses: Schema) -> Iterator[tuple[Html | str, ...]]:
    """One row a status."""
    for status, response in responses.items():
        kinds = [content(kind, each) for kind, each in response["content"].items()]
        separated = [joined(raw("<br>"), each) if index else each for index, each in enumerate(kinds)]
        yield element("code", status), joined(*separated), inline(response["description"])


def content(kind: str, media: Schema) -> Html:
    """A kind of content, and what it is made of where it is no text."""
    shown, plain = media["schema"], element("code", kind.partition(";")[0])
    if kind == EVENT_STREAM:
        return joined(plain, raw(" of "), type_of(event_data(shown)))
    return plain if shown == {"type": "string"} else joined(plain, raw(" "), type_of(shown))


def event_data(event: Schema) -> Schema:
    """What the data of a stream's events hold, `[DONE]` aside."""
    data = event["properties"]["data"]
    held: Schema = data.get("anyOf", [data])[0]["contentSchema"]
    return held


def shape(name: str, schema: Schema) -> Html:
    rows = [
        (
            told(member, member in schema.get("required", [])),
            type_of(inner),
            limits(inner),
        )
        for member, inner in schema["properties"].items()
    ]
    parts = [element("h3", element("code", name)), element("p", inline(schema["description"]))]
    return element("section", joined(*parts, table(("member", "type", "limits"), rows)), id=anchor(name))
