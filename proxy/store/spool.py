"""A spool: the file that one attempt at a blob is written to, with its state record. Knows nothing of hashing.

Methods block and belong in threads, but for `publish`, which takes microseconds. A spool may be closed while
a thread is inside one of them: the descriptor lives until that call is done, later calls raise StoreClosed.
Who wants the bytes for longer takes a descriptor with `dup`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from proxy.oci.digest import Digest
from proxy.oci.names import Repository
from proxy.store.disk import Disk
from proxy.store.errors import StoreClosed
from proxy.store.extents import Extents
from proxy.store.record import StateRecord, Verdict


class Spool:
    """`copied`: the generation that its first bytes were copied from, 0 for none.

    State: `reserved` (bytes of the quota that are kept for it by now), the extents written,
    the watermark published with them, whether its name is durable, and who uses it."""

    def __init__(
        self,
        *,
        disk: Disk,
        path: Path,
        fd: int,
        record: StateRecord,
        digest: Digest,
        generation: int,
        repository: Repository,
        size: int | None,
        contiguous: int = 0,
        copied: int = 0,
    ) -> None:
        self.digest = digest
        self.generation = generation
        self.repository = repository
        self.copied = copied
        self.path = path
        self.fd = fd
        self._disk = disk
        self._record = record
        self.reserved = 0
        self._size = size
        self._extents = Extents([(0, contiguous)])
        self._releasable = 0
        self._verdict: Verdict = "running"
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._named = False
        self._users = 0
        self._closed = False
        self._publish()

    @property
    def size(self) -> int | None:
        """The blob's size in bytes, None while no source has told it."""
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        with self._lock:
            self._size = size

    @property
    def contiguous(self) -> int:
        """How many bytes from offset 0 on were written without a gap."""
        return self._extents.contiguous()

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at `offset` and record it. Raises OSError as the disk does, StoreClosed."""
        with self._using() as fd:
            self._disk.pwrite(fd, data, offset)
            with self._lock:
                self._extents.add(offset, offset + len(data))
                self._publish()

    def begin_write(self, offset: int, length: int) -> None:
        """Have the system begin to bring to the disk what was written there. Raises StoreClosed."""
        with self._using() as fd:
            self._disk.begin_write(fd, offset, length)

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes at `offset`: fewer at the end of what was written. Raises StoreClosed."""
        with self._using() as fd:
            parts = []
            while length > 0 and (part := os.pread(fd, length, offset)):
                parts.append(part)
                offset += len(part)
                length -= len(part)
            return b"".join(parts)

    def checkpoint(self) -> None:
        """Make the bytes written so far survive a power loss, and record how many they are. Raises StoreClosed."""
        self._sync(None)

    def seal(self, note: bytes) -> None:
        """Checkpoint, and keep with the record what the commit that follows is about. Raises StoreClosed."""
        self._sync(note)

    def publish(self, releasable: int, verdict: Verdict) -> None:
        """Tell in the record how many bytes may be shown to readers, and what became of the attempt."""
        with self._lock:
            self._releasable, self._verdict = releasable, verdict
            if self.fd >= 0:
                self._publish()

    def dup(self) -> int:
        """Return a descriptor of the file that the caller owns. Raises StoreClosed."""
        with self._using() as fd:
            return os.dup(fd)

    def close(self) -> None:
        """Give up the file. What it holds and its record stay as they are."""
        with self._lock:
            self._closed = True
            self._release_unused()

    def _sync(self, note: bytes | None) -> None:
        with self._using() as fd, self._syncing:
            contiguous = self._extents.contiguous()
            self._disk.fdatasync(fd)
            if note is not None:
                self._record.write_note(note)
            self._record.mark_durable(contiguous)
            if not self._named:
                self._disk.fsync_folder(self.path.parent)
                self._named = True

    @contextmanager
    def _using(self) -> Iterator[int]:
        with self._lock:
            if self._closed:
                raise StoreClosed(f"spool {self.path.name} is closed: its fill is over")
            self._users += 1
        try:
            yield self.fd
        finally:
            with self._lock:
                self._users -= 1
                self._release_unused()

    def _publish(self) -> None:
        self._record.publish(self._size, self._releasable, self._verdict, monotonic(), self._extents)

    def _release_unused(self) -> None:
        if self._closed and self._users == 0 and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._record.close()
