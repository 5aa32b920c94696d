"""A mirror process beside an upstream that lives in the test's own loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.support.mirror import Mirror


@asynccontextmanager
async def running(mirror: Mirror) -> AsyncIterator[Mirror]:
    """Start and stop `mirror` without stopping the loop that serves its upstream."""
    await asyncio.to_thread(mirror.start)
    try:
        yield mirror
    finally:
        if mirror.program.running:
            await asyncio.to_thread(mirror.stop)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what only looking can tell."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
