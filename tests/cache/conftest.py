"""A fake upstream and a mirror over it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cache.lab import HUB, Lab, laboratory
from tests.support.fake_upstream import FakeUpstream


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


@pytest.fixture
async def lab(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[Lab]:
    async with laboratory(tmp_path / "data", {HUB: [upstream]}) as running:
        yield running
