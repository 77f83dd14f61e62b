"""Write `docs/api.md` from the tables that decide what becomes of a request's members; `--check` compares instead."""

import html
import re
import sys
from pathlib import Path

from rendering import keep_current

from confide.gateway.openapi.document import OPERATIONS, openapi
from confide.gateway.openapi.members import TABLES, Effect, Member, Table
from confide.gateway.openapi.operations import Access, Operation
from confide.gateway.openapi.schemas import Schema
from confide.gateway.openapi.words import limits, type_of

PAGE = Path(__file__).parent / "api.md"
TAG = re.compile(r"<[^>]+>")
ACCESS = {Access.OPEN: "open", Access.KEY: "key", Access.BOUND: "as the request that it is about"}
DOCUMENT = openapi()
HEAD = """# The API

A running service describes itself: `/docs` is a reference to read, `/openapi.json` the same as OpenAPI 3.1,
`/llms.txt` an index for models, `/docs/NAME.md` these documents. None of them needs a key.

This page is made by `docs/render_api.py` from the tables that the service decides by; `make docs` compares it.

## Routes

`open`: answered without a key. `key`: with one, as `Authorization: Bearer` or `x-api-key`, once one was created. An
unknown path is 404, a wrong method 405, and every error has OpenAI's envelope with all four members; on `/v1/messages`
it is Anthropic's.

"""
MEMBERS = """
## What becomes of a member

For models of the embedded engine. An upstream that judges requests itself judges them by its own rules
([upstreams.md](upstreams.md)). `null` means absent; shapes are called as on `/docs`. What is **refused** is a 400 that
names the member in `param` (on the routes below `/v1/messages` in its text). Nothing is dropped in silence but what the
tables call ignored.
"""


def cell(text: str) -> str:
    """Text inside a table."""
    return text.replace("|", "\\|")


def route(operation: Operation) -> str:
    return f"| `{operation.method.upper()} {operation.path}` | {operation.summary} | {ACCESS[operation.access]} |"


def taken(member: Member, schema: Schema) -> str:
    """In the words of a refusal where it has any, else its type and limits."""
    kind = html.unescape(TAG.sub("", type_of(schema).text))
    if member.effect is Effect.REFUSED:
        return ""
    return member.takes or ", ".join(filter(None, (kind, limits(schema))))


def row(member: Member, schema: Schema) -> str:
    effect = member.effect.value if member.effect is not Effect.REFUSED else "**refused**"
    name = f"`{member.name}`" + (" (required)" if member.required else "")
    return f"| {name} | {effect} | {cell(taken(member, schema))} | {cell(member.note or '')} |"


def section(table: Table) -> str:
    """One surface."""
    heading = f"\n### {table.title}\n\n`POST {table.endpoint}`"
    heading += f" ([more]({table.page})). " if table.page else ". "
    heading += f"A member that is not listed is {'refused with its name' if table.refuses_unknown else 'ignored'}.\n"
    head = "\n| member | | takes | limited or refused, and why |\n| --- | --- | --- | --- |\n"
    properties = body(table)["properties"]
    return heading + head + "\n".join(row(each, properties[each.name]) for each in table.members) + "\n"


def body(table: Table) -> Schema:
    """The schema of its body."""
    content = DOCUMENT["paths"][table.endpoint]["post"]["requestBody"]["content"]["application/json"]
    found: Schema = DOCUMENT["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    return found


def page() -> str:
    """The whole document."""
    routes = "| route | | access |\n| --- | --- | --- |\n" + "\n".join(map(route, OPERATIONS)) + "\n"
    return HEAD + routes + MEMBERS + "".join(map(section, TABLES))


if __name__ == "__main__":
    sys.exit(keep_current(PAGE, page()))
