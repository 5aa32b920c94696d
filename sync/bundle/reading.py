"""Bytes out of a bundle for the event loop: read in threads, one read ahead, a lost drive told as such.

Where the bytes lie is `opened`'s, whether they are right is for whoever takes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from proxy.oci.digest import Digest
from proxy.oci.errors import Unavailable
from sync.bundle.errors import Damaged
from sync.bundle.opened import Extent, Readable

if TYPE_CHECKING:
    from hashlib import _Hash

READ_SECONDS = 60.0
_log = logging.getLogger(__name__)

T = TypeVar("T")


class Reading:
    """Reads files of bundles in `threads` (None: the loop's own), and remembers which of them failed last.

    State: per file that failed, its label, the place that could not be read; it is forgotten once that place can
    be read: others may only be in the memory of the system.
    """

    def __init__(self, threads: Executor | None = None) -> None:
        self._threads = threads
        self._failed: dict[str, tuple[Readable, int]] = {}

    def read(self, file: Readable, offset: int, length: int) -> bytes:
        """Return bytes of a file, for threads. Raises Unavailable that names it."""
        try:
            body = file.read(offset, length)
        except (OSError, Damaged) as error:
            told = str(error)
            if isinstance(error, OSError):
                why = error.strerror or told
                told = f"{file.label} cannot be read at byte {offset}: {why}; is its drive still there?"
            if file.label not in self._failed:
                _log.error("a bundle cannot be read", extra={"file": file.label, "offset": offset, "why": told})
            self._failed[file.label] = (file, offset)
            raise Unavailable(told) from error
        failed = self._failed.get(file.label)
        if failed is not None and offset <= failed[1] < offset + length:
            self._failed.pop(file.label, None)
        return body

    def whole(self, extents: Sequence[Extent]) -> bytes:
        """Return what lies in `extents`, for threads. Raises Unavailable."""
        return b"".join([self.read(extent.file, extent.offset, extent.size) for extent in extents if extent.size])

    async def run(self, work: Callable[[], T]) -> T:
        """Do `work` in a thread. Raises what it raises, Unavailable where it takes too long."""
        return await waited(self.begin(work))

    def begin(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Begin `work` in a thread; whoever drops the future waits for its end before the files are closed."""
        return asyncio.get_running_loop().run_in_executor(self._threads, work)

    def failing(self, files: Sequence[Readable]) -> list[str]:
        """Return in words which of `files`, or of those that failed before, cannot be read now. For threads."""
        places = {file.label: (file, 0) for file in files}
        places |= dict(self._failed)
        problems = []
        for file, offset in places.values():
            try:
                self.read(file, offset, 1)
            except Unavailable as error:
                problems.append(error.message)
        return problems


async def waited(future: asyncio.Future[T]) -> T:
    """Return what a thread is reading; it goes on where the waiting is given up. Raises Unavailable after a minute."""
    try:
        async with asyncio.timeout(READ_SECONDS):
            return await asyncio.shield(future)
    except TimeoutError as error:
        raise Unavailable(f"the bundle's drive does not answer within {READ_SECONDS:.0f} s") from error


class BundleBlob:
    """An open blob of a bundle, or a span of it; a BlobStream. where: its volumes, in words."""

    def __init__(
        self,
        reading: Reading,
        digest: Digest,
        size: int,
        span: tuple[int, int],
        extents: Sequence[Extent],
        chunk: int,
    ) -> None:
        self.digest = digest
        self.size = size
        self.start, self.end = span
        self.where = " and ".join(dict.fromkeys(extent.file.label for extent in extents))
        self._reading = reading
        self._pieces = _pieces(extents, self.start, self.end, chunk)
        self._next: asyncio.Future[bytes] | None = None
        self._hasher: _Hash | None = None
        self._closed = False

    @property
    def anonymous(self) -> bool:
        return False

    def hash_into(self, hasher: _Hash) -> None:
        """Feed `hasher` what is read, in the thread that reads it. Nothing may have been read yet."""
        self._hasher = hasher

    async def begin(self) -> None:
        """Read the first chunk, so that a drive that is gone is told before a byte is promised. Raises Unavailable."""
        if self._next is None:
            self._ahead()
        if self._next is not None:
            await waited(self._next)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._next is None:
            self._ahead()
        while (reading := self._next) is not None:
            if self._closed:
                raise Unavailable(f"blob {self.digest} was closed before its end")
            chunk = await waited(reading)
            self._ahead()
            yield chunk

    def _ahead(self) -> None:
        piece = None if self._closed else next(self._pieces, None)
        self._next = None
        if piece is not None:
            self._next = self._reading.begin(partial(self._read, *piece))

    def _read(self, file: Readable, offset: int, length: int) -> bytes:
        chunk = self._reading.read(file, offset, length)
        if self._hasher is not None:
            self._hasher.update(chunk)
        return chunk

    async def aclose(self) -> None:
        self._closed = True
        reading = self._next
        if reading is not None and not reading.done():
            with contextlib.suppress(Unavailable):
                await waited(reading)
        if reading is not None and reading.done() and not reading.cancelled():
            reading.exception()


def _pieces(extents: Sequence[Extent], start: int, end: int, chunk: int) -> Iterator[tuple[Readable, int, int]]:
    """Give (file, offset, length), at most `chunk` each, of the bytes `start` to `end` of what `extents` hold."""
    begin = 0
    for extent in extents:
        low, high = max(start, begin), min(end, begin + extent.size)
        for at in range(low, high, chunk):
            yield extent.file, extent.offset + at - begin, min(chunk, high - at)
        begin += extent.size
