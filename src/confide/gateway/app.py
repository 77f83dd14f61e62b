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
from starlette.types import ASGIApp

from confide.attester.base import Attester
from confide.attester.nvidia import GpuCollector
from confide.config import Config
from confide.errors import InternalError, MethodNotAllowed, NotFound, WireError
from confide.gateway.auth import Authenticator
from confide.gateway.keysets import Archive, CurrentKeyset, Reports, epochs_of
from confide.gateway.lifecycle import Lifecycle
from confide.gateway.models import ModelTable
from confide.gateway.pipeline import PromptRoute
from confide.gateway.routes import about, aci, models, proof, reference
from confide.gateway.routes.count_tokens import CountRoute
from confide.gateway.surfaces.base import Surface
from confide.gateway.surfaces.chat import ChatCompletions
from confide.gateway.surfaces.completions import Completions
from confide.gateway.surfaces.embeddings import Embeddings
from confide.gateway.surfaces.messages import Messages
from confide.gateway.surfaces.responses import Responses
from confide.gateway.wire import (
    PREFLIGHT,
    Header,
    Message,
    Receive,
    Scope,
    Send,
    Writer,
    error_body,
    error_headers,
    write_error,
)
from confide.protocol.report import SourceProvenance
from confide.store.base import Store
from confide.telemetry.logs import Log
from confide.upstream.sessions import AttestedSession
from confide.upstream.verified import SessionUpstream


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
        provenance: SourceProvenance | None = None,
        gpu: GpuCollector | None = None,
    ) -> None:
        self.lifecycle = lifecycle
        self.models = models_served
        self.keyset = CurrentKeyset(epochs_of(config, attester), now)
        reports = Reports(attester, self.keyset, provenance or SourceProvenance(), now, gpu=gpu, serving=config.serving)
        self.archive = Archive(reports, self.keyset, store, kept_s=config.store.receipt_ttl_s, now=now, log=log)
        self._log = log
        messages = Messages()
        surfaces: tuple[Surface, ...] = (ChatCompletions(), Completions(), Embeddings(), Responses(), messages)
        self._prompts: dict[str, ASGIApp] = {
            surface.endpoint: PromptRoute(
                surface,
                config=config,
                authenticator=authenticator,
                models=models_served,
                keys=attester.keys,
                keyset=self.keyset,
                store=store,
                lifecycle=lifecycle,
                log=log,
                now=now,
            )
            for surface in surfaces
        }
        count = CountRoute(
            messages,
            config=config,
            authenticator=authenticator,
            models=models_served,
            keyset=self.keyset,
            lifecycle=lifecycle,
            log=log,
            now=now,
        )
        self._prompts[count.endpoint] = count
        self._others = Starlette(
            routes=[
                *about.routes(self.readiness, self.keyset),
                *reference.routes(),
                *models.routes(models_served, app_id=attester.app_id),
                *aci.routes(
                    attester=attester,
                    current=self.keyset,
                    reports=reports,
                    store=store,
                    sessions=lambda name, model: current_sessions(models_served, name, model),
                    now=lambda: int(now()),
                ),
                *proof.routes(
                    attester=attester,
                    store=store,
                    models=models_served,
                    tls_spki_sha256=tls_spki_sha256,
                    gpu=gpu,
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
        return "ready" if all(served.is_ready for served in self.models.models) else "degraded"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await refuse_other_protocols(scope, receive, send)
            return
        prompt = self._prompts.get(scope["path"])
        if scope["method"] == "OPTIONS":
            await preflight(send, self.keyset.headers())
        elif prompt is None:
            await self._route(scope, receive, with_headers(send, self.keyset.headers()))
        elif scope["method"] == "POST":
            await prompt(scope, receive, send)
        else:
            writer = Writer(send, self.keyset.headers())
            await write_error(writer, method_not_allowed(), ((b"allow", b"POST, OPTIONS"),))

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Whatever is no prompt. A fault is answered and recorded by `_fault`, and its text goes no further."""
        with contextlib.suppress(Exception):  # Starlette raises it again, for a server that would log it with its text
            await self._others(scope, receive, send)

    async def _refused(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, WireError)
        return response(error)

    async def _not_routed(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == MethodNotAllowed.status:
            return response(method_not_allowed(), dict(error.headers or {}))
        return response(NotFound("no such route; GET /llms.txt lists those there are"))

    async def _fault(self, _: Request, error: Exception) -> Response:
        self._log.write("fault", error=type(error).__name__)
        return response(InternalError("something went wrong on our side; it was recorded"))


def current_sessions(models: ModelTable, upstream_name: str | None, model: str | None) -> list[AttestedSession]:
    """The sessions that prompts may be sent in now, newest first: of one upstream, for one model, or of all."""
    served = models.models if model is None else filter(None, [models.get(model)])
    upstreams = {id(each.upstream): each.upstream for one in served for each in one.route.candidates}
    found = [each.session for each in upstreams.values() if isinstance(each, SessionUpstream) and each.session]
    named = [each for each in found if upstream_name in (None, each.upstream_name)]
    return sorted(named, key=lambda each: -each.established_at)


def method_not_allowed() -> MethodNotAllowed:
    return MethodNotAllowed("this route does not take that method")


async def preflight(send: Send, common: tuple[Header, ...]) -> None:
    """CORS, permissive (wire contract 1): a browser may ask anything, and must bring its own key."""
    writer = Writer(send, common)
    await writer.start(204, PREFLIGHT)
    await writer.end(b"")


def response(error: WireError, headers: dict[str, str] | None = None) -> Response:
    """The error as a Starlette response: what `write_error` would write."""
    body = error_body(error)
    fixed = {name.decode(): value.decode() for name, value in error_headers(error, body)}
    return Response(body, status_code=error.status, headers={**fixed, **(headers or {})})


def with_headers(send: Send, common: tuple[Header, ...]) -> Send:
    """`send`, with the headers that every response carries."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *common]
        await send(message)

    return sending


async def refuse_other_protocols(scope: Scope, receive: Receive, send: Send) -> None:
    """What lifespan is for, `gateway/service.py` does; websockets are closed."""
    message = await receive()
    if scope["type"] == "websocket" and message["type"] == "websocket.connect":
        await send({"type": "websocket.close", "code": 1003})
