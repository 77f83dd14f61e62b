"""Where an object ends, in whatever pieces its text comes."""

import pytest

from confide.protocol.json_object import JsonObject


@pytest.mark.parametrize(
    ("pieces", "ends"),
    [
        (["{}"], [2]),
        (["{", "}x"], [None, 1]),
        (['{"a', "\\", '"}', '"', ":[1]}", "x"], [None, None, None, None, 5]),
        (['{"}"'], [None]),
        (['{"\\\\"', ':{"b":[{}]', "}}}"], [None, None, 2]),
    ],
)
def test_an_object_ends_at_its_own_last_brace(pieces: list[str], ends: list[int | None]) -> None:
    found = JsonObject()
    assert [found.end_in(piece) for piece, _ in zip(pieces, ends, strict=False)] == ends
