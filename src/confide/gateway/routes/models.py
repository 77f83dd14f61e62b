"""The catalogue (wire contract 3.1). Open: no credential is asked for, and one that is sent is ignored."""

from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from confide.errors import ModelNotFound
from confide.gateway.models import ModelTable, ServedModel


def routes(table: ModelTable, *, app_id: str | None = None) -> list[Route]:
    """The routes of this surface. `app_id`: see ServedModel.document."""

    async def every(request: Request) -> Response:
        provider = request.query_params.get("provider")
        return model_list(app_id, table.of_kind("chat") if provider is None else table.of_provider(provider))

    async def embeddings(_: Request) -> Response:
        return model_list(app_id, table.of_kind("embeddings"))

    async def of_provider(request: Request) -> Response:
        return model_list(app_id, table.of_provider(request.path_params["provider"]))

    async def one_or_provider(request: Request) -> Response:
        # The SDK asks for models.retrieve("vendor/model") as /v1/models/vendor%2Fmodel: slashes belong to the name.
        name = request.path_params["name"]
        served = table.get(name)
        if served is not None:
            return JSONResponse({**served.document(app_id), "id": name})
        if "/" in name:
            raise ModelNotFound("no such model; GET /v1/models lists those there are", param="model")
        return model_list(app_id, table.of_provider(name))

    return [
        Route("/v1/models", every),
        Route("/v1/embeddings/models", embeddings),
        Route("/v1/models/providers/{provider}", of_provider),
        Route("/v1/models/{name:path}", one_or_provider),
    ]


def model_list(app_id: str | None, models: Iterable[ServedModel]) -> Response:
    """The list shape; an alias is an entry of its own, so that what a client may ask for is what it sees."""
    data = [
        {**served.document(app_id), "id": name}
        for served in models
        for name in (served.model.id, *served.model.aliases)
    ]
    return JSONResponse({"object": "list", "data": data})
