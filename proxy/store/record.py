"""The state record of a spool: what may be believed of its bytes, by this process, another, or after a crash.

A small file beside the spool, mapped into memory, so that publishing costs microseconds. It holds

    header     whose spool this is; written once
    durable    two slots: how many bytes from offset 0 survived an fdatasync, so also survive a power loss
    progress   two slots: spans, watermarks and verdict, and the boot of the machine they are true for
    note       behind the mapped page: what a commit is about to record in the catalog (JSON)

Whoever writes the spool holds a lock (flock) on it, which goes with the process: what is locked is alive.

Each part carries its own checksum. A slot is written while the other stays good, so that neither a reader
nor a kill between two bytes ever sees half a record. Never is anything inferred from a file's size.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self
from uuid import UUID

from proxy.oci.digest import Digest
from proxy.store.disk import Disk
from proxy.store.extents import Extents

Verdict = Literal["running", "verified", "corrupt", "died"]

MAX_EXTENTS = 64
_VERDICTS: tuple[Verdict, ...] = ("running", "verified", "corrupt", "died")
_CODES = {verdict: code for code, verdict in enumerate(_VERDICTS)}
_PAGE = 4096
_MAGIC = b"ENTSPOOL"
_VERSION = 1
_HEADER = struct.Struct("<8sIQ136s")
_DURABLE = struct.Struct("<QQ")
_PROGRESS = struct.Struct("<Q16sqQQdII")
_SPANS = tuple(struct.Struct(f"<{2 * count}Q") for count in range(MAX_EXTENTS + 1))
_CHECK = struct.Struct("<II")
_DURABLE_SLOTS = (256, 320)
_PROGRESS_SLOTS = (512, 2048)


@dataclass(frozen=True, slots=True)
class Progress:
    """What was last published. Offsets and `size` (None while unknown) are bytes, `heartbeat` monotonic seconds.

    boot: of the machine when this was written; under another one the page cache that it tells of is gone.
    """

    boot: str
    size: int | None
    contiguous: int
    releasable: int
    verdict: Verdict
    heartbeat: float
    extents: Extents


class StateRecord:
    """One open state file. Not safe for concurrent writers: the spool's lock guards it."""

    def __init__(self, disk: Disk, fd: int, boot: str, *, writable: bool = True) -> None:
        self._disk = disk
        self._fd = fd
        self._map = mmap.mmap(fd, _PAGE, prot=mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
        self._boot = UUID(boot).bytes
        self._progress_sequence = 0
        self._durable_sequence = 0

    @classmethod
    def create(cls, disk: Disk, path: Path, digest: Digest, generation: int, boot: str) -> Self:
        """Make the state file of a new spool. Its page is allocated, as a full disk must not break the mapping."""
        fd = disk.create(path)
        try:
            header = _HEADER.pack(_MAGIC, _VERSION, generation, digest.encode())
            page = bytearray(_PAGE)
            _seal(page, 0, header)
            disk.pwrite(fd, page, 0)
            record = cls(disk, fd, boot)
            record.hold()
            return record
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def open(
        cls, disk: Disk, path: Path, digest: Digest, generation: int, boot: str, *, writable: bool = True
    ) -> Self | None:
        """Open the state file of an earlier spool, or of another process's; None when none can be read."""
        try:
            fd = disk.open(path) if writable else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if os.fstat(fd).st_size < _PAGE:
            os.close(fd)
            return None
        record = cls(disk, fd, boot, writable=writable)
        expected = _HEADER.pack(_MAGIC, _VERSION, generation, digest.encode())
        if _unseal(record._map, 0) != expected:
            record.close()
            return None
        progress = record._newest(_PROGRESS_SLOTS)
        durable = record._newest(_DURABLE_SLOTS)
        record._progress_sequence = progress[0] if progress else 0
        record._durable_sequence = durable[0] if durable else 0
        return record

    def hold(self) -> bool:
        """Take the spool for this process until `close`; False when another has it, or the record lost its name."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return os.fstat(self._fd).st_nlink > 0

    def publish(self, size: int | None, releasable: int, verdict: Verdict, heartbeat: float, extents: Extents) -> None:
        """Replace the progress. Beyond MAX_EXTENTS spans the last are left out: claiming less is safe."""
        self._progress_sequence += 1
        bounds = extents.bounds(MAX_EXTENTS)
        count = len(bounds) // 2
        head = _PROGRESS.pack(
            self._progress_sequence,
            self._boot,
            -1 if size is None else size,
            extents.contiguous(),
            releasable,
            heartbeat,
            _CODES[verdict],
            count,
        )
        _seal(self._map, _PROGRESS_SLOTS[self._progress_sequence & 1], head + _SPANS[count].pack(*bounds))

    def progress(self) -> Progress | None:
        """Return what was last published, None if nothing readable was."""
        newest = self._newest(_PROGRESS_SLOTS)
        if newest is None:
            return None
        payload = newest[1]
        _, boot, size, contiguous, releasable, heartbeat, code, count = _PROGRESS.unpack_from(payload)
        bounds = _SPANS[count].unpack_from(payload, _PROGRESS.size)
        extents = Extents(zip(bounds[::2], bounds[1::2], strict=True))
        known = None if size < 0 else size
        return Progress(str(UUID(bytes=boot)), known, contiguous, releasable, _VERDICTS[code], heartbeat, extents)

    def mark_durable(self, length: int) -> None:
        """Record, durably, that bytes [0, length) were fdatasynced. Blocks for a sync."""
        self._durable_sequence += 1
        payload = _DURABLE.pack(self._durable_sequence, length)
        _seal(self._map, _DURABLE_SLOTS[self._durable_sequence & 1], payload)
        self._disk.sync_map(self._fd, self._map)

    def durable(self) -> int:
        """Return how many bytes from offset 0 on are known to have been fdatasynced."""
        newest = self._newest(_DURABLE_SLOTS)
        return _DURABLE.unpack(newest[1])[1] if newest else 0

    def trusted(self) -> int:
        """Return how many bytes from offset 0 on are right after a restart.

        In the boot that wrote them all that was written is in the page cache; after another, only what was synced.
        """
        progress = self.progress()
        if progress is not None and UUID(progress.boot).bytes == self._boot:
            return progress.contiguous
        return self.durable()

    def write_note(self, note: bytes) -> None:
        """Write the note of a commit; durable with the next `mark_durable`."""
        self._disk.pwrite(self._fd, _CHECK.pack(len(note), zlib.crc32(note)) + note, _PAGE)

    def begin_sync(self) -> None:
        """Begin what `sync` waits for."""
        self._disk.begin_write(self._fd)

    def sync(self) -> None:
        """Make the header and the note durable; what was only published needs no sync."""
        self._disk.fdatasync(self._fd)

    def note(self) -> bytes | None:
        """Return the note, None when none was written whole."""
        head = os.pread(self._fd, _CHECK.size, _PAGE)
        if len(head) < _CHECK.size:
            return None
        length, checksum = _CHECK.unpack(head)
        note = os.pread(self._fd, length, _PAGE + _CHECK.size)
        return note if note and len(note) == length and zlib.crc32(note) == checksum else None

    def close(self) -> None:
        """Unmap and close the file."""
        if self._fd >= 0:
            self._map.close()
            os.close(self._fd)
            self._fd = -1

    def _newest(self, slots: tuple[int, int]) -> tuple[int, bytes] | None:
        found: tuple[int, bytes] | None = None
        for slot in slots:
            payload = _unseal(self._map, slot)
            if payload:
                sequence = int.from_bytes(payload[:8], "little")
                if found is None or sequence > found[0]:
                    found = (sequence, payload)
        return found


def _seal(page: mmap.mmap | bytearray, offset: int, payload: bytes) -> None:
    end = offset + _CHECK.size + len(payload)
    page[offset:end] = _CHECK.pack(len(payload), zlib.crc32(payload)) + payload


def _unseal(page: mmap.mmap, offset: int) -> bytes | None:
    length, checksum = _CHECK.unpack_from(page, offset)
    start = offset + _CHECK.size
    if not 0 < length <= _PAGE - start:
        return None
    payload = page[start : start + length]
    return payload if zlib.crc32(payload) == checksum else None
