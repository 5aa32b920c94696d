"""A mirror of canned documents: the real page under its real policy, and an /api that says what a test gives it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from entrepot.answers import answer, refusal
from entrepot.dashboard import add_dashboard
from entrepot.live import Live
from tests.dashboard import canned
from tests.support.hosting import Hosting

PERIOD = 0.25


class Stage:
    """`live` is said every `PERIOD` seconds. `token`, if set, must be sent; `refuse` is what all of /api answers.

    `streams` is how many read along now, `begun` how many ever did.
    """

    def __init__(self, live: Live) -> None:
        self.live = live
        self.token = ""
        self.refuse = 0
        self.streams = 0
        self.begun = 0
        self._port = 0
        self._ending: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self._port}/dashboard/"

    @property
    def netloc(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self, hosting: Hosting) -> None:
        """Serve it; a second time on the port of the first."""
        app = web.Application(middlewares=[self._guard])
        add_dashboard(app.router)
        app.router.add_get("/api/live", self._live, allow_head=False)
        app.router.add_get("/api/history", self._history)
        app.router.add_get("/api/pulls/{name}", self._pull)
        self._ending = asyncio.Event()
        self._port = hosting.serve(app, self._port)

    def stop(self, hosting: Hosting) -> None:
        """Be gone, as a mirror that was stopped."""
        hosting.call(self._end())
        hosting.end(self._port)

    async def _end(self) -> None:
        assert self._ending is not None
        self._ending.set()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/api/"):
            if self.refuse:
                return refusal(self.refuse, "DENIED", "/api answers only on the mirror's own machine")
            if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
                return refusal(401, "UNAUTHORIZED", "/api is for this machine; or send the admin token")
        return await handler(request)

    async def _live(self, request: web.Request) -> web.StreamResponse:
        ending = self._ending
        assert ending is not None
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        self.begun += 1
        self.streams += 1
        with contextlib.suppress(ConnectionError):
            while not ending.is_set():
                await response.write(msgspec.json.encode(self.live) + b"\n")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ending.wait(), PERIOD)
        self.streams -= 1
        return response

    async def _history(self, request: web.Request) -> web.Response:
        seconds = {"1h": 3600.0, "6h": 21600.0, "24h": 86400.0}[request.query["window"]]
        return answer(canned.history(seconds))

    async def _pull(self, request: web.Request) -> web.Response:
        pulls = self.live.pulls
        for pull in (*pulls.running, *pulls.recent, *pulls.slowest):
            if pull.id == request.match_info["name"]:
                return answer(canned.detail(pull))
        return refusal(404, "NOT_FOUND", "no such pull is kept")


@contextlib.contextmanager
def staged(hosting: Hosting, live: Live) -> Iterator[Stage]:
    """Serve `live` for as long as the context lasts."""
    stage = Stage(live)
    stage.start(hosting)
    try:
        yield stage
    finally:
        stage.stop(hosting)
