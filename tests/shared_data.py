"""Test data of third parties, and vectors: beside the checkout, or nowhere, and then the tests that need it skip."""

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "shared" / "data"
TEE, VECTORS = DATA / "tee", DATA / "vectors"


def vectors(name: str) -> dict[str, Any]:
    """A document of vectors; empty where it is not here."""
    path = VECTORS / name
    document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return document
