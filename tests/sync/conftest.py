"""Regions without sockets, closed when a test ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.sync.regional import Make, Region, region


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        async def made(name: str) -> Region:
            opened = await region(tmp_path, name)
            stack.push_async_callback(opened.catalog.aclose)
            return opened

        yield made
