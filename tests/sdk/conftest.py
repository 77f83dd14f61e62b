"""The real program and the official SDK pointed at it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI, OpenAI

from running import Running, home_with_weights, running
from sdk.builders import CONFIG


@pytest.fixture(scope="session")
def service(engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One service for all tests of this directory."""
    home = home_with_weights(tmp_path_factory.mktemp("sdk"), engine_home)
    with running(home, config=CONFIG) as started:
        yield started


@pytest.fixture
def client(service: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=service.url + "/v1", api_key="any", max_retries=0, timeout=60) as opened:
        yield opened


@pytest.fixture
async def async_client(service: Running) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=service.url + "/v1", api_key="any", max_retries=0, timeout=60) as opened:
        yield opened
