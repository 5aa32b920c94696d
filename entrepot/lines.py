"""Long work told as JSON lines over HTTP: what is newest about each thing, and at last how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

SILENCE_SECONDS = 15.0
WORK = web.AppKey("work", set[asyncio.Task[None]])


class Lines:
    """Lines that wait to be sent. A newer one about the same thing takes the place of the older: it stays bounded."""

    def __init__(self) -> None:
        self._waiting: dict[object, object] = {}
        self._more = asyncio.Event()
        self._ended = False

    def put(self, event: object, *, about: str | None = None) -> None:
        """Add `event`, in place of what waits `about` the same; None: it stands for itself."""
        self._waiting[about if about is not None else object()] = event
        self._more.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._more.set()

    async def take(self) -> bytes:
        """Return what waits as lines; an empty line after `SILENCE_SECONDS` of nothing; nothing at the end."""
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                await self._more.wait()
        except TimeoutError:
            return b"\n"
        if not self._ended:
            self._more.clear()
        waiting, self._waiting = self._waiting, {}
        return b"".join(msgspec.json.encode(event) + b"\n" for event in waiting.values())


async def stream(request: web.Request, work: Callable[[Lines], Awaitable[object]]) -> web.StreamResponse:
    """Answer with the lines that `work` puts and, last, the one it returns; `work` must not raise.

    Work whose asker has gone is cancelled. The application owns the work: see `own_work`.
    """
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    await response.prepare(request)
    lines = Lines()
    task = asyncio.create_task(_run(work, lines), name=f"control {request.path}")
    request.app[WORK].add(task)
    try:
        while batch := await lines.take():
            await response.write(batch)
        await response.write_eof()
    finally:
        task.cancel()
        await asyncio.wait([task])
        request.app[WORK].discard(task)
    return response


async def _run(work: Callable[[Lines], Awaitable[object]], lines: Lines) -> None:
    try:
        lines.put(await work(lines))
    finally:
        lines.end()


def own_work(app: web.Application) -> None:
    """Let `app` answer with `stream`, and end what still runs when it shuts down: its askers see no last line."""
    app[WORK] = set()
    app.on_shutdown.append(_end_work)


async def _end_work(app: web.Application) -> None:
    tasks = [*app[WORK]]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
