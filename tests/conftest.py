"""What every test shares: the event loop that Ray gives its actors, and one running server."""

import asyncio
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop

from tests.e2e.live_server import LiveServer
from tests.e2e.live_server import live_server as run_live_server


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Async tests run on uvloop."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def live_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The demo model with two replicas, served by the real command: the session's one Ray."""
    with run_live_server(tmp_path_factory.mktemp("serve") / "serve.log") as server:
        yield server
