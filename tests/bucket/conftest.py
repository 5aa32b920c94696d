"""One S3 server for all tests of the bucket, and a prefix, a store and the events of each test's own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from metrics.events import Event
from proxy.bucket.objects import Bucket, open_bucket
from proxy.store.store import Store
from tests.support.bucket import BucketServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketServer]:
    with BucketServer(tmp_path_factory.mktemp("bucket")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def url(server: BucketServer) -> str:
    return server.url(f"{secrets.token_hex(8)}/below")


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
async def bucket(url: str, events: list[Event]) -> AsyncIterator[Bucket]:
    async with open_bucket(url, events.append) as bucket:
        yield bucket


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = await Store.open(tmp_path / "data")
    yield store
    await store.close()
