"""What the service is and whether it can answer: `/`, `/health`, `/health/ready`."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from confide.gateway.keysets import CurrentKeyset
from confide.protocol.report import API_VERSION


def routes(readiness: Callable[[], str], keyset: CurrentKeyset) -> list[Route]:
    """The routes of this surface; `readiness` gives ready, starting, draining or degraded."""

    async def root(_: Request) -> Response:
        return JSONResponse({"api_version": API_VERSION, "workload_keyset_digest": keyset().epoch.digest})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        status = readiness()
        return JSONResponse({"status": status}, status_code=200 if status == "ready" else 503)

    return [
        Route("/", root),
        Route("/health", health),
        Route("/health/ready", ready),
    ]
