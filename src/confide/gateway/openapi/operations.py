"""What one route takes and answers, as data; `document` makes OpenAPI of it."""

from enum import Enum
from typing import NamedTuple

from confide.errors import (
    CredentialRequired,
    InternalError,
    InvalidRequest,
    InvalidSigningAlgo,
    LimitReached,
    ModelNotFound,
    NotAuthenticated,
    NotFound,
    NotReady,
    RequestTooLarge,
    SessionNotAccepted,
    UpstreamFailed,
    UpstreamNotVerified,
    UpstreamTimeout,
    WireError,
)
from confide.gateway.openapi.members import Table
from confide.gateway.openapi.schemas import Schema

JSON = "application/json"
EVENT_STREAM = "text/event-stream"


class Access(Enum):
    """Who is answered. BOUND: whoever made the request that is asked about, as that request said who it was."""

    OPEN = "open"
    KEY = "key"
    BOUND = "bound"


class Parameter(NamedTuple):
    """In the query, or in the path."""

    name: str
    schema: Schema
    description: str
    place: str = "query"
    example: str | None = None


class Answer(NamedTuple):
    """One kind of content of a 200. `what`: a type, Either, or a schema; of a stream, what its events hold.

    `is_named`: each event of a stream says its type in an `event:` line; else the last one is `[DONE]`.
    """

    media: str
    what: object
    is_named: bool = False


class Operation(NamedTuple):
    """One method of one path. `namespace`: of the schemas of its body and answers. `headers`: of a 200, by name."""

    method: str
    path: str
    id: str
    tag: str
    summary: str
    description: str
    answers: tuple[Answer, ...]
    access: Access = Access.OPEN
    namespace: str = "proof"
    parameters: tuple[Parameter, ...] = ()
    body: Table | None = None
    examples: dict[str, dict[str, object]] = {}  # noqa: RUF012 - never changed
    errors: tuple[type[WireError], ...] = (InternalError,)
    error_shape: str = "openai"
    headers: tuple[str, ...] = ()
    not_ready: bool = False  # a 503 of its own, with the same body as the 200


PROMPT_ERRORS: tuple[type[WireError], ...] = (
    InvalidRequest,
    NotAuthenticated,
    ModelNotFound,
    SessionNotAccepted,
    RequestTooLarge,
    LimitReached,
    InternalError,
    UpstreamFailed,
    NotReady,
    UpstreamNotVerified,
    UpstreamTimeout,
)

# When each is told. RefusedByUpstream, an upstream's own words, has its statuses from `kinds/refusals.py`.
WHEN: dict[type[WireError], str] = {
    InvalidRequest: "A member or a parameter is missing, of another kind, out of range or not supported; see `param`.",
    InvalidSigningAlgo: "`signing_algo` is neither `ecdsa` nor `ed25519`.",
    NotAuthenticated: "There is no key, or it is not valid.",
    CredentialRequired: "What was asked about was asked with a key, and none came.",
    NotFound: "There is no such thing, it is kept no longer, or it is another's.",
    ModelNotFound: "There is no such model.",
    SessionNotAccepted: "No attested session that can serve now is one of those pinned; nothing was forwarded.",
    RequestTooLarge: "The body is larger than this service takes.",
    LimitReached: "Too much is being asked; `Retry-After` says when to come again.",
    InternalError: "Our fault.",
    UpstreamFailed: "The model failed while it answered.",
    NotReady: "The model is loading, or the service is shutting down.",
    UpstreamNotVerified: "No upstream could be verified; nothing was forwarded.",
    UpstreamTimeout: "The model did not answer in time.",
}
