"""`POST /v1/messages/count_tokens`: how many tokens a prompt has.

Authenticated and bounded like a prompt. It is no inference: nothing is generated, and there is no receipt.
"""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from confide.errors import InternalError, InvalidRequest, WireError
from confide.gateway.auth import Authenticator
from confide.gateway.lifecycle import Lifecycle
from confide.gateway.models import ModelTable
from confide.gateway.surfaces.messages import Messages
from confide.gateway.surfaces.translated import renamed
from confide.gateway.wire import ClientGone, error_headers, read_body
from confide.protocol.messages_request import RENAMED, parse_count_tokens
from confide.protocol.serving import UNCONSTRAINED, parse_constraints
from confide.telemetry.logs import Log
from confide.upstream.base import TokenCounting, refuse_sessions


def routes(
    surface: Messages,
    *,
    authenticator: Authenticator,
    models: ModelTable,
    lifecycle: Lifecycle,
    log: Log,
    max_body_bytes: int,
) -> list[Route]:
    """The route. `surface`: whose errors these are."""

    async def count(request: Request) -> int:
        lifecycle.check_open()
        authenticator.principal(request.scope["headers"])
        asked = parse_count_tokens(await read_body(request.receive, max_body_bytes))
        constraints = UNCONSTRAINED if asked.provider is None else parse_constraints(asked.provider)
        served = models.find(asked.model, surface.ways)
        for candidate in served.route.candidates:
            if isinstance(candidate.upstream, TokenCounting):
                refuse_sessions(constraints)
                return await candidate.upstream.count_tokens(asked.chat_body())
        raise InvalidRequest("tokens cannot be counted for this model: its upstream does not tell", param="model")

    async def answered(request: Request) -> Response:
        failure: WireError
        try:
            return JSONResponse({"input_tokens": await count(request)})
        except ClientGone:
            return Response(status_code=400)  # nobody reads it
        except WireError as error:
            failure = renamed(error, RENAMED)
        except Exception as error:  # noqa: BLE001 - the end of this route: the unknown becomes internal_error
            log.write("fault", error=type(error).__name__)
            failure = InternalError("something went wrong on our side; it was recorded")
        return refusal(surface, failure)

    return [Route(f"{surface.endpoint}/count_tokens", answered, methods=["POST"])]


def refusal(surface: Messages, error: WireError) -> Response:
    """The error as a response of the surface."""
    body = surface.error(error, None)
    headers = {name.decode(): value.decode() for name, value in error_headers(error, body)}
    return Response(body, status_code=error.status, headers=headers)
