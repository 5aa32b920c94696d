"""The HTTP server in front of the face: connections, their number and their deadlines (P45), and what is no HTTP.

What a request means is the face's. Nothing here runs per request but one comparison of what arrived.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from proxy import respond
from proxy.oci.errors import BadRequest
from proxy.stall import STALL_SECONDS, StallWatch

MAX_LINE = 16 << 10
HEAD_SECONDS = 10.0
KEEPALIVE_SECONDS = 75.0
DRAIN_SECONDS = 2.0
OTHER_DESCRIPTORS = 256
BACKLOG = 1024
_TCP_USER_TIMEOUT = 18  # tcp(7); the socket module has no such name on every build
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"Retry-After: 5\r\nConnection: close\r\n\r\n%b"
)
_FULL_BODY = b'{"errors": [{"code": "UNAVAILABLE", "message": "this mirror has too many connections; ask again"}]}'
log = logging.getLogger(__name__)


def connection_bound(descriptors: int) -> int:
    """Return how many connections a process with so many descriptors should hold: each may have a file open too."""
    return max(64, (descriptors - OTHER_DESCRIPTORS) // 2)


class Protocol(RequestHandler):
    """One connection of `server`, refused where `has_room` denies it.

    It ends when a request's head is not whole in time, or nothing that was sent is taken.

    The head's clock starts when the connection does, then with the first byte that follows a whole request; it is
    looked at once more `HEAD_SECONDS` later where an answer was under way. Unread bodies are read for
    `DRAIN_SECONDS` after the answer, then the connection closes.
    """

    __slots__ = ("_has_room", "_head_timer", "_stall")

    def __init__(self, server: web.Server, has_room: Callable[[], bool], *, loop: asyncio.AbstractEventLoop) -> None:
        options: dict[str, Any] = {
            "access_log": None,
            "keepalive_timeout": KEEPALIVE_SECONDS,
            "max_line_size": MAX_LINE,
            "lingering_time": DRAIN_SECONDS,
            "auto_decompress": False,
        }
        super().__init__(server, loop=loop, **options)
        self._has_room = has_room
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall: StallWatch | None = None

    @property
    def is_answering(self) -> bool:
        """A request is being answered."""
        return self._current_request is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._await_head()
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            # What is left in buffers when nothing here waits for it any more is the kernel's to give up.
            connection.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, int(2000 * STALL_SECONDS))
        if not self._has_room() and self.transport is not None:
            self.transport.write(_FULL % (len(_FULL_BODY), _FULL_BODY))
            self.force_close()

    def data_received(self, data: bytes) -> None:
        before = self._request_count
        super().data_received(data)
        if self._request_count != before and data.endswith(b"\r\n"):
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
        elif self._head_timer is None and data:
            self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall is None and self.transport is not None:
            self._stall = StallWatch(self.transport)
        if self._stall is not None:
            self._stall.begin()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.end()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if self._stall is not None:
            self._stall.stop()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head_timer = self._loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._waiter is not None and not self._waiter.done():
            self.force_close()
        elif self.transport is not None:
            self._await_head()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP, or too long to be a request of ours, with the spec's JSON too (P8, P9)."""
        if isinstance(exc, ConnectionError):
            raise exc  # it was told in the event, and ends the connection
        if status != 400 or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        problem = BadRequest("the request is malformed, or its path or headers too long")
        response = respond.error(problem, with_body=True)
        response.force_close()
        return response


async def listen(
    accept: Callable[[], asyncio.Protocol], bound: socket.socket, tls: ssl.SSLContext | None = None
) -> asyncio.Server:
    """Let `accept` make the protocol of each connection to `bound`. A handshake has the time of a head (P45)."""
    return await asyncio.get_running_loop().create_server(
        accept, sock=bound, ssl=tls, ssl_handshake_timeout=None if tls is None else HEAD_SECONDS, backlog=BACKLOG
    )


class Server(web.Server):
    """An aiohttp low-level server in front of `handler`, a Face, for at most `max_connections` at once."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        max_connections: float = math.inf,
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._max_connections = max_connections
        self._full = False

    def __call__(self) -> RequestHandler:
        return Protocol(self, self.has_room, loop=self._loop)

    @property
    def in_progress(self) -> int:
        """How many requests are being answered now; counted when asked for, and by any thread."""
        return sum(isinstance(one, Protocol) and one.is_answering for one in self.connections)

    def has_room(self) -> bool:
        """Tell whether the connections are not too many; say so in the log once per time that they are."""
        count = len(self._connections)
        if count > self._max_connections:
            if not self._full:
                self._full = True
                log.warning(
                    "too many connections: new ones are refused; raise the limit of open files (ulimit -n)",
                    extra={"connections": count - 1},
                )
            return False
        if self._full and count < self._max_connections * 0.9:
            self._full = False
        return True
