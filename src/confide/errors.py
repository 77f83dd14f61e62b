"""Every error that Confide raises on purpose, with what it says on the wire and what a person can do about it.

ConfideError
├── RequestRefused             the caller can fix it                                  4xx
│   ├── InvalidRequest         400 invalid_request_error, names `param`
│   ├── InvalidSigningAlgo     400 invalid_signing_algo
│   ├── NotAuthenticated       401 authentication_error
│   ├── CredentialRequired     401 unauthorized: a bound proof, asked for without a credential
│   ├── NotFound               404 not_found (the same bytes for "not yours")
│   ├── ModelNotFound          404 model_not_found
│   ├── MethodNotAllowed       405 invalid_request_error
│   ├── SessionNotAccepted     412 session_not_accepted: no pinned session can serve
│   ├── RequestTooLarge        413 invalid_request_error
│   ├── RefusedByUpstream      4xx as the engine answered it
│   └── LimitReached           429 rate_limit_error, with Retry-After
├── ServingFailed              ours or the engine's                                   5xx
│   ├── InternalError          500 internal_error
│   ├── UpstreamFailed         502 upstream_error
│   ├── NotReady               503 service_unavailable, with Retry-After
│   ├── UpstreamNotVerified    503 upstream_verification_failed: nothing was forwarded
│   └── UpstreamTimeout        504 timeout_error
├── VerificationError          a named check failed                                   exit 1
├── ConfigError                start refused; names what, where, accepted values      exit 2
└── CannotTell                 no network, no collateral: neither yes nor no          exit 3

Wire forms: wire contract 4. Messages never hold prompt or answer text, header values, keys, hosts or backend names.
"""

from typing import ClassVar


class ConfideError(Exception):
    """Root of the tree. `remedy` is one sentence for the person at the keyboard, or None."""

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class WireError(ConfideError):
    """An error that an HTTP client sees (wire contract 4). Raise one of its subclasses."""

    status: ClassVar[int]
    type: ClassVar[str]
    code: ClassVar[str | None] = None

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: int | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, dict[str, str | None]]:
        """The OpenAI-shaped envelope: all four members, always."""
        return {"error": {"message": self.message, "type": self.type, "code": self.code, "param": self.param}}


class RequestRefused(WireError):
    """The caller can fix it: 4xx."""


class InvalidRequest(RequestRefused):
    status, type = 400, "invalid_request_error"


class InvalidSigningAlgo(RequestRefused):
    status, type = 400, "invalid_signing_algo"


class NotAuthenticated(RequestRefused):
    status, type, code = 401, "authentication_error", "invalid_api_key"


class CredentialRequired(RequestRefused):
    status, type = 401, "unauthorized"


class NotFound(RequestRefused):
    status, type = 404, "not_found"


class ModelNotFound(RequestRefused):
    status, type, code = 404, "model_not_found", "model_not_found"


class MethodNotAllowed(RequestRefused):
    status, type = 405, "invalid_request_error"


class SessionNotAccepted(RequestRefused):
    status, type = 412, "session_not_accepted"


class RequestTooLarge(RequestRefused):
    status, type = 413, "invalid_request_error"


class RefusedByUpstream(RequestRefused):
    """The engine finds the request at fault. `raw`: its own body where that is in our shape already, or None."""

    status, type = 400, "invalid_request_error"

    def __init__(self, message: str, *, status: int, raw: bytes | None = None, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.status = status  # type: ignore[misc]  # of this one answer, not of the class
        self.raw = raw


class LimitReached(RequestRefused):
    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"


class ServingFailed(WireError):
    """Ours or the engine's fault: 5xx."""


class InternalError(ServingFailed):
    status, type = 500, "internal_error"


class UpstreamFailed(ServingFailed):
    status, type = 502, "upstream_error"


class NotReady(ServingFailed):
    status, type = 503, "service_unavailable"


class UpstreamNotVerified(ServingFailed):
    status, type = 503, "upstream_verification_failed"


class UpstreamTimeout(ServingFailed):
    status, type = 504, "timeout_error"


class VerificationError(ConfideError):
    """A named check failed. `check` is its id (tee-evidence 3.1, wire contract 9)."""

    exit_status = 1

    def __init__(self, message: str, *, check: str, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.check = check


class ConfigError(ConfideError):
    """Start refused: a setting, a port, the state directory, a disk. Says what was found, expected, and what to do."""

    exit_status = 2


class CannotTell(ConfideError):
    """No network or no collateral: neither yes nor no."""

    exit_status = 3
