"""Work that is carried to its end although the caller that asked for it was cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Owned:
    """Owns such work until it is done. State: its tasks."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(
        self,
        work: Coroutine[Any, Any, T],
        *,
        undo: Callable[[T], Awaitable[None]] | None = None,
        rescue: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        """Return what `work` gives. If the caller is cancelled it still ends, and nobody takes what it gives:

        `undo` is given a result then, `rescue` is called after a failure.
        """
        task = asyncio.create_task(work)
        self._keep(task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._keep(asyncio.create_task(_settle(task, undo, rescue)))
            raise

    async def aclose(self) -> None:
        """Return when all is done, what comes up meanwhile included."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _settle(
    task: asyncio.Task[T],
    undo: Callable[[T], Awaitable[None]] | None,
    rescue: Callable[[], Awaitable[None]] | None,
) -> None:
    try:
        result = await task
    except Exception:
        _log.exception("the store could not finish what a cancelled caller had begun")
        if rescue is not None:
            await rescue()
    else:
        if undo is not None:
            await undo(result)
