"""An open catalog and an open store for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.store.catalog import Catalog
from proxy.store.disk import Disk
from proxy.store.store import Store


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    catalog = await Catalog.open(tmp_path / "catalog.sqlite", Disk())
    yield catalog
    await catalog.aclose()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
async def store(root: Path) -> AsyncIterator[Store]:
    store = await Store.open(root)
    yield store
    await store.close()
