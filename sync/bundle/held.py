"""What an export keeps from eviction while it goes on: digests in the store, under one holder, renewed and let go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from proxy.cache.once import Background
from proxy.store import holding
from proxy.store.catalog import Catalog
from proxy.store.writer import Transaction

HOLD_SECONDS = 3600.0
RENEW_SECONDS = 600.0
_BATCH = 2000


class Held:
    """The digests that one export keeps from eviction."""

    def __init__(self, catalog: Catalog, holder: str) -> None:
        self._catalog = catalog
        self._holder = holder

    async def add(self, digests: Sequence[str]) -> None:
        """Hold these too."""
        until = time.time() + HOLD_SECONDS
        for start in range(0, len(digests), _BATCH):
            some = digests[start : start + _BATCH]
            await self._catalog.write(partial(_hold, holder=self._holder, digests=some, until=until))

    async def keep(self) -> None:
        """Hold them on, until cancelled."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            until = time.time() + HOLD_SECONDS
            await self._catalog.write(partial(holding.renew, holder=self._holder, until=until))


def _hold(transaction: Transaction, *, holder: str, digests: Sequence[str], until: float) -> None:
    holding.hold(transaction, holder, digests, until)


@asynccontextmanager
async def held(catalog: Catalog, holder: str) -> AsyncIterator[Held]:
    """Hold digests for as long as the context lasts; after a crash they are held for an hour."""
    made = Held(catalog, holder)
    try:
        async with Background() as background:
            background.create_task(made.keep(), name=f"keep {holder}")
            yield made
    finally:
        await catalog.write(partial(holding.release, holder=holder))
