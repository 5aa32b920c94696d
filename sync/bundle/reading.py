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

from proxy.cache.reader import FileReader
from proxy.oci.digest import Digest
from proxy.oci.errors import Unavailable
from sync.bundle.errors import Damaged
from sync.bundle.opened import Extent, Readable
from sync.bundle.volume import Volume

if TYPE_CHECKING:
    from hashlib import _Hash

READ_SECONDS = 60.0
AHEAD = 2 << 20
"""What is read before it is sent by sendfile, in bytes; as much again is read meanwhile."""
TOUCHED = 256 << 10
_log = logging.getLogger(__name__)

T = TypeVar("T")


class Reading:
    """Reads files of bundles in `threads` (None: the loop's own), and remembers which of them failed last.

    State: per file that failed, its label, the place that could not be read; it is forgotten once that place can
    be read: others may only be in the memory of the system.
    """

    def __init__(self, threads: Executor | None = None) -> None:
        self._threads = threads
        self._failed: dict[str, tuple[Readable, int, int]] = {}

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
            self._failed[file.label] = (file, offset, length)
            raise Unavailable(told) from error
        failed = self._failed.get(file.label)
        if failed is not None and offset <= failed[1] and failed[1] + failed[2] <= offset + length:
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
        places = {file.label: (file, 0, 1) for file in files}
        places |= dict(self._failed)
        problems = []
        for place in places.values():
            try:
                self.read(*place)
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
        self._extents = extents
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

    def stamps(self) -> tuple[tuple[int, int], ...] | None:
        """Return how the files are of which it is read (`Volume.stamp`); None where one of them cannot be told."""
        files = [extent.file for extent in self._extents]
        try:
            found = tuple(file.stamp for file in files if isinstance(file, Volume))
        except OSError:
            return None
        return found if len(found) == len(files) else None

    def by_sendfile(self) -> VolumeReader | None:
        """Return the same bytes to be sent from their file; None where they lie in several. Instead of reading it."""
        if len(self._extents) != 1 or not isinstance(file := self._extents[0].file, Volume):
            return None
        return VolumeReader(self._reading, file, self._extents[0].offset, self.digest, self.size, self.start, self.end)

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


class VolumeReader(FileReader):
    """A blob that lies in a volume in one piece, for sendfile.

    A thread reads what is next before it is sent: sendfile itself would make the event loop wait for a slow medium.
    """

    def __init__(
        self, reading: Reading, volume: Volume, origin: int, digest: Digest, size: int, start: int, end: int
    ) -> None:
        super().__init__(digest, volume.duplicate(), size, "hit")
        self.origin = origin
        self.start, self.end = start, end
        self._reading = reading
        self._volume = volume
        self._ready = start
        self._next: asyncio.Future[int] | None = None

    async def limit(self, position: int) -> int:
        """Return how far it was read into memory. Raises Unavailable where the volume cannot be read."""
        assert self.end is not None
        while self._ready <= position < self.end:
            self._ready = await waited(self._next or self._ahead(self._ready))
            self._next = self._ahead(self._ready) if self._ready < self.end else None
        return self._ready

    def _ahead(self, begin: int) -> asyncio.Future[int]:
        assert self.end is not None
        return self._reading.begin(partial(self._touch, begin, min(begin + AHEAD, self.end)))

    def _touch(self, begin: int, end: int) -> int:
        for at in range(begin, end, TOUCHED):
            self._reading.read(self._volume, self.origin + at, min(TOUCHED, end - at))
        return end

    async def aclose(self) -> None:
        ahead, self._next = self._next, None
        if ahead is not None:
            ahead.add_done_callback(lambda done: done.cancelled() or done.exception())
        await super().aclose()


def _pieces(extents: Sequence[Extent], start: int, end: int, chunk: int) -> Iterator[tuple[Readable, int, int]]:
    """Give (file, offset, length), at most `chunk` each, of the bytes `start` to `end` of what `extents` hold."""
    begin = 0
    for extent in extents:
        low, high = max(start, begin), min(end, begin + extent.size)
        for at in range(low, high, chunk):
            yield extent.file, extent.offset + at - begin, min(chunk, high - at)
        begin += extent.size
