"""What the service says of its own API: `/openapi.json`, `/docs`, `/docs/NAME.md`, `/llms.txt`. Open.

All of it is made when it is first asked for, in a thread: streams go on meanwhile.
"""

import asyncio

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from confide.errors import NotFound
from confide.gateway.openapi.document import openapi_bytes
from confide.gateway.openapi.llms import llms_txt
from confide.gateway.openapi.page import CONTENT_SECURITY_POLICY, page
from confide.gateway.openapi.shelf import DECISIONS, decisions, documents

MARKDOWN = "text/markdown; charset=utf-8"
PAGE_HEADERS = {"content-security-policy": CONTENT_SECURITY_POLICY, "referrer-policy": "no-referrer"}


def routes() -> list[Route]:
    """The routes of this surface."""

    async def openapi(_: Request) -> Response:
        return Response(await asyncio.to_thread(openapi_bytes), media_type="application/json")

    async def reference(_: Request) -> Response:
        return Response(await asyncio.to_thread(page), media_type="text/html", headers=PAGE_HEADERS)

    async def llms(_: Request) -> Response:
        return PlainTextResponse(await asyncio.to_thread(llms_txt))

    async def document(request: Request) -> Response:
        return Response(await asyncio.to_thread(text_of, request.path_params["name"]), media_type=MARKDOWN)

    return [
        Route("/openapi.json", openapi),
        Route("/docs", reference),
        Route("/docs/{name:path}", document),
        Route("/llms.txt", llms),
    ]


def text_of(name: str) -> str:
    """The document of this name, which is looked up and never made a path of. Raises NotFound."""
    if name == DECISIONS:
        return decisions()
    found = documents().get(name)
    if found is None:
        raise NotFound("no such document; GET /llms.txt lists those there are")
    return found.text()
