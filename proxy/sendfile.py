"""Sending a file's bytes to a client: the only module that calls sendfile.

The rule that everything here serves: the kernel is handed a descriptor's number, and a number that was
closed may be another file by then. So whoever leaves early first aborts the transport, which drops what
is queued, and only then may the descriptor be closed. Slices with a yield between them keep the loop
responsive: at 3 GiB/s from the page cache one takes 0.7 ms, and 2 MiB cost a third of eight small ones.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from proxy.oci.errors import RegistryError, Unavailable

SLICE = 1 << 21
STALL_SECONDS = 60.0
_BYTES_ACKED = struct.Struct("=Q")  # tcp(7), tcpi_bytes_acked


class FileBody(Protocol):
    """Bytes of a file that may still grow."""

    def fileno(self) -> int: ...

    async def limit(self, position: int) -> int:
        """Return how far may be read: past `position`, or `position` at the end. Raises RegistryError."""
        ...


class _StallWatch:
    """Aborts a transport of which nothing was taken for a whole period; one timer for a whole response.

    Armed only while a slice is under way: waiting for a fill is not the client's fault.
    """

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        self._transport = transport
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._slices = 0
        self._seen = (0, 0)
        self._sending = False
        self._timer = self._loop.call_later(seconds, self._look)
        self.stalled = False

    def begin(self) -> None:
        self._sending = True

    def end(self) -> None:
        self._sending = False
        self._slices += 1

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = (self._slices, _acknowledged(self._transport))
        if self._sending and now == self._seen:
            self.stalled = True
            self._transport.abort()
            return
        self._seen = now
        self._timer = self._loop.call_later(self._seconds, self._look)


def _acknowledged(transport: asyncio.Transport) -> int:
    """Return how many bytes the client's side has ever taken: a slow client may need minutes for one slice."""
    connection = transport.get_extra_info("socket")
    try:
        information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
        return int(_BYTES_ACKED.unpack_from(information, 120)[0])
    except (AttributeError, OSError, struct.error):
        return 0


async def send_file(
    request: web.BaseRequest,
    writer: AbstractStreamWriter,
    body: FileBody,
    start: int,
    end: int | None,
    sent: Callable[[int], None],
) -> None:
    """Send the bytes [start, end) of `body` after the headers; `sent` hears of every slice's bytes.

    With an unknown `end` the framing must be chunked. Raises ConnectionResetError when the client is gone,
    takes nothing for one to two minutes (P45), or must be told by a short body that no more will come (P28):
    the connection is closed then, and the caller may close the descriptor at once.
    """
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("client is gone")
    position, known = start, 0
    watch = _StallWatch(transport, STALL_SECONDS)
    try:
        while end is None or position < end:
            count = min(SLICE, await body.limit(position) - position)
            if count <= 0:
                break
            if known < position + count:
                known = os.fstat(body.fileno()).st_size
                if known < position + count:
                    raise Unavailable("a stored file is shorter than its record says")
            if transport.is_closing():
                raise ConnectionResetError("client is gone")
            watch.begin()
            await _send_slice(transport, writer, body, position, count, chunked=end is None)
            watch.end()
            position += count
            sent(count)
            await asyncio.sleep(0)
    except RegistryError as error:
        transport.close()
        raise ConnectionResetError(f"closed short at byte {position}: {error.message}") from error
    except BaseException as error:
        transport.abort()
        if watch.stalled:
            raise ConnectionResetError(f"client took nothing for {STALL_SECONDS:.0f} s") from error
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and not task.cancelling():
            raise ConnectionResetError("client is gone") from error  # an aborted transport cancels its sendfile
        raise
    finally:
        watch.stop()


async def _send_slice(
    transport: asyncio.Transport,
    writer: AbstractStreamWriter,
    body: FileBody,
    position: int,
    count: int,
    *,
    chunked: bool,
) -> None:
    loop = asyncio.get_running_loop()
    if not chunked:
        try:
            await loop.sendfile(transport, body, position, count, fallback=False)  # type: ignore[arg-type]
            return
        except (NotImplementedError, asyncio.SendfileNotAvailableError):
            pass
    data = await asyncio.to_thread(os.pread, body.fileno(), count, position)
    if len(data) != count:
        raise Unavailable("a stored file is shorter than its record says")
    await writer.write(data)
