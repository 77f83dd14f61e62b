"""Fixtures that more than one room's tests share."""

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvloop

from confide.engine import catalogue, pull
from confide.errors import CannotTell
from javascript import INSTALLED, NODE
from weights_server import WeightsServer, serving

REPOSITORY = Path(__file__).parent.parent

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
ONE_LOOP: Mapping[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
BOTH_LOOPS: Mapping[str, LoopFactory] = {**ONE_LOOP, "uvloop": uvloop.new_event_loop}


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, LoopFactory]:
    """What the loop of a test is made by; where there are two, the test runs twice."""
    return ONE_LOOP if item.get_closest_marker("both_loops") is None else BOTH_LOOPS


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """`both_loops(long=LOOP)`: on that loop in the long run alone."""
    for item in items:
        both = item.get_closest_marker("both_loops")
        if both is not None and both.kwargs.get("long") in item.name.partition("[")[2].rstrip("]").split("-"):
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def engine_home() -> Path:
    """A state directory with the pinned models installed and checked; fetched once, kept between runs.

    CONFIDE_TEST_HOME, or `.cache/confide-test-home` in the repository. Tests read from it and change nothing.
    """
    home = Path(os.environ.get("CONFIDE_TEST_HOME") or REPOSITORY / ".cache" / "confide-test-home")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / ".gitignore").write_text("*\n")
    try:
        for weights in catalogue.PINNED:
            pull.install(home, weights)
    except CannotTell as error:
        if os.environ.get("CI"):
            raise  # a run that is to decide may not pass on tests that it left out
        pytest.skip(f"the weights are not here and cannot be fetched: {error}")
    return home


@pytest.fixture(scope="session")
def node() -> Path:
    """Node, with the JavaScript SDKs beside the tests that use them."""
    if not (NODE.exists() and INSTALLED.exists()):
        reason = "Node and the JavaScript SDKs are not installed: `make js` does that"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return NODE


@pytest.fixture
def start_server() -> Iterator[Callable[[], WeightsServer]]:
    """Start HTTP servers that hold weights; they stop with the test."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(serving())


@pytest.fixture
def weights_server(start_server: Callable[[], WeightsServer]) -> WeightsServer:
    return start_server()
