"""Pauses outlive a restart, windows open and close by the clock, and both wake those who wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from proxy.store.catalog import Catalog
from proxy.store.disk import Disk
from sync.holding import Holding

SOON = 30.0
MIDNIGHT = 1_700_006_400.0
"""Of a day in UTC."""


class Window(NamedTuple):
    begin: int
    end: int
    zone: str = "UTC"


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    opened = await Catalog.open(tmp_path / "catalog.sqlite", Disk())
    yield opened
    await opened.aclose()


async def test_a_pause_holds_one_peer_and_is_still_there_after_a_restart(catalog: Catalog) -> None:
    holding = await Holding.load(catalog, {"a": (), "b": ()})
    assert holding.held("a") is None
    await holding.pause("a")
    again = await Holding.load(catalog, {"a": (), "b": ()})
    assert "entrepot sync resume a" in (again.held("a") or "")
    assert again.held("b") is None
    await again.resume("a")
    assert (await Holding.load(catalog, {"a": ()})).held("a") is None


async def test_a_pause_and_a_resume_wake_whoever_waits(catalog: Catalog) -> None:
    holding = await Holding.load(catalog, {"a": ()})
    for change in (holding.pause, holding.resume):
        waiting = asyncio.create_task(holding.changed())
        await asyncio.sleep(0)
        await change("a")
        async with asyncio.timeout(SOON):
            await waiting


async def test_a_peer_is_held_outside_its_window_and_told_when_it_opens(catalog: Catalog) -> None:
    now = MIDNIGHT
    holding = await Holding.load(catalog, {"a": (Window(120, 300),), "b": ()}, lambda: now)
    assert holding.held("a") == "outside its window, which opens in 2 h 0 min"
    assert holding.held("b") is None
    now += 2 * 3600
    assert holding.held("a") is None
    now += 3 * 3600
    assert holding.held("a") == "outside its window, which opens in 21 h 0 min"


async def test_the_edge_of_a_window_wakes_whoever_waits(catalog: Catalog) -> None:
    holding = await Holding.load(catalog, {"a": (Window(120, 300),)}, lambda: MIDNIGHT + 7200 - 0.05)
    async with asyncio.timeout(SOON):
        await holding.changed()
