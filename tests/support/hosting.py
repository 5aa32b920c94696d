"""aiohttp applications for synchronous tests: served from a thread of their own, each on a port of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from aiohttp import web

T = TypeVar("T")


class Hosting:
    """One thread with one event loop, and the applications that it serves on 127.0.0.1."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._runners: dict[int, web.AppRunner] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, name="hosting", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, work: Coroutine[Any, Any, T], timeout: float = 30) -> T:
        """Run `work` on the loop and return its result; `timeout` is in seconds."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def serve(self, app: web.Application, port: int = 0) -> int:
        """Serve `app` on 127.0.0.1:`port` (0: any free one) and return the port."""
        return self.call(self._serve(app, port))

    def end(self, port: int) -> None:
        """Stop serving on `port`: new connections are refused, open ones are closed."""
        runner = self._runners.pop(port, None)
        if runner is not None:
            self.call(runner.cleanup())

    def close(self) -> None:
        """Stop everything, and the thread."""
        for port in list(self._runners):
            self.end(port)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, app: web.Application, port: int) -> int:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, auto_decompress=False)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        bound = int(runner.addresses[0][1])
        self._runners[bound] = runner
        return bound
