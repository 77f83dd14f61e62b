"""What most attackers attack: an honest service over plain HTTP, which a test alters on its way to the client."""

from collections.abc import Iterator

import pytest

from attested_service import AttestedService, serving


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttestedService]:
    """One for all tests of a file."""
    with serving(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture
def service(running: AttestedService) -> Iterator[AttestedService]:
    """The same, unaltered whatever the test before did to `alter`."""
    yield running
    running.alter = {}
