"""What goes over a connection between two programs: a relay that counts requests and bytes and changes nothing.

HTTP/1.1 in the clear alone: a request is counted by the end of its first line.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_PIECE = 256 * 1024
_MARK = b" HTTP/1.1\r\n"


@dataclass
class Traffic:
    """What passed so far: `requests`, the bytes of these (`up`) and those of their answers (`down`), heads too."""

    requests: int = 0
    up: int = 0
    down: int = 0

    def since(self, before: Traffic) -> Traffic:
        return Traffic(self.requests - before.requests, self.up - before.up, self.down - before.down)

    def now(self) -> Traffic:
        return Traffic(self.requests, self.up, self.down)


class _Relay:
    def __init__(self, target: int) -> None:
        self._target = target
        self.traffic = Traffic()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(self._up(reader, there_writer), self._down(there_reader, writer))

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tail = b""
        with suppress(OSError):
            while piece := await reader.read(_PIECE):
                self.traffic.up += len(piece)
                self.traffic.requests += (tail + piece).count(_MARK)
                tail = piece[1 - len(_MARK) :]
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE):
                self.traffic.down += len(piece)
                writer.write(piece)
                await writer.drain()
        writer.close()


@contextmanager
def relay(target: int) -> Iterator[tuple[int, Traffic]]:
    """Pass on to a port of this machine from another one; give that and what passes."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="relay", daemon=True)
    thread.start()
    passing = _Relay(target)
    started = asyncio.run_coroutine_threadsafe(asyncio.start_server(passing.accept, "127.0.0.1", 0), loop)
    server = started.result(10)
    try:
        yield server.sockets[0].getsockname()[1], passing.traffic
    finally:
        asyncio.run_coroutine_threadsafe(_end(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
