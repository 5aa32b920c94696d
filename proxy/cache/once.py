"""Work in the background: who owns its tasks, and one execution for all who ask for the same thing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, Self, TypeVar

from proxy.oci.errors import Unavailable

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Background:
    """Owns tasks for as long as its context lasts; leaving it cancels them and waits until they have ended.

    A task's failure is its own: whoever wants to hear of it holds a future of the task's making.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End all tasks, those that come up meanwhile too: for an owner that is no context."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def create_task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start `work`; whoever cancels it ends it alone."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"task {task.get_name()} failed", "exception": error, "task": task}
            )


class SingleFlight(Generic[K, T]):
    """Runs work once per key while it is under way; its tasks belong to `background`.

    Whoever asked first has no privilege: any caller may be cancelled, the work goes on for the others.
    """

    def __init__(self, background: Background) -> None:
        self._background = background
        self._running: dict[K, asyncio.Future[T]] = {}

    def __contains__(self, key: K) -> bool:
        """Tell whether work under `key` is under way."""
        return key in self._running

    def start(self, key: K, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Future[T]:
        """Return the future of the work under `key`, started now unless it is under way. Shield it.

        It holds Unavailable where the owner of the work ends it, as a reload does: those who wait are answered.
        """
        future = self._running.get(key)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            self._running[key] = future
            self._background.create_task(self._drive(key, work, future), name=f"once {key}")
        return future

    async def run(self, key: K, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what the work under `key` returns, or raise what it raises."""
        return await asyncio.shield(self.start(key, work))

    async def _drive(self, key: K, work: Callable[[], Coroutine[Any, Any, T]], future: asyncio.Future[T]) -> None:
        try:
            result = await work()
        except asyncio.CancelledError:
            future.set_exception(Unavailable("the mirror has ended what was under way for this; ask again"))
            future.exception()
            raise
        except Exception as error:
            future.set_exception(error)
            future.exception()
        else:
            future.set_result(result)
        finally:
            del self._running[key]
