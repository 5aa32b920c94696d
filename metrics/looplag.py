"""A probe of the event loop's lag: how late a sleeper wakes is how long others kept the loop to themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

INTERVAL = 0.25


class LoopLag:
    """Tells `observe` the lag in seconds, every `interval` seconds, for as long as it is entered."""

    def __init__(self, observe: Callable[[float], None], *, interval: float = INTERVAL) -> None:
        self._observe = observe
        self._interval = interval
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._probe(), name="loop-lag")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _probe(self) -> None:
        # time.monotonic, not loop.time(): uvloop's stands still for the length of an iteration.
        while True:
            due = time.monotonic() + self._interval
            await asyncio.sleep(self._interval)
            self._observe(max(0.0, time.monotonic() - due))
