"""Serving constraints: what a caller asks of the serving itself, in `provider` (wire contract 7.4).

They are for this service and no other: `forwarded_body` takes them out of what is handed to inference.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from confide.errors import InvalidRequest
from confide.protocol.canonical import BARE_DIGEST

VERIFIED, SESSION_IDS = "aci_verified", "aci_session_ids"
MAX_SESSION_IDS = 1024
ESCAPED_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
OURS = re.compile(r"aci_[a-z_]{1,32}")


class Constraints(msgspec.Struct, frozen=True):
    """`required`: serve through a verified session only. `session_ids`: and only through one of these; () for any.

    `stated`: one of the two members was there, whatever it said; it is then to be taken out before forwarding.
    """

    required: bool = False
    session_ids: tuple[str, ...] = ()
    stated: bool = False


UNCONSTRAINED = Constraints()


def parse_constraints(provider: Mapping[str, object] | None) -> Constraints:
    """The constraints in `provider`; its other members are not ours to judge. Raises InvalidRequest naming the member.

    An unknown `aci_` member is refused, never ignored: its sender relies on it.
    """
    if not provider:
        return UNCONSTRAINED
    for member in provider:
        if member.startswith("aci_") and member not in (VERIFIED, SESSION_IDS):
            # A name that is none of the contract's kind is the caller's own text and is not repeated.
            named = f"provider.{member}" if OURS.fullmatch(member) else "provider"
            raise InvalidRequest("no such serving constraint; leave it out", param=named)
    verified = provider.get(VERIFIED, False)
    if not isinstance(verified, bool):
        raise InvalidRequest("must be true or false", param=f"provider.{VERIFIED}")
    if SESSION_IDS not in provider:
        return Constraints(verified, stated=VERIFIED in provider)
    ids = provider[SESSION_IDS]
    if not isinstance(ids, list) or not 0 < len(ids) <= MAX_SESSION_IDS or not all(map(is_session_id, ids)):
        raise InvalidRequest(
            f"must be an array of 1 to {MAX_SESSION_IDS} session ids, 64 lower-case hex digits each",
            param=f"provider.{SESSION_IDS}",
        )
    if provider.get(VERIFIED) is False:
        raise InvalidRequest(
            f"must not be false together with {SESSION_IDS}, which imply it", param=f"provider.{VERIFIED}"
        )
    return Constraints(True, tuple(dict.fromkeys(ids)), stated=True)


def is_session_id(value: object) -> bool:
    return isinstance(value, str) and BARE_DIGEST.fullmatch(value) is not None


def forwarded_body(
    body: bytes, *, drop_constraints: bool, drop_empty_tool_calls: bool, messages: bytes | None = None
) -> bytes:
    """What is handed to inference: `body` itself, or compact JSON without what was consumed (wire contract 7.6, 2.3).

    `body`: a chat request that was accepted. `messages`: JSON that takes the place of its messages, where images in
    them were fetched. Members keep their order, and numbers the digits that they came in.
    """
    if not drop_constraints and not drop_empty_tool_calls and messages is None:
        return body
    members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    if drop_constraints:
        provider = msgspec.json.decode(members["provider"], type=dict[str, msgspec.Raw])
        rest = {name: value for name, value in provider.items() if name not in (VERIFIED, SESSION_IDS)}
        if rest:
            members["provider"] = msgspec.Raw(msgspec.json.encode(rest))
        else:
            del members["provider"]
    if messages is not None:
        members["messages"] = msgspec.Raw(messages)
    if drop_empty_tool_calls:
        given = msgspec.json.decode(members["messages"], type=list[dict[str, msgspec.Raw]])
        members["messages"] = msgspec.Raw(msgspec.json.encode([without_empty_calls(each) for each in given]))
    return compact(msgspec.json.encode(members))


def compact(document: bytes) -> bytes:
    """The document without white space between its tokens, texts escaped no more than needed (wire contract 0.2.7).

    `document`: JSON that was decoded before. Numbers are not read: another program might write them in other digits.
    """
    dense = msgspec.json.format(document, indent=-1)
    return ESCAPED_TEXT.sub(plainer, dense) if b"\\" in dense else dense


def plainer(text: re.Match[bytes]) -> bytes:
    """A JSON text as shortly escaped as it can be."""
    return msgspec.json.encode(msgspec.json.decode(text[0], type=str))


def without_empty_calls(message: dict[str, msgspec.Raw]) -> dict[str, Any]:
    """The message without `"tool_calls": []`."""
    calls = message.get("tool_calls")
    if calls is not None and msgspec.json.decode(calls) == []:
        return {name: value for name, value in message.items() if name != "tool_calls"}
    return message
