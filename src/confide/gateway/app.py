"""The composition root: the only place that wires rooms together, and the outermost ASGI callable.

Prompt routes are plain ASGI callables; everything else is routed by Starlette. The path is `scope["path"]` and nothing
rebuilt from headers: a `Host` header decides nothing.
"""

import contextlib
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from confide.attester.base import Attester
from confide.config import Config
from confide.errors import InternalError, MethodNotAllowed, NotFound, WireError
from confide.gateway.auth import Authenticator
from confide.gateway.lifecycle import Lifecycle
from confide.gateway.models import ModelTable
from confide.gateway.pipeline import ChatCompletions
from confide.gateway.routes import about, models, proof
from confide.gateway.wire import COMMON, PREFLIGHT, Message, Receive, Scope, Send, Writer, write_error
from confide.store.base import Store
from confide.telemetry.logs import Log
from confide.upstream.images import ImageFetcher, ImageLimits


class Gateway:
    """The service as one ASGI application."""

    def __init__(
        self,
        *,
        config: Config,
        attester: Attester,
        authenticator: Authenticator,
        models_served: ModelTable,
        store: Store,
        lifecycle: Lifecycle,
        log: Log,
        now: Callable[[], float],
        tls_spki_sha256: bytes | None = None,
        images: ImageFetcher | None = None,
    ) -> None:
        self.lifecycle = lifecycle
        self.models = models_served
        self._log = log
        chat = ChatCompletions(
            config=config,
            authenticator=authenticator,
            models=models_served,
            images=images or ImageFetcher(ImageLimits(remote_images=config.server.remote_images)),
            keys=attester.keys,
            store=store,
            lifecycle=lifecycle,
            log=log,
            now=now,
        )
        self._prompts = {chat.endpoint: chat}
        self._others = Starlette(
            routes=[
                *about.routes(self.readiness),
                *models.routes(models_served),
                *proof.routes(
                    attester=attester,
                    store=store,
                    models=models_served,
                    tls_spki_sha256=tls_spki_sha256,
                    now=lambda: int(now()),
                ),
            ],
            exception_handlers={WireError: self._refused, HTTPException: self._not_routed, Exception: self._fault},
        )
        self._others.router.redirect_slashes = False

    def readiness(self) -> str:
        """ready, draining or degraded: what `/health/ready` says, and no more."""
        if self.lifecycle.is_draining:
            return "draining"
        return "ready" if all(served.upstream.is_ready for served in self.models.models) else "degraded"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await refuse_other_protocols(scope, receive, send)
            return
        prompt = self._prompts.get(scope["path"])
        if scope["method"] == "OPTIONS":
            await preflight(send)
        elif prompt is None:
            await self._route(scope, receive, with_common_headers(send))
        elif scope["method"] == "POST":
            await prompt(scope, receive, send)
        else:
            await write_error(Writer(send), method_not_allowed(), ((b"allow", b"POST, OPTIONS"),))

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Whatever is no prompt. A fault is answered and recorded by `_fault`, and its text goes no further."""
        with contextlib.suppress(Exception):  # Starlette raises it again, for a server that would log it with its text
            await self._others(scope, receive, send)

    async def _refused(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, WireError)
        return await response(error)

    async def _not_routed(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == MethodNotAllowed.status:
            return await response(method_not_allowed(), dict(error.headers or {}))
        return await response(NotFound("no such route; GET /llms.txt lists those there are"))

    async def _fault(self, _: Request, error: Exception) -> Response:
        self._log.write("fault", error=type(error).__name__)
        return await response(InternalError("something went wrong on our side; it was recorded"))


def method_not_allowed() -> MethodNotAllowed:
    return MethodNotAllowed("this route does not take that method")


async def preflight(send: Send) -> None:
    """CORS, permissive (wire contract 1): a browser may ask anything, and must bring its own key."""
    writer = Writer(send)
    await writer.start(204, PREFLIGHT)
    await writer.end(b"")


async def response(error: WireError, headers: dict[str, str] | None = None) -> Response:
    """The error as a Starlette response: what `write_error` would write."""
    parts: list[Message] = []

    async def collect(message: Message) -> None:
        parts.append(message)

    await write_error(Writer(collect), error)
    fixed = {name.decode(): value.decode() for name, value in parts[0]["headers"] if (name, value) not in COMMON}
    return Response(parts[1]["body"], status_code=error.status, headers={**fixed, **(headers or {})})


def with_common_headers(send: Send) -> Send:
    """`send`, with the headers that every response carries."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *COMMON]
        await send(message)

    return sending


async def refuse_other_protocols(scope: Scope, receive: Receive, send: Send) -> None:
    """Lifespan is run by `gateway/service.py`; websockets are closed."""
    message = await receive()
    if scope["type"] == "websocket" and message["type"] == "websocket.connect":
        await send({"type": "websocket.close", "code": 1003})
