"""The cache is a Source over Sources, and the server turns any Source into HTTP that a Source can read again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from metrics.events import ignore
from proxy.cache.readthrough import ReadThrough, open_cache
from proxy.memory import MemorySource
from proxy.source import Source
from proxy.store.store import Store
from tests.source_suite import Contents, SourceSuite
from tests.support.over_http import over_http

HUB = "docker.io"


class _OverMemory(SourceSuite):
    @pytest.fixture
    def memory(self, contents: Contents) -> MemorySource:
        return contents.load(MemorySource("memory", anonymous=True))

    @pytest.fixture
    def opened(self, memory: MemorySource) -> Callable[[], int]:
        return lambda: memory.opened

    @pytest.fixture
    async def cache(self, memory: MemorySource, tmp_path: Path) -> AsyncIterator[ReadThrough]:
        store = await Store.open(tmp_path / "data")
        try:
            async with open_cache(store, {HUB: [memory]}, emit=ignore) as cache:
                yield cache
        finally:
            await store.close()


class TestCache(_OverMemory):
    @pytest.fixture
    def source(self, cache: ReadThrough) -> Source:
        return cache


class _OverHttp(_OverMemory):
    @pytest.fixture
    async def source(self, served: Source) -> AsyncIterator[Source]:
        async with over_http(served, HUB) as source:
            yield source


class TestServedCache(_OverHttp):
    @pytest.fixture
    def served(self, cache: ReadThrough) -> Source:
        return cache


class TestServedMemory(_OverHttp):
    @pytest.fixture
    def served(self, memory: MemorySource) -> Source:
        return memory
