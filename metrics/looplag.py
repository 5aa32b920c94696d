"""A probe of the event loop's lag: how late a sleeper wakes is how long others kept the loop to themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

INTERVAL = 0.25


@asynccontextmanager
async def watch_lag(observe: Callable[[float], None], *, interval: float = INTERVAL) -> AsyncIterator[None]:
    """Tell `observe` the lag in seconds, every `interval` seconds, for as long as the context lasts."""
    task = asyncio.create_task(_probe(observe, interval), name="loop-lag")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _probe(observe: Callable[[float], None], interval: float) -> None:
    # time.monotonic, not loop.time(): uvloop's stands still for the length of an iteration.
    while True:
        due = time.monotonic() + interval
        await asyncio.sleep(interval)
        observe(max(0.0, time.monotonic() - due))
