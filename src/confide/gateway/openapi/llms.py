"""`/llms.txt`: what there is to ask and to read, in the form that llmstxt.org describes."""

from functools import cache

from confide.gateway.openapi.document import OPERATIONS
from confide.gateway.openapi.shelf import documents, is_decision

HEAD = """# Confide

> An OpenAI-compatible inference service that proves what it did: every answer has a signed receipt.

The routes are described in full by [OpenAPI 3.1](/openapi.json), and by [a page](/docs) made of it.
"""


@cache
def llms_txt() -> str:
    """The text, the same each time."""
    routes = [f"- `{each.method.upper()} {each.path}`: {each.summary}" for each in OPERATIONS]
    pages = [each for each in documents().values() if not is_decision(each)]
    listed = [f"- [{each.title}](/docs/{each.name}){f': {each.about}' if each.about else ''}" for each in pages]
    further = [f"- [{each.title}](/docs/{each.name})" for each in documents().values() if is_decision(each)]
    parts = [HEAD, section("Routes", routes), section("Documents", listed), section("Optional", further)]
    return "\n".join(part for part in parts if part)


def section(title: str, lines: list[str]) -> str:
    return f"## {title}\n\n" + "\n".join(lines) + "\n" if lines else ""
