"""The state of an import that goes on: what of each volume is done with, and slices that wait for their others.

It lies in DATA/bundles/imports/<hash of the plan>/: the plan and its signature, `progress` (a journal of JSON lines)
and `slices/`. What the journal says of a blob in the store is checked there again. Blocking: for threads. One process
has a state at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import msgspec

from proxy.store.disk import Disk
from sync.bundle.errors import Damaged, Refused
from sync.bundle.layout import Entry
from sync.bundle.opened import Bundle
from sync.bundle.plan import Slice
from sync.bundle.volume import Volume

CHUNK = 1 << 20
CHECKPOINT_BYTES = 64 << 20
OLD_SECONDS = 30 * 86400.0

_PLAN, _SIGNATURE, _PROGRESS, _SLICES, _LOCK = "plan", "plan.sig", "progress", "slices", "lock"


class _Line(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """Volume `v` is done up to byte `e`; or of the slice `s` (blob, offset) so many bytes are copied, durably."""

    v: int = 0
    e: int = 0
    s: tuple[int, int] | None = None
    c: int = 0


_decode = msgspec.json.Decoder(_Line).decode


class StagedSlice:
    """A file that holds a slice from its first byte on; a Readable."""

    def __init__(self, path: Path, label: str) -> None:
        self.path = path
        self.label = label
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, length: int) -> bytes:
        """Return these bytes. Raises Damaged where the file ends before, OSError."""
        parts = []
        while length:
            part = os.pread(self._file, length, offset)
            if not part:
                raise Damaged(f"{self.label} was cut off at byte {offset}: remove {self.path} and import again")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close the file. It may be closed twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class State:
    """Make it with `open`. done: up to which byte each volume was verified, and is stored or set aside."""

    def __init__(self, folder: Path, disk: Disk, lock: int) -> None:
        self.folder = folder
        self.done: dict[int, int] = {}
        self._copied: dict[tuple[int, int], int] = {}
        self._disk = disk
        self._lock = lock
        self._journal = -1
        self._end = 0
        self._writing = threading.Lock()
        self._staged: list[StagedSlice] = []

    @classmethod
    def open(cls, imports: Path, bundle: Bundle, disk: Disk) -> Self:
        """Take up the import of a bundle, or begin it; what was set aside is added to `bundle.staged`.

        Raises Refused where another process imports it, OSError.
        """
        folder = imports / bundle.name.hex
        _make(folder / _SLICES, disk)
        lock = _locked(folder)
        if lock is None:
            raise Refused("another import of this bundle is under way here: wait for its end")
        state = cls(folder, disk, lock)
        try:
            state._begin(bundle)
        except BaseException:
            state.close()
            raise
        return state

    def note(self, volume: int, end: int, *, durable: bool) -> None:
        """Note that a volume is done up to this byte; `durable`: survive a power loss, too."""
        self.done[volume] = max(end, self.done.get(volume, 0))
        self._write(_Line(v=volume, e=end), durable=durable)

    def stage(self, volume: Volume, entry: Entry, part: Slice, told: Callable[[int], None]) -> StagedSlice:
        """Copy a slice out of a volume and verify it. `told` hears of bytes read. Raises Damaged, OSError."""
        path, partial = self._path(part), self._path(part).with_suffix(".partial")
        file = self._disk.open_or_create(partial)
        try:
            begin = min(self._copied.get((part.blob, part.offset), 0), os.fstat(file).st_size)
            hasher = hashlib.sha256()
            for at in range(0, begin, CHUNK):
                hasher.update(os.pread(file, min(CHUNK, begin - at), at))
            synced = begin
            for at in range(begin, part.size, CHUNK):
                chunk = volume.read(entry.data + at, min(CHUNK, part.size - at))
                hasher.update(chunk)
                self._disk.pwrite(file, chunk, at)
                told(len(chunk))
                if at + len(chunk) - synced >= CHECKPOINT_BYTES:
                    self._disk.fdatasync(file)
                    synced = at + len(chunk)
                    self._write(_Line(s=(part.blob, part.offset), c=synced), durable=True)
            if hasher.hexdigest() != part.sha256:
                self._copied.pop((part.blob, part.offset), None)
                self._disk.unlink(partial)
                volume.check_blob(entry)
                raise Damaged(f"{volume.label}: what was copied of {volume.describe(entry)} has changed: import again")
            self._disk.truncate(file, part.size)
            self._disk.fdatasync(file)
        finally:
            os.close(file)
        self._disk.rename(partial, path)
        self._disk.fsync_folder(path.parent)
        return self._kept(path, f"{volume.label}, as it was set aside")

    def drop(self, slices: list[StagedSlice]) -> None:
        """Remove slices whose blob is stored."""
        for one in slices:
            one.close()
            self._disk.unlink(one.path)

    def remove(self) -> None:
        """Remove all of it: the import is over."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Let others have it."""
        for one in self._staged:
            one.close()
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1
        os.close(self._lock)

    def _begin(self, bundle: Bundle) -> None:
        for name, body in ((_PLAN, bundle.sealed.body), (_SIGNATURE, bundle.signature)):
            path = self.folder / name
            if body is not None and not (path.exists() and path.read_bytes() == body):
                path.write_bytes(body)
        self._journal = self._disk.open_or_create(self.folder / _PROGRESS)
        self._read_journal()
        for part in bundle.plan.slices:
            path = self._path(part)
            if path.exists() and path.stat().st_size == part.size:
                label = f"the slice {part.offset} of {bundle.plan.blobs[part.blob].digest}, as it was set aside"
                bundle.staged[part.blob, part.offset] = self._kept(path, label)

    def _read_journal(self) -> None:
        """Read the lines that are whole; what a crash has left of the last one is written over."""
        text = (self.folder / _PROGRESS).read_bytes()
        for line in text.splitlines(keepends=True):
            try:
                read = _decode(line) if line.endswith(b"\n") else None
            except msgspec.MsgspecError:
                read = None
            if read is None:
                break
            self._end += len(line)
            if read.s is not None:
                self._copied[read.s] = read.c
            else:
                self.done[read.v] = max(read.e, self.done.get(read.v, 0))
        self._disk.truncate(self._journal, self._end)

    def _write(self, line: _Line, *, durable: bool) -> None:
        body = msgspec.json.encode(line) + b"\n"
        with self._writing:
            self._disk.pwrite(self._journal, body, self._end)
            self._end += len(body)
        if durable:
            self._disk.fdatasync(self._journal)

    def _kept(self, path: Path, label: str) -> StagedSlice:
        staged = StagedSlice(path, label)
        self._staged.append(staged)
        return staged

    def _path(self, part: Slice) -> Path:
        return self.folder / _SLICES / f"{part.blob}.{part.offset}.slice"


def old_states(imports: Path, now: float) -> Iterator[str]:
    """Remove the states that nobody went on with for OLD_SECONDS, and yield the hashes of their plans."""
    for folder in sorted(imports.iterdir()) if imports.is_dir() else ():
        try:
            touched = (folder / _PROGRESS).stat().st_mtime
        except OSError:
            touched = folder.stat().st_mtime
        if now - touched < OLD_SECONDS:
            continue
        lock = _locked(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
            yield folder.name


def discard(imports: Path, name: str) -> bool:
    """Remove the state of an import that is over or given up; tell whether it is gone: another process may have it."""
    folder = imports / name
    if not folder.is_dir():
        return True
    lock = _locked(folder)
    if lock is None:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
    return True


def _make(folder: Path, disk: Disk) -> None:
    """Make a folder and those above it that the data folder does not have yet, for this user alone."""
    if not folder.parent.exists():
        _make(folder.parent, disk)
    if disk.make_folder(folder):
        disk.fsync_folder(folder.parent)


def _locked(folder: Path) -> int | None:
    """Return what locks the folder; None where another has it, or has removed it just now."""
    try:
        file = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file).st_nlink:
            return file
    os.close(file)
    return None
