"""How many bytes a second a link between regions may carry, over all its streams in all processes of a node.

The rule is GCRA: every byte has its time, and whoever took some waits until theirs has passed. Takers are served in
the order in which they came, so that streams share evenly. What the processes share is one moment in a small mapped
file, changed under `flock`; it is in seconds of the machine's monotonic clock, which begins anew with the machine.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

MOST_TAKEN = 256 << 10
"""Bytes: larger amounts are taken in parts, so that no stream holds the others up."""
BURST_SECONDS = 0.25
_STATE = struct.Struct("=dd")  # until when all bytes so far have their time, and when that was written
_LOCK_TRIES = 50
_LOCK_SECONDS = 0.001


class Budget:
    """`rate` in bytes a second; None: no limit, and nothing to wait for. Open it with `open`, and close it.

    `clock` gives the seconds that all processes share, `sleep` waits for some.
    """

    def __init__(
        self,
        rate: int | None,
        file: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.rate = rate
        self._file = file
        self._map = mmap.mmap(-1 if file is None else file, _STATE.size)
        self._clock = clock
        self._sleep = sleep

    @classmethod
    def open(cls, rate: int | None, path: Path) -> Self:
        """Share the file at `path`, which is made where there is none. Raises OSError."""
        if rate is None:
            return cls(None)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(file).st_size < _STATE.size:
                os.posix_fallocate(file, 0, _STATE.size)
            return cls(rate, file)
        except BaseException:
            os.close(file)
            raise

    def close(self) -> None:
        """Give the file back."""
        self._map.close()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    async def take(self, count: int) -> None:
        """Return when `count` bytes, which have come, may count as carried. Cancelled, they count all the same."""
        if self.rate is None:
            return
        while count > 0:
            part = min(count, MOST_TAKEN)
            count -= part
            wait = await self._reserve(part / self.rate)
            if wait > 0:
                await self._sleep(wait)

    async def _reserve(self, seconds: float) -> float:
        """Note that so much of the link's time is used, and return how long to wait for it."""
        locked = await self._lock()
        try:
            now = self._clock()
            until, written = _STATE.unpack_from(self._map)
            if not written <= now:
                until = now  # the machine has started again since
            until = max(until, now) + seconds
            _STATE.pack_into(self._map, 0, until, now)
        finally:
            if locked and self._file is not None:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        return float(until - BURST_SECONDS - now)

    async def _lock(self) -> bool:
        """Keep the other processes out for a moment; where one of them stands still, go on without."""
        if self._file is None:
            return False
        for _ in range(_LOCK_TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            await asyncio.sleep(_LOCK_SECONDS)
        return False
