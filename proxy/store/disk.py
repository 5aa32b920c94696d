"""The only place that opens files for writing, syncs, renames and unlinks (SQLite's own files apart).

Everything that must survive a power loss passes through one `Disk`, so that a test can put one in
its place that forgets what was never synced. It decides nothing: the order of the calls is the store's.
All calls block; they belong in threads. Files are made 0600, folders 0700.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from pathlib import Path

FILE_MODE = 0o600
FOLDER_MODE = 0o700

_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin to write what is dirty, and wait for nothing
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class Disk:
    """File operations with their durability spelt out. Every method raises OSError as the system does."""

    def boot_id(self) -> str:
        """Return what names this boot of the machine: another value means that the page cache was lost."""
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()

    def make_folder(self, path: Path) -> bool:
        """Create a folder and say whether it was new. The caller syncs its parent."""
        try:
            path.mkdir(mode=FOLDER_MODE)
        except FileExistsError:
            return False
        return True

    def create(self, path: Path) -> int:
        """Create a file that does not exist and return its descriptor, open to read and write."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)

    def open(self, path: Path) -> int:
        """Open a file that exists to read and write."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def open_or_create(self, path: Path) -> int:
        """Open a file to read and write, making an empty one where there is none."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data).cast("B")
        while view:
            written = os.pwrite(fd, view, offset)
            offset += written
            view = view[written:]

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def fdatasync(self, fd: int) -> None:
        """Make a file's bytes and length durable, not its name."""
        os.fdatasync(fd)

    def begin_write(self, fd: int, offset: int = 0, length: int = 0) -> None:
        """Have the system begin to write bytes of a file (of length 0: all from there on), without waiting for it.

        Nothing is promised: `fdatasync` still has to be called, and then costs less. The bytes stay in memory.
        """
        if _sync_file_range is not None:
            _sync_file_range(fd, offset, length, _WRITE)

    def sync_map(self, fd: int, mapping: mmap.mmap) -> None:
        """Make the bytes durable that were written through a mapping of `fd`."""
        mapping.flush()
        os.fdatasync(fd)

    def fsync_folder(self, path: Path) -> None:
        """Make the names in a folder durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        """Move a file over whatever has the new name. Durable once both folders are synced."""
        os.rename(old, new)

    def unlink(self, path: Path) -> None:
        """Remove a name if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
