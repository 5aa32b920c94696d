"""The way from the demo's mirror to its registry: as slow as one that is far away, and with a rate limit to be told of.

A relay of HTTP in the clear. It counts what passes; bodies pass unchanged. Not for anything but the demo.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, web

DELAY = 0.04
"""Seconds from a question to its answer, beside what the registry takes."""
RATE = 40_000_000
"""Bytes a second, of all answers together."""
LIMIT = 200
WINDOW = 120
"""So many manifests may be fetched in so many seconds, as registries that limit their rate put it."""
_PIECE = 128 << 10
_TIMEOUT = ClientTimeout(total=None, sock_connect=5, sock_read=30)
_PASSED_UP = ("Accept", "Range", "If-Range", "If-None-Match", "User-Agent")
_NOT_PASSED_DOWN = frozenset({"connection", "keep-alive", "transfer-encoding", "date", "server"})


@dataclass
class Traffic:
    """What passed so far: requests, bytes of bodies, and how often each digest was fetched."""

    requests: int = 0
    received: int = 0
    fetched: Counter[str] = field(default_factory=Counter)

    @property
    def again(self) -> int:
        """How many fetches were not the first one of their digest."""
        return self.fetched.total() - len(self.fetched)


@asynccontextmanager
async def linked(traffic: Traffic) -> AsyncIterator[Link]:
    """Give a link that answers at its `url`, and counts into `traffic`."""
    async with ClientSession(timeout=_TIMEOUT, auto_decompress=False) as session:
        link = Link(traffic, session)
        runner = web.ServerRunner(web.Server(link.answer), shutdown_timeout=0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            link.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield link
        finally:
            await runner.cleanup()


class Link:
    """State: the URLs of this end and of the registry, when the way is free for the next piece, and what is left of
    the rate limit until when."""

    def __init__(self, traffic: Traffic, session: ClientSession) -> None:
        self.url = ""
        self.target = ""
        self._traffic = traffic
        self._session = session
        self._free_at = 0.0
        self._remaining = LIMIT
        self._renewed_at = 0.0

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer as the registry does, later."""
        await asyncio.sleep(DELAY)
        self._traffic.requests += 1
        limits = self._limits(counts=request.method == "GET" and "/manifests/" in request.path)
        headers = {name: request.headers[name] for name in _PASSED_UP if name in request.headers}
        try:
            found = await self._session.request(request.method, self.target + request.raw_path, headers=headers)
        except (ClientError, TimeoutError) as error:
            raise web.HTTPBadGateway(text=f"the demo's registry does not answer: {error}") from None
        async with found:
            return await self._pass(request, found, limits)

    async def _pass(
        self, request: web.BaseRequest, found: ClientResponse, limits: dict[str, str]
    ) -> web.StreamResponse:
        passed = {name: value for name, value in found.headers.items() if name.lower() not in _NOT_PASSED_DOWN}
        response = web.StreamResponse(status=found.status, headers=passed | limits)
        await response.prepare(request)
        digest = request.path.rpartition("/")[2]
        if request.method == "GET" and found.status in (200, 206) and ":" in digest:
            self._traffic.fetched[digest] += 1
        try:
            async for piece in found.content.iter_chunked(_PIECE):
                await self._in_turn(len(piece))
                await response.write(piece)
                self._traffic.received += len(piece)
            await response.write_eof()
        except (ClientError, TimeoutError, OSError):
            if request.transport is not None:
                request.transport.abort()  # one of the two has gone: the other must not take this for all of it
        return response

    async def _in_turn(self, size: int) -> None:
        now = time.monotonic()
        self._free_at = max(now, self._free_at) + size / RATE
        await asyncio.sleep(self._free_at - now)

    def _limits(self, *, counts: bool) -> dict[str, str]:
        now = time.monotonic()
        if now >= self._renewed_at:
            self._remaining, self._renewed_at = LIMIT, now + WINDOW
        if counts:
            self._remaining = max(0, self._remaining - 1)
        return {"RateLimit-Limit": f"{LIMIT};w={WINDOW}", "RateLimit-Remaining": f"{self._remaining};w={WINDOW}"}
