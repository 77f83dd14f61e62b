"""How a request ends that has no answer: what its client is told, whether a receipt is due, and the line in the log.

What is known of the request is in its Passage; nothing here writes to a client.
"""

from confide.errors import (
    InternalError,
    LimitReached,
    NotReady,
    RequestRefused,
    SessionNotAccepted,
    UpstreamNotVerified,
    WireError,
)
from confide.gateway.lifecycle import Stop, shutting_down
from confide.gateway.outgoing import Outgoing
from confide.gateway.passage import Passage
from confide.gateway.wire import ClientGone
from confide.protocol.receipt import Outcome, UpstreamEvent, not_verified_event
from confide.telemetry.logs import Log
from confide.upstream.base import Prompt, Unserved
from confide.upstream.router import Route

NOT_ACCEPTED = (UpstreamNotVerified, SessionNotAccepted)


def why_stopped(passage: Passage) -> ClientGone | NotReady | None:
    """Call on a CancelledError: what to raise in its place; None when it was not us who stopped the request."""
    match passage.entry.take_back():
        case Stop.CLIENT_GONE:
            return ClientGone()
        case Stop.CLIENT_STALLED:
            passage.reason = "client_stalled"
            return ClientGone()
        case Stop.DRAIN:
            passage.reason = "drain"
            return shutting_down()
    return None


def in_our_terms(error: Exception, log: Log) -> WireError:
    """What the client is told of `error`. Of the unknown the log gets the type: its text may hold anything."""
    if isinstance(error, WireError):
        return error
    log.write("fault", error=type(error).__name__)
    return InternalError("something went wrong on our side; it was recorded")


def outcome_of(error: WireError, passage: Passage) -> Outcome:
    """A request that was turned away is refused; one that inference was to answer, or that we broke, failed."""
    is_before = isinstance(error, NotReady | UpstreamNotVerified) and not passage.is_forwarded
    turned_away = isinstance(error, RequestRefused) or is_before
    return "refused" if turned_away else "failed"


def is_receipt_due(error: WireError, passage: Passage) -> bool:
    """Not for a request that broke a rule, nor for one that was never understood. Once inference had it, always: that a
    prompt is too long for the model shows only there (wire contract 7.6, backend errors).
    """
    is_rule_broken = isinstance(error, RequestRefused) and not isinstance(error, SessionNotAccepted | LimitReached)
    is_served = passage.is_forwarded or not is_rule_broken
    return passage.receipt_id is not None and is_served and passage.reason != "store"


def none_verified(prompt: Prompt) -> UpstreamEvent:
    """What the receipt says where there was no upstream to ask."""
    required = prompt.is_verification_required
    return not_verified_event(None, prompt.head.model, required=required, reason="no upstream was available")


def told(failures: list[Unserved], route: Route) -> WireError:
    """What the client is told when no upstream served: of the last that was given the prompt, if one was.

    That nothing was forwarded can be said only where that is so.
    """
    if not failures:
        return route.none_available()
    asked = [failure.error for failure in failures if not isinstance(failure.error, NOT_ACCEPTED)]
    unpinned = [failure.error for failure in failures if isinstance(failure.error, SessionNotAccepted)]
    return (asked or unpinned or [failures[-1].error])[-1]


def write_line(log: Log, endpoint: str, writer: Outgoing, passage: Passage, *, ended: float) -> None:
    """The one line of a request. `ended`: Unix seconds."""
    log.write(
        "request",
        endpoint=endpoint,
        outcome=passage.outcome,
        reason=passage.reason,
        receipt=passage.receipt_id if passage.has_proof else None,
        status=writer.status or None,
        id=passage.own_id,
        model=passage.model_id,
        key_id=passage.principal.key_id if passage.principal else None,
        stream=passage.stream,
        ms=round((ended - passage.began) * 1000, 1),
        prompt_tokens=passage.tally.prompt_tokens,
        completion_tokens=passage.tally.completion_tokens,
    )
