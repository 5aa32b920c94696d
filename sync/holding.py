"""When nothing may be fetched from a peer: while it is paused, and outside its windows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Self

from proxy.cache.progress import Signal
from proxy.regions.windows import Span, opens
from proxy.store.catalog import Catalog
from sync.pausing import read_paused, write_paused

LOOK_SECONDS = 300.0
"""A clock that was set is noticed within that time."""

Clock = Callable[[], float]


class Holding:
    """Make it with `load`. windows: of each peer, none for one that may be asked at any time.

    State: who is paused, which the catalog has too, and those who wait for it to change.
    """

    def __init__(
        self,
        catalog: Catalog,
        windows: Mapping[str, Sequence[Span]],
        paused: set[str],
        clock: Clock = time.time,
    ) -> None:
        self._catalog = catalog
        self._windows = windows
        self._paused = paused
        self._clock = clock
        self._signal = Signal()

    @classmethod
    async def load(cls, catalog: Catalog, windows: Mapping[str, Sequence[Span]], clock: Clock = time.time) -> Self:
        """Read who is paused. Raises CatalogError."""
        return cls(catalog, windows, await catalog.read(read_paused), clock)

    def held(self, peer: str) -> str | None:
        """Return why nothing may be fetched from `peer` now; None when it may."""
        if peer in self._paused:
            return f"paused: `entrepot sync resume {peer}` goes on"
        windows = self._windows.get(peer, ())
        if not windows:
            return None
        opened, seconds = opens(windows, self._clock())
        return None if opened else f"outside its window, which opens in {_duration(seconds)}"

    async def changed(self) -> None:
        """Return when a peer may be held or free that was not: take what `held` says, then wait."""
        now = self._clock()
        edges = [opens(windows, now)[1] for windows in self._windows.values() if windows]
        if not edges:
            await self._signal.wait()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(LOOK_SECONDS, *edges))):
                await self._signal.wait()

    async def pause(self, peer: str) -> None:
        """Fetch nothing from `peer` until it is resumed. Raises CatalogError."""
        await self._write(peer, paused=True)

    async def resume(self, peer: str) -> None:
        """Fetch again. Raises CatalogError."""
        await self._write(peer, paused=False)

    async def _write(self, peer: str, *, paused: bool) -> None:
        self._paused = await self._catalog.write(lambda transaction: write_paused(transaction, peer, paused=paused))
        self._signal.wake()


def _duration(seconds: float) -> str:
    minutes = int(-(-seconds // 60))
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
