"""One Redis for the tests of the fleet's parts; a node that answers, and one that asks it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.fleet.nodes import Asker, Node, a_node, an_asker
from tests.support.redis import RedisServer


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that all these tests share: nobody pauses or ends it."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of the shared Redis, which is empty now."""
    with contextlib.closing(redis_server.client()) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Node, Asker]]:
    async with a_node() as node, an_asker() as asker:
        yield node, asker
