"""A chat request for an engine that judges it itself: what we must know of it, and how it is handed on.

Only the model, `stream` and the members of `provider` that are ours are read (wire contract 2, 7.4). Whatever else
stands in the body, known to us or not, is between the client and the engine, and keeps its bytes.
"""

from collections.abc import Mapping

import msgspec

from confide.errors import InvalidRequest
from confide.protocol.serving import SESSION_IDS, VERIFIED
from confide.protocol.splice import Edit, Member, NamedTwice, members_of, spliced, without

CONSTRAINTS = (VERIFIED, SESSION_IDS)
PRIORITY, CACHE_SALT = "priority", "cache_salt"
OURS_MOST_BYTES = 256 * 1024  # of one constraint; 1,024 session ids have 70,000

decode_text = msgspec.json.Decoder(str).decode
decode_flag = msgspec.json.Decoder(bool | None).decode


class RelayedRequest(msgspec.Struct, frozen=True):
    """What we read of it. `members`: where everything stands in the body. `provider`: None when it has none."""

    model: str
    stream: bool
    provider: Mapping[str, object] | None
    members: dict[str, Member]


def parse_relayed(body: bytes) -> RelayedRequest:
    """The request in `body`, one JSON object that names each member once. Raises InvalidRequest, `param` the member."""
    try:
        members = members_of(body)
    except NamedTwice:
        failure = InvalidRequest("the body names a member twice; send each once")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        failure = InvalidRequest("the body must be one JSON object")
    else:
        return RelayedRequest(
            model=read_model(body, members),
            stream=read_stream(body, members),
            provider=read_provider(body, members),
            members=members,
        )
    raise failure  # outside the handler: the context of an exception is logged with it


def read_model(body: bytes, members: Mapping[str, Member]) -> str:
    member = members.get("model")
    try:
        return decode_text(member.of(body)) if member is not None else missing("model")
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    raise InvalidRequest("must be a string", param="model")


def missing(name: str) -> str:
    raise InvalidRequest("is required", param=name)


def read_stream(body: bytes, members: Mapping[str, Member]) -> bool:
    member = members.get("stream")
    try:
        return member is not None and bool(decode_flag(member.of(body)))
    except msgspec.DecodeError:
        pass
    raise InvalidRequest("must be true or false", param="stream")


def read_provider(body: bytes, members: Mapping[str, Member]) -> Mapping[str, object] | None:
    """Its members; the values of those that are not ours are left unread and stand as None."""
    provider = members.get("provider")
    if provider is None or provider.of(body) == b"null":
        return None
    raw = provider.of(body)
    try:
        inner = members_of(raw)
        return {name: read_constraint(member.of(raw)) if is_ours(name) else None for name, member in inner.items()}
    except NamedTwice:
        failure = InvalidRequest("names a member twice; send each once", param="provider")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        failure = InvalidRequest("must be an object", param="provider")
    raise failure


def is_ours(name: str) -> bool:
    return name.startswith("aci_")


def read_constraint(value: bytes) -> object:
    """The value, None for one that is too large to be any."""
    return msgspec.json.decode(value) if len(value) <= OURS_MOST_BYTES else None


def relayed_body(
    body: bytes, request: RelayedRequest, *, model: str, drop_constraints: bool, cache_salt: str | None = None
) -> bytes:
    """What is handed on: `body` itself, or with these members changed and every other byte as it came.

    `model`: the engine's name of it. `drop_constraints`: take the members of `provider` out that are ours, and
    `provider` with them when it becomes empty. `cache_salt`: takes the place of the client's, which must not choose
    whose cached prompts it shares. `priority` is taken out: it would put one tenant before others (wire contract 2.2).
    """
    members = request.members
    edits: list[Edit] = []
    gone = {PRIORITY} & members.keys()
    if model != request.model:
        edits.append(replacing(members["model"], model))
    if drop_constraints:
        kept = provider_without_ours(body, members["provider"])
        if kept is None:
            gone.add("provider")
        else:
            edits += kept
    if cache_salt is not None:
        if CACHE_SALT in members:
            edits.append(replacing(members[CACHE_SALT], cache_salt))
        else:  # before the model, which is always there
            start = members["model"].start
            edits.append(Edit(start, start, b'"cache_salt":%b,' % msgspec.json.encode(cache_salt)))
    return spliced(body, edits + without(members, gone)) if edits or gone else body


def replacing(member: Member, text: str) -> Edit:
    return Edit(member.value, member.end, msgspec.json.encode(text))


def provider_without_ours(body: bytes, provider: Member) -> list[Edit] | None:
    """The edits inside `provider`, None when nothing would be left in it."""
    inner = members_of(provider.of(body))
    if all(name in CONSTRAINTS for name in inner):
        return None
    return [Edit(edit.start + provider.value, edit.end + provider.value, b"") for edit in without(inner, CONSTRAINTS)]
