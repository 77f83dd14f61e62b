"""How Anthropic's Messages says that something went wrong (wire contract 3.5, 4)."""

from collections.abc import Mapping

import msgspec

# By status, whatever chat would call it: the official SDK has no other names.
TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


def messages_error(status: int, message: str, *, param: str | None = None, request_id: str | None = None) -> bytes:
    """The body of an error response. The envelope has no place for `param`, so the text names it where it does not yet.

    `status`: HTTP. `request_id`: what the service calls the request, None while it has no name.
    """
    if param is not None and not message.startswith(param):
        message = f"{param}: {message}"
    kind = TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
    error = {"type": kind, "message": message}
    return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})


def messages_tail(status: int, message: str, *, request_id: str | None = None) -> bytes:
    """What ends a stream that broke after its first byte. The blank line closes an event that was left half-written."""
    return b"\n\nevent: error\ndata: " + messages_error(status, message, request_id=request_id) + b"\n\n"
