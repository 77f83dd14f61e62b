"""docs/threat-model.md names tests that exist, and forgets none of the attacks that we own."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
PAGE = (REPOSITORY / "docs" / "threat-model.md").read_text()
NAMED = set(re.findall(r"\btests/[\w/]+\.py\b", PAGE))


def test_every_test_that_the_page_names_exists() -> None:
    assert NAMED
    assert [name for name in sorted(NAMED) if not (REPOSITORY / name).is_file()] == []


def test_every_attack_that_we_own_is_on_the_page() -> None:
    attacks = {path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("tests/adversary/test_*.py")}
    assert sorted(attacks - NAMED) == []


def test_every_threat_has_a_test_or_says_why_not() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and line.count(" | ") == 3]
    threats = [row for row in rows if not row.startswith(("| threat", "| ---", "| key", "| receipts", "| API"))]
    assert len(threats) >= 30
    for row in threats:
        assert "tests/" in row or "planned" in row or "not answered" in row, row
