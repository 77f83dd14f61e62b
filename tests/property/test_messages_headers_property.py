"""Whatever headers come, what goes on is two headers of a known form at most, and never the client's credential."""

import re

from hypothesis import given
from hypothesis import strategies as st

from confide.protocol.messages_headers import BETA, BETA_MOST_BYTES, CURRENT, VERSION, messages_headers

DATE = re.compile(rb"\d{4}-\d{2}-\d{2}")
NAMES = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]*(,[A-Za-z0-9][A-Za-z0-9._-]*)*")

names = st.sampled_from([VERSION, BETA, b"Anthropic-Beta", b"authorization", b"x-api-key", b"host", b"x-other"])
words = st.from_regex(rb"[a-z0-9-]{1,20}", fullmatch=True)
lists = st.lists(words, max_size=4).map(b", ".join)
dates = st.from_regex(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}", fullmatch=True)
anything = st.lists(st.tuples(names, st.binary(max_size=40) | words | lists | dates), max_size=8)

betas = st.from_regex(rb"[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,8}){0,3}", fullmatch=True)
spaces = st.text(" \t", max_size=2).map(str.encode)


@given(anything)
def test_only_well_formed_values_go_on(headers: list[tuple[bytes, bytes]]) -> None:
    (version, date), *rest = messages_headers(headers)
    assert version == VERSION
    assert DATE.fullmatch(date)
    assert [name for name, _ in rest] in ([], [BETA])
    for _, value in rest:
        assert NAMES.fullmatch(value)
        assert len(value) <= BETA_MOST_BYTES


@given(anything)
def test_what_goes_on_had_come(headers: list[tuple[bytes, bytes]]) -> None:
    (_, date), *rest = messages_headers(headers)
    assert date == CURRENT[1] or (VERSION, date) in [(name, value.strip()) for name, value in headers]
    came = b",".join(value for name, value in headers if name.lower() == BETA)
    for _, value in rest:
        assert value == b",".join(name.strip(b" \t") for name in came.split(b","))


@given(st.lists(betas, min_size=1, max_size=8), st.data())
def test_betas_arrive_however_they_are_spread_over_headers(named: list[bytes], data: st.DataObject) -> None:
    spread: list[list[bytes]] = [[]]
    for name in named:
        begins: bool = data.draw(st.booleans())
        if begins and spread[-1]:
            spread.append([])
        spread[-1].append(data.draw(spaces) + name + data.draw(spaces))
    headers = [(data.draw(st.sampled_from([BETA, b"Anthropic-Beta"])), b",".join(part)) for part in spread]
    assert messages_headers(headers) == (CURRENT, (BETA, b",".join(named)))


@given(
    st.lists(betas, max_size=3), st.lists(betas, max_size=3), st.from_regex(rb"[A-Za-z0-9._-]{8,60}", fullmatch=True)
)
def test_a_credential_never_goes_on(before: list[bytes], after: list[bytes], secret: bytes) -> None:
    for name, value in ((b"authorization", b"Bearer " + secret), (b"X-Api-Key", secret), (b"authorization", secret)):
        for hidden in (secret, b"x" + secret, b"x" + secret[:4] + secret[4:] + b"y"):
            headers = [(name, value), (BETA, b",".join([*before, hidden, *after]))]
            assert all(secret not in passed for _, passed in messages_headers(headers))


def test_betas_are_bounded_together() -> None:
    longest = [b"a" * 64, *[b"a" * 63] * 15]
    at_most, over = b",".join(longest), b",".join([*longest[1:], b"a" * 64, b"a"])
    assert len(at_most) == BETA_MOST_BYTES
    assert messages_headers([(BETA, at_most)]) == (CURRENT, (BETA, at_most))
    assert messages_headers([(BETA, over)]) == (CURRENT,)
    assert messages_headers([(BETA, b"a" * 65)]) == (CURRENT,)
