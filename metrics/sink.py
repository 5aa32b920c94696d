"""Log lines on their way out: a bounded queue and one thread that writes, so that a slow reader never holds the loop.

Lines that find the queue full are dropped and counted, and the count is written once there is room.
What a line looks like is the business of `metrics.logs`.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Item = TypeVar("Item")

LIMIT = 8192
BATCH = 256
GATHER_SECONDS = 0.02


class LineSink(Generic[Item]):
    """Renders items to lines and writes them to a file descriptor, in a thread of its own.

    `put` may be called from any thread. `render` runs in the writer's thread and must not raise;
    `dropped_line` makes the line that reports how many were dropped.
    """

    def __init__(
        self,
        descriptor: int,
        render: Callable[[Item], bytes],
        dropped_line: Callable[[int], bytes],
        *,
        limit: int = LIMIT,
    ) -> None:
        self._descriptor = descriptor
        self._render = render
        self._dropped_line = dropped_line
        self._limit = limit
        self._queue: SimpleQueue[Item | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._dropped = 0
        self._reported = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="log-writer", daemon=True)

    @property
    def dropped(self) -> int:
        """Items that were never written."""
        return self._dropped

    def start(self) -> None:
        self._thread.start()

    def put(self, item: Item) -> None:
        """Queue `item`, or drop it when the queue is full."""
        if self._queue.qsize() < self._limit:
            self._queue.put(item)
        else:
            self._drop(1)

    def close(self, patience: float = 1.0) -> None:
        """Write what is queued, waiting at most `patience` seconds for whoever reads it; the rest is lost."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join(patience)

    def _drop(self, count: int) -> None:
        with self._lock:
            self._dropped += count

    def _write_on(self) -> None:
        while (item := self._queue.get()) is not None:
            # Waking for every single line would make the loop give up the interpreter for each.
            self._closing.wait(GATHER_SECONDS)
            items = [item]
            last = self._gather(items)
            self._write(items)
            if last:
                return

    def _gather(self, items: list[Item]) -> bool:
        while len(items) < BATCH:
            try:
                item = self._queue.get_nowait()
            except Empty:
                return False
            if item is None:
                return True
            items.append(item)
        return False

    def _write(self, items: list[Item]) -> None:
        lines = [self._render(item) for item in items]
        unreported = self._dropped - self._reported
        if unreported:
            lines.append(self._dropped_line(unreported))
        try:
            _write_all(self._descriptor, b"".join(lines))
        except OSError:
            self._drop(len(items))
        else:
            self._reported += unreported


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            room = select.poll()
            room.register(descriptor, select.POLLOUT)
            room.poll()
