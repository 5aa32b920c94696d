"""GET /api/live and /api/history: what the page at /dashboard shows, from `entrepot.watching`.

/api/live goes on, a document a line, until the asker is gone; one that does not read is cut off.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import zlib

from aiohttp import web

from entrepot.answers import Refused, answer
from entrepot.view import VIEW, HistoryShown

STALL_SECONDS = 15.0
KERNEL_BYTES = 64 << 10
_WINDOWS = {"1h": 3600.0, "6h": 6 * 3600.0, "24h": 24 * 3600.0}
_log = logging.getLogger(__name__)


def add_routes(app: web.Application) -> None:
    """Add the routes to an admin application; what streams ends when it does."""
    app.router.add_get("/api/live", _live, allow_head=False)
    app.router.add_get("/api/history", _history)
    app.on_shutdown.append(_hang_up)


async def _history(request: web.Request) -> web.Response:
    window = request.query.get("window", "1h")
    if window not in _WINDOWS:
        raise Refused(400, f"window is one of {', '.join(_WINDOWS)}")
    response = answer(_watched(request).view(_WINDOWS[window]))
    response.headers["Vary"] = "Accept-Encoding"
    response.enable_compression()
    return response


async def _live(request: web.Request) -> web.StreamResponse:
    async with _watched(request).stream() as documents:
        response = web.StreamResponse(
            headers={
                "Content-Type": "application/x-ndjson",
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                "Vary": "Accept-Encoding",
                "X-Accel-Buffering": "no",  # nginx would hold documents back until they fill a buffer
            }
        )
        packing = _Packed() if _takes_gzip(request) else _Plain()
        if isinstance(packing, _Packed):
            response.headers["Content-Encoding"] = "gzip"
        _keep_little(request)
        try:
            await response.prepare(request)
            async for document in documents:
                async with asyncio.timeout(STALL_SECONDS):
                    await response.write(packing.one(document))
            await response.write_eof(packing.end())
        except TimeoutError:
            _log.info("a client of /api/live does not read and is cut off")
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass
        return response


class _Plain:
    """Gives documents as they are."""

    def one(self, document: bytes) -> bytes:
        return document

    def end(self) -> bytes:
        return b""


class _Packed:
    """Makes documents smaller, to a seventh; each can be read before the next has come (RFC 1952)."""

    def __init__(self) -> None:
        self._packer = zlib.compressobj(level=1, wbits=zlib.MAX_WBITS | 16)

    def one(self, document: bytes) -> bytes:
        return self._packer.compress(document) + self._packer.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._packer.flush()


def _takes_gzip(request: web.Request) -> bool:
    taken = [piece.replace(" ", "").lower() for piece in request.headers.get("Accept-Encoding", "").split(",")]
    return any(piece.partition(";")[0] == "gzip" and not piece.endswith(";q=0") for piece in taken)


def _keep_little(request: web.Request) -> None:
    """Let the kernel hold few documents: who does not read is noticed soon, who reads late sees what is new."""
    connection = None if request.transport is None else request.transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)


async def _hang_up(app: web.Application) -> None:
    history = app[VIEW].history
    if history is not None:
        await history.hang_up()


def _watched(request: web.Request) -> HistoryShown:
    history = request.app[VIEW].history
    if history is None:
        raise Refused(404, "nothing is remembered in this process: ask the mirror that serves")
    return history
