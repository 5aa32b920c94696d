"""A gate: a reverse proxy in front of a registry that counts requests, can be slow, and can be closed.

Redirects pass through it unfollowed, so that a client sees them as the registry sent them.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, web
from multidict import CIMultiDict
from yarl import URL

from tests.support.hosting import Hosting

_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "host"}
_KIND = re.compile(r"/v2/.+/(manifests|blobs|tags|referrers)/")
_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it arrived, and the status it was answered with."""

    method: str
    path: str
    kind: str
    query: str
    authorization: str
    range: str
    status: int


class Gate:
    """What clients should take for the registry at the base URL `backend`.

    `rate` is in bytes per second for each request, 0 is unlimited; it may be set at any time.
    """

    def __init__(self, hosting: Hosting, backend: str, rate: int = 0) -> None:
        self.rate = rate
        self._backend = backend
        self._hosting = hosting
        self._seen: list[Seen] = []
        self._lock = threading.Lock()
        self.port = hosting.serve(self._app())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Refuse connections from now on, as a registry that is down."""
        self._hosting.end(self.port)

    def open(self) -> None:
        """Serve again on the same port."""
        self._hosting.serve(self._app(), self.port)

    @property
    def seen(self) -> list[Seen]:
        """All requests so far, in the order in which their answers began."""
        with self._lock:
            return list(self._seen)

    def forget(self) -> None:
        """Start counting anew."""
        with self._lock:
            self._seen.clear()

    def count(self, method: str, kind: str) -> int:
        """Return how many requests of `kind` (manifests | blobs | tags | referrers | other) came with `method`."""
        return sum(1 for one in self.seen if (one.method, one.kind) == (method, kind))

    def blob_gets(self) -> Counter[str]:
        """Return how often each blob's GET was answered well (200, 206 or a redirect), by digest."""
        gets = (one for one in self.seen if (one.method, one.kind) == ("GET", "blobs") and one.status < 400)
        return Counter(one.path.rsplit("/", 1)[1] for one in gets)

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=0)
        app.cleanup_ctx.append(self._client)
        app.router.add_route("*", "/{path:.*}", self._pass)
        return app

    async def _client(self, app: web.Application) -> AsyncIterator[None]:
        async with ClientSession(
            timeout=ClientTimeout(total=None, sock_connect=5, sock_read=60),
            auto_decompress=False,
            cookie_jar=DummyCookieJar(),
        ) as session:
            app[_SESSION] = session
            yield

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        headers = CIMultiDict((name, value) for name, value in request.headers.items() if name.lower() not in _HOP)
        target = URL(self._backend + request.raw_path, encoded=True)
        body = request.content if request.can_read_body else None
        session = request.app[_SESSION]
        try:
            async with session.request(
                request.method, target, headers=headers, data=body, allow_redirects=False
            ) as answer:
                self._note(request, answer.status)
                reply = web.StreamResponse(status=answer.status, reason=answer.reason)
                for name, value in answer.headers.items():
                    if name.lower() not in _HOP:
                        reply.headers.add(name, value)
                await reply.prepare(request)
                async for chunk in answer.content.iter_chunked(_CHUNK):
                    await reply.write(chunk)
                    if self.rate:
                        await asyncio.sleep(len(chunk) / self.rate)
                await reply.write_eof()
                return reply
        except ClientError as error:
            self._note(request, 502)
            return web.Response(status=502, text=str(error))

    def _note(self, request: web.Request, status: int) -> None:
        kind = _KIND.match(request.path)
        with self._lock:
            self._seen.append(
                Seen(
                    method=request.method,
                    path=request.path,
                    kind=kind[1] if kind else "other",
                    query=request.query_string,
                    authorization=request.headers.get("Authorization", "").partition(" ")[0],
                    range=request.headers.get("Range", ""),
                    status=status,
                )
            )


_SESSION = web.AppKey("session", ClientSession)
