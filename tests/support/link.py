"""A link between two places as a network would be: a delay, a rate, cuts, a partition; and what went over it.

It passes bytes on and knows nothing of HTTP. `up` is what those who connect send, `down` what they are sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

_PIECE = 16 * 1024
_UNDER_WAY = 64  # pieces of one direction of one connection


@dataclass
class Way:
    """One direction of the link: its bytes so far, and how many more may pass before the link is cut (None: all)."""

    bytes: int = 0
    cut_in: int | None = None
    free_at: float = 0.0  # the loop's time at which the rate admits the next piece


@dataclass
class _Connection:
    """Both ends of one connection through the link."""

    ends: list[asyncio.StreamWriter] = field(default_factory=list)

    def end(self, reset: bool) -> None:
        for writer in self.ends:
            if reset:
                linger = struct.pack("ii", 1, 0)
                with contextlib.suppress(OSError):
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            else:
                writer.close()


class Link:
    """A listener on 127.0.0.1 that passes on to the host and port of `target`, while its context lasts.

    `delay` (seconds, each way) and `rate` (bytes per second, each way, all connections together; None: no limit) may
    be set at any time.
    """

    def __init__(self, target: str, *, delay: float = 0.0, rate: float | None = None) -> None:
        address = urlsplit(target)
        self._host, self._port = address.hostname or "", address.port
        self.delay = delay
        self.rate = rate
        self.up = Way()
        self.down = Way()
        self.connections = 0
        self.port = 0
        self._open = asyncio.Event()
        self._open.set()
        self._passed = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._live: dict[asyncio.Task[None], _Connection] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        tasks = list(self._live)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def live(self) -> int:
        """How many connections there are now."""
        return len(self._live)

    def cut(self, *, reset: bool = True) -> None:
        """End every connection now: by a reset, or as if both sides had closed it in order. New ones may be made."""
        for connection in self._live.values():
            connection.end(reset)

    def cut_after(self, count: int) -> None:
        """Reset every connection once `count` more bytes have gone down; that happens once."""
        self.down.cut_in = count

    def partition(self) -> None:
        """Let nothing pass until `heal`, of connections that exist or are made meanwhile. Nobody is told."""
        self._open.clear()

    def heal(self) -> None:
        """Let everything pass again, beginning with what was under way."""
        self._open.set()

    async def wait_down(self, total: int, seconds: float = 60) -> None:
        """Wait until `total` bytes in all have gone down."""
        async with asyncio.timeout(seconds), self._passed:
            await self._passed.wait_for(lambda: self.down.bytes >= total)

    async def wait_connections(self, total: int, seconds: float = 60) -> None:
        """Wait until so many connections have been made in all."""
        async with asyncio.timeout(seconds), self._passed:
            await self._passed.wait_for(lambda: self.connections >= total)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = self._live[task] = _Connection([writer])
        try:
            async with self._passed:
                self.connections += 1
                self._passed.notify_all()
            await self._open.wait()
            there_reader, there_writer = await asyncio.open_connection(self._host, self._port)
            connection.ends.append(there_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, there_writer, self.up))
                group.create_task(self._pass(there_reader, writer, self.down))
        except* (OSError, asyncio.CancelledError):
            pass  # the target is not there, one of the two has gone, or the link ends
        finally:
            del self._live[task]
            connection.end(reset=False)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        """Pass one direction on until its end, which is passed on too."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDER_WAY)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take(reader, under_way))
            while True:
                due, piece = await under_way.get()
                await self._until(due)
                await self._open.wait()
                if not piece:
                    break
                await self._give(piece, writer, way)
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _take(self, reader: asyncio.StreamReader, under_way: asyncio.Queue[tuple[float, bytes]]) -> None:
        now: Callable[[], float] = asyncio.get_running_loop().time
        piece = b"-"
        while piece:
            piece = await reader.read(_PIECE)
            await under_way.put((now() + self.delay, piece))

    async def _give(self, piece: bytes, writer: asyncio.StreamWriter, way: Way) -> None:
        if self.rate is not None:
            begin = max(asyncio.get_running_loop().time(), way.free_at)
            way.free_at = begin + len(piece) / self.rate
            await self._until(way.free_at)
        cut = way.cut_in is not None and way.cut_in <= len(piece)
        if way.cut_in is not None:
            piece = piece[: way.cut_in]
            way.cut_in = None if cut else way.cut_in - len(piece)
        writer.write(piece)
        await writer.drain()
        async with self._passed:
            way.bytes += len(piece)
            self._passed.notify_all()
        if cut:
            self.cut()

    async def _until(self, when: float) -> None:
        wait = when - asyncio.get_running_loop().time()
        if wait > 0:
            await asyncio.sleep(wait)
