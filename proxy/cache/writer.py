"""Feeds a spool: batches bytes, hashes and writes them in a thread, never more than one batch at a time.

A batch leaves when it has `BATCH` bytes, or after `GATHER_SECONDS`: each costs a thread's turn and wakes every
reader. While one is in the thread the next one gathers. Memory is bounded by `HIGH` bytes waiting and as many in
the thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from time import monotonic

from proxy.oci.digest import Digest
from proxy.store.spool import Spool

HIGH = 4 << 20
BATCH = 512 << 10
GATHER_SECONDS = 0.01
READ = 4 << 20
CHECKPOINT_BYTES = 64 << 20
BEHIND_BYTES = 8 << 20
"""So much is written before the system is asked to bring it to the disk: a checkpoint then has little to wait for."""
WHOLE = 256 << 10
"""Chunks from this size on are hashed and written one by one: to join them would copy them."""
CHECKPOINT_SECONDS = 5.0


class SpoolWriter:
    """Appends to `spool` after its contiguous prefix. `on_progress` is called on the loop after each batch.

    State: `received` (bytes taken, prefix included), `written` (bytes in the file and in the hash).
    """

    def __init__(self, spool: Spool, executor: Executor, on_progress: Callable[[int], None]) -> None:
        self._spool = spool
        self._executor = executor
        self._on_progress = on_progress
        self._hasher = spool.digest.hasher()
        self._batch: list[bytes] = []
        self._waiting = 0
        self._job: asyncio.Future[int] | None = None
        self._due: asyncio.TimerHandle | None = None
        self._error: BaseException | None = None
        self._checkpointed = spool.contiguous
        self._begun = spool.contiguous
        self._checkpointed_at = monotonic()
        self.received = spool.contiguous
        self.written = 0

    async def rehash_prefix(self) -> None:
        """Hash what the spool already holds, in slices."""
        loop = asyncio.get_running_loop()
        while self.written < self._spool.contiguous:
            length = min(READ, self._spool.contiguous - self.written)
            self._job = loop.run_in_executor(self._executor, self._rehash, self.written, length)
            try:
                self.written = await asyncio.shield(self._job)
            finally:
                await self._settle()

    async def feed(self, chunk: bytes) -> None:
        """Take `chunk`; waits only while more than `HIGH` bytes are waiting. Raises OSError of an earlier write."""
        self._batch.append(chunk)
        self._waiting += len(chunk)
        self.received += len(chunk)
        if self._waiting >= BATCH:
            self._pump()
        elif self._due is None:
            self._due = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._pump)
        while self._waiting > HIGH and self._job is not None:
            await asyncio.wait([self._job])
        self._raise()

    async def drain(self) -> None:
        """Wait until all that was fed is written. Raises OSError when it could not be."""
        self._pump()
        while self._job is not None and self._error is None:
            await asyncio.wait([self._job])
            self._pump()
        self._raise()

    def matches(self, digest: Digest) -> bool:
        """Tell whether all that was written has this digest. Drain first."""
        return digest.matches(self._hasher)

    async def aclose(self) -> None:
        """Forget what waits, and return when no thread uses the spool any more, even if cancelled meanwhile."""
        self._batch, self._waiting = [], 0
        if self._due is not None:
            self._due.cancel()
        await self._settle()

    async def _settle(self) -> None:
        cancelled: asyncio.CancelledError | None = None
        while self._job is not None and not self._job.done():
            try:
                await asyncio.wait([self._job])
            except asyncio.CancelledError as error:
                cancelled = error
        self._job = None
        if cancelled is not None:
            raise cancelled

    def _pump(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._job is not None or not self._batch or self._error is not None:
            return
        batch, self._batch, self._waiting = self._batch, [], 0
        self._job = asyncio.get_running_loop().run_in_executor(self._executor, self._write, batch, self.written)
        self._job.add_done_callback(self._done)

    def _done(self, job: asyncio.Future[int]) -> None:
        self._job = None
        if job.cancelled():
            return
        self._error = job.exception()
        if self._error is None:
            self.written = job.result()
            self._on_progress(self.written)
            if self._waiting >= BATCH:
                self._pump()
            elif self._batch and self._due is None:
                self._due = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._pump)

    def _write(self, batch: list[bytes], offset: int) -> int:
        for data in batch if len(batch[0]) >= WHOLE else [b"".join(batch)]:
            self._hasher.update(data)
            self._spool.write(offset, data)
            offset += len(data)
        if offset - self._begun >= BEHIND_BYTES:
            self._spool.begin_write(self._begun, offset - self._begun)
            self._begun = offset
        due = monotonic() - self._checkpointed_at > CHECKPOINT_SECONDS and offset > self._checkpointed
        if due or offset - self._checkpointed >= CHECKPOINT_BYTES:
            self._spool.checkpoint()
            self._checkpointed, self._checkpointed_at = offset, monotonic()
        return offset

    def _rehash(self, offset: int, length: int) -> int:
        data = self._spool.read(offset, length)
        if len(data) != length:
            raise OSError(f"spool of {self._spool.digest} is shorter than its record says")
        self._hasher.update(data)
        return offset + length

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
