"""The headers of a Messages request that mean something to whoever speaks Messages itself (wire contract 3.5).

Two of the client's may go on to an upstream, `anthropic-version` and `anthropic-beta`, and both are written anew from
what was read: a date, and names of betas. Nothing that is not of that form goes on, so neither can end a header, begin
another, or be as long as it likes. What the client proves itself by is for this service: a beta that holds it is none.
"""

import re
from collections.abc import Iterable, Sequence

Headers = tuple[tuple[bytes, bytes], ...]

VERSION, BETA = b"anthropic-version", b"anthropic-beta"
CURRENT = (VERSION, b"2023-06-01")
BETA_MOST_BYTES = 1024  # all of the official SDK's betas at once would be more, and no request is in that many
SECRET_LEAST_BYTES = 8  # a shorter credential is none, and is part of any word

DATE = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}")
BETA_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def messages_headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """What an upstream that speaks Messages is sent of a request's headers: always a version, and betas if there are.

    `headers`: all of the request's, names in any case. A version that is no date, or is there more than once, gives way
    to the current one; of betas among which one is ill-formed none is passed on.
    """
    versions: list[bytes] = []
    betas: list[bytes] = []
    secrets: list[bytes] = []
    for name, value in headers:
        match name.lower():
            case b"anthropic-version":
                versions.append(value.strip(b" \t"))
            case b"anthropic-beta":
                betas.append(value)
            case b"authorization":
                secrets += value.split(None, 1)[-1:]
            case b"x-api-key":
                secrets.append(value)
    passed = (VERSION, versions[0]) if len(versions) == 1 and DATE.fullmatch(versions[0]) else CURRENT
    named = beta_names(betas)
    if not named or holds_any(named, [secret.strip() for secret in secrets]):
        return (passed,)
    return (passed, (BETA, b",".join(named)))


def beta_names(values: Iterable[bytes]) -> Sequence[bytes]:
    """The names in all values of `anthropic-beta`; none where one of them is no name, or all are too long together."""
    joined = b",".join(values)
    names = [name.strip(b" \t") for name in joined.split(b",")] if len(joined) <= BETA_MOST_BYTES else []
    return names if all(map(BETA_NAME.fullmatch, names)) else ()


def holds_any(names: Sequence[bytes], secrets: Iterable[bytes]) -> bool:
    """Whether names of betas hold a credential of the same request."""
    joined = b",".join(names)
    return any(
        secret in names or (len(secret) >= SECRET_LEAST_BYTES and secret in joined) for secret in secrets if secret
    )
