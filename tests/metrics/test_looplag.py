"""The probe of the event loop's lag."""

from __future__ import annotations

import asyncio
import time

from metrics.looplag import watch_lag


async def test_a_held_loop_is_seen_as_lag() -> None:
    seen: asyncio.Queue[float] = asyncio.Queue()
    async with asyncio.timeout(30), watch_lag(seen.put_nowait, interval=0.01):
        await seen.get()
        time.sleep(0.2)  # noqa: ASYNC251 - holding the loop is the point
        assert await seen.get() > 0.1


async def test_the_probe_ends_with_its_owner() -> None:
    seen: list[float] = []
    before = asyncio.all_tasks()
    async with watch_lag(seen.append, interval=0.001):
        assert len(asyncio.all_tasks() - before) == 1
    assert asyncio.all_tasks() == before
