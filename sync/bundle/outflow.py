"""Bytes on their way to a file on a disk: a thread each hashes them, writes them, and waits for the disk.

They go past the page cache where the file system allows it, which takes the two cores a sixth less than through the
cache, and leaves in there what a mirror serves. What is written is `writing`'s.
"""

from __future__ import annotations

import errno
import mmap
import os
import queue
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

BUFFER = 2 << 20
BUFFERS = 8

_Mark = tuple[int, str]


def open_direct(path: Path) -> int | None:
    """Open a file for writing past the page cache; None where its file system has no such thing."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None


class Outflow:
    """The bytes of a file, from `begin` on, on their way to the disk. put, room and filled are for one thread.

    direct: the same file, as `open_direct` opens it. hasher: has hashed what is there before `begin`. reached: hears
    every `step` bytes, in another thread, how much is on the disk for certain, and the hash of that. told: hears how
    many more bytes were written.

    State: buffers that are free, full or hashed, the threads that hash, write and sync, and what went wrong in them.
    """

    def __init__(
        self,
        file: int,
        direct: int | None,
        begin: int,
        hasher: _Hash,
        step: int,
        reached: Callable[[int, str], None],
        told: Callable[[int], None],
    ) -> None:
        self._file = file
        self._direct = direct
        self._begin = begin
        self._hasher = hasher
        self._step = step
        self._reached = reached
        self._told = told
        self._written = begin
        self._free: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(mmap.mmap(-1, BUFFER))
        self._full: queue.SimpleQueue[tuple[mmap.mmap, int] | None] = queue.SimpleQueue()
        self._hashed: queue.SimpleQueue[tuple[mmap.mmap, int, _Mark | None] | None] = queue.SimpleQueue()
        self._buffer = self._free.get()
        self._used = 0
        self._error: BaseException | None = None
        self._threads = ThreadPoolExecutor(3, thread_name_prefix="export")
        self._hashing = self._threads.submit(self._hash)
        self._writing = self._threads.submit(self._write)

    def put(self, at: int, data: bytes) -> None:
        """Write what lies at this place of the volume, as far as that is not there yet."""
        rest = memoryview(data)[max(0, self._begin - at) :]
        while rest:
            room = self.room(len(rest))
            room[:] = rest[: len(room)]
            rest = rest[len(room) :]
            self.filled(len(room))

    def room(self, most: int) -> memoryview:
        """Return where up to `most` further bytes are to be put."""
        if self._used == BUFFER:
            self._full.put((self._buffer, self._used))
            self._buffer = self._free.get()
            self._used = 0
            if self._error is not None:
                raise self._error
        return memoryview(self._buffer)[self._used : min(BUFFER, self._used + most)]

    def filled(self, count: int) -> None:
        """Count as written so many bytes of the room."""
        self._used += count

    def finish(self) -> str:
        """Write the rest, make all durable, and return the hash of the volume."""
        self._full.put((self._buffer, self._used))
        self._full.put(None)
        self._hashing.result()
        self._writing.result()
        if self._error is not None:
            raise self._error
        os.fsync(self._file)
        return self._hasher.hexdigest()

    def close(self) -> None:
        """End the threads, whatever they were at."""
        self._full.put(None)
        self._threads.shutdown()

    def _hash(self) -> None:
        hashed = marked = self._begin
        while (item := self._full.get()) is not None:
            buffer, count = item
            mark = None
            try:
                if self._error is None:
                    self._hasher.update(memoryview(buffer)[:count])
                    hashed += count
                    if hashed - marked >= self._step:
                        marked = hashed
                        mark = marked, self._hasher.copy().hexdigest()
            except BaseException as error:
                self._error = error
            self._hashed.put((buffer, count, mark))
        self._hashed.put(None)

    def _write(self) -> None:
        syncing: Future[None] | None = None
        while (item := self._hashed.get()) is not None:
            buffer, count, mark = item
            try:
                if self._error is None:
                    self._store(memoryview(buffer)[:count])
                    if mark is not None:
                        if syncing is not None:
                            syncing.result()
                        syncing = self._threads.submit(self._sync, mark)
            except BaseException as error:
                self._error = error
            finally:
                self._free.put(buffer)
        try:
            if syncing is not None:
                syncing.result()
        except BaseException as error:
            self._error = self._error or error

    def _store(self, view: memoryview) -> None:
        while view:
            direct = None if (self._written | len(view)) % mmap.PAGESIZE else self._direct
            try:
                count = os.pwrite(self._file if direct is None else direct, view, self._written)
            except OSError as error:
                if direct is None or error.errno != errno.EINVAL:
                    raise
                self._direct = None
                continue
            self._written += count
            view = view[count:]
            self._told(count)

    def _sync(self, mark: _Mark) -> None:
        os.fdatasync(self._file)
        # What is on the disk is not read again soon; the pages serve what comes next, and leave others' in memory.
        os.posix_fadvise(self._file, 0, mark[0], os.POSIX_FADV_DONTNEED)
        self._reached(*mark)
