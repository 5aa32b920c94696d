"""Readers: open blobs whose bytes lie in a file, whether it is stored or still being filled.

Each holds a descriptor of its own, so nothing that happens to the fill, the spool's name or the store
changes the bytes under it. `limit` says how far the file may be read now; whoever sends does so by
sendfile from `fileno()`, or iterates.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from proxy.cache.fill import Fill
from proxy.cache.generation import Generation, close_aside
from proxy.cache.progress import Verdict
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, Unavailable
from proxy.oci.ranges import ByteRange
from proxy.store.stored import StoredFile

CHUNK = 1 << 18


class FileReader:
    """A BlobStream over a descriptor that it owns. `outcome` is for the log: hit | joined | miss.

    origin: where in the file its first byte lies.
    """

    anonymous = False
    origin = 0

    def __init__(self, digest: Digest, fd: int, size: int | None, outcome: str) -> None:
        self.digest = digest
        self.size = size
        self.start = 0
        self.end = size
        self.outcome = outcome
        self._fd = fd
        self._continues = False

    def narrow(self, span: ByteRange | None) -> None:
        """Read only `span`. Raises RangeNotSatisfiable; an unknown size or an empty blob is read whole (P6)."""
        self._continues = span is not None and span.first != 0
        if span is not None and self.size:
            self.start, self.end = span.resolve(self.size)

    def source_wait(self, start: float, end: float) -> float:
        """Return for how many of these monotonic seconds a source had not answered yet that this needs."""
        return 0.0

    def fileno(self) -> int:
        """Return the descriptor, open until `close`."""
        return self._fd

    async def limit(self, position: int) -> int:
        """Return how far the file may be read: past `position`, or equal to it at the blob's end.

        Raises BadContent or Unavailable when no more will come.
        """
        assert self.end is not None
        return self.end

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        position = self.start
        while (limit := await self.limit(position)) > position:
            while position < limit:
                chunk = await asyncio.to_thread(
                    os.pread, self._fd, min(CHUNK, limit - position), self.origin + position
                )
                if not chunk:
                    raise Unavailable(f"the file of {self.digest} is shorter than it was")
                position += len(chunk)
                yield chunk

    def close(self) -> None:
        """Give the descriptor back. Nothing may be sending from it any more."""
        if self._fd >= 0:
            close_aside(self._fd, self.size)
            self._fd = -1

    async def aclose(self) -> None:
        self.close()


class StoredReader(FileReader):
    """A blob of the store."""

    def __init__(self, stored: StoredFile) -> None:
        super().__init__(stored.digest, stored.fd, stored.size, "hit")


class FillReader(FileReader):
    """Follows a fill that admitted its repository.

    A reader from the blob's start that has given out nothing yet moves on from a corrupt generation unseen. Any other
    is told: what its client has of the blob may be of the bad one. All go on in a generation that took over the bytes
    of the last.
    """

    def __init__(self, fill: Fill, generation: Generation, outcome: str) -> None:
        super().__init__(fill.digest, generation.dup(), generation.progress.size, outcome)
        self.fill = fill
        self._generation = generation
        self._given = False
        fill.readers += 1

    async def limit(self, position: int) -> int:
        while True:
            progress = self._generation.progress
            if progress.verdict is Verdict.CORRUPT:
                if self._given or self._continues:
                    raise BadContent(f"bytes of {self.digest} were wrong: fetch it from the start")
                await self._next_generation()
                continue
            if progress.verdict is Verdict.HANDED_OVER:
                left = self._generation
                await self._next_generation()
                if not self._generation.continues(left) and (self._given or self._continues):
                    raise Unavailable(f"the fill of {self.digest} has begun anew: fetch it from the start")
                continue
            if self.size is None and progress.size is not None:
                self.size = progress.size
                self.end = self.end if self.end is not None else progress.size
            ready = progress.releasable if self.end is None else min(progress.releasable, self.end)
            if ready > position or (self.end is not None and position >= self.end and self.end > 0):
                self._given = True
                return max(ready, position)
            if progress.verdict is Verdict.VERIFIED:
                return position
            if progress.error is not None:
                raise progress.error.again()
            await progress.changed.wait()

    def source_wait(self, start: float, end: float) -> float:
        return self.fill.supply.waits.within(start, end)

    async def _next_generation(self) -> None:
        fill = self.fill
        while fill.current is self._generation or fill.current is None:
            if fill.finished.done():
                fill.finished.result()
            await fill.changed.wait()
        size = fill.current.progress.size
        if None not in (size, self.size) and size != self.size:
            raise BadContent(f"{self.digest} has another size now than the one announced")
        fd, self._fd = self._fd, fill.current.dup()
        close_aside(fd, self.size)
        self._generation = fill.current

    def close(self) -> None:
        if self._fd >= 0:
            self.fill.readers -= 1
        super().close()
