"""The files of one store: spools made, reopened and removed, blobs put in their place, opened and set aside.

Everything here blocks and belongs in threads. It knows nothing of the catalog; the order of both is `store`'s.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from proxy.oci.digest import Digest
from proxy.oci.names import Repository
from proxy.store.coherence import Coherence
from proxy.store.disk import Disk
from proxy.store.errors import CommitRefused, StoreBusy
from proxy.store.evict import Volume
from proxy.store.layout import Layout
from proxy.store.record import StateRecord
from proxy.store.records import Intent, Proof
from proxy.store.spool import Spool

ATTACHED_SECONDS = 15.0
_COPY = 8 << 20


class InUse(Exception):
    """A spool belongs to an attempt that runs in another process."""


class CommitNote(msgspec.Struct, frozen=True):
    """What the catalog is about to be told of a verified spool. `media_type`: of a manifest, else None."""

    size: int
    repository: tuple[str, str]
    proof: Proof
    public: bool
    media_type: str | None


_decode_note = msgspec.json.Decoder(CommitNote).decode


class Files:
    """See the module. `_names` is held while a blob's name changes hands, so that no good file is set aside.

    The methods that take it belong to threads of their own, never to the event loop.
    """

    def __init__(self, root: Path, disk: Disk) -> None:
        self.layout = Layout(root)
        self.disk = disk
        self._boot = disk.boot_id()
        self._threads = threading.Lock()

    def prepare(self) -> None:
        """Make the folders that are missing, durably."""
        grown: dict[Path, None] = {}
        self.layout.root.parent.mkdir(parents=True, exist_ok=True)
        for folder in self.layout.folders():
            if self.disk.make_folder(folder):
                grown[folder.parent] = None
        for folder in grown:
            self.disk.fsync_folder(folder)

    def lock(self) -> int:
        """Return a descriptor that holds the folder for this process. Raises StoreBusy."""
        fd = self.disk.open_or_create(self.layout.owner_lock)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.disk.truncate(fd, 0)
            self.disk.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise StoreBusy(
                f"data folder {self.layout.root} belongs to process {owner}: stop it, or give another data folder"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        return fd

    def wait_for_attached(self) -> None:
        """Return when no process is attached any more: an owner that was killed may have left some behind.

        Raises StoreBusy after `ATTACHED_SECONDS`.
        """
        deadline = time.monotonic() + ATTACHED_SECONDS
        fd = self.disk.open_or_create(self.layout.attached_lock)
        try:
            while not _locked(fd, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise StoreBusy(
                        f"workers of an earlier mirror still use the data folder {self.layout.root}: stop them"
                    )
                time.sleep(0.05)
        finally:
            os.close(fd)

    def attach(self) -> int:
        """Return a descriptor that keeps the next owner waiting while this process works in the folder."""
        fd = self.disk.open_or_create(self.layout.attached_lock)
        fcntl.flock(fd, fcntl.LOCK_SH)
        return fd

    def make_coherence(self) -> Coherence:
        """Make the table that keeps the caches of all processes right, anew."""
        self.disk.unlink(self.layout.coherence)
        fd = self.disk.create(self.layout.coherence)
        try:
            return Coherence.create(fd)
        finally:
            os.close(fd)

    def share_coherence(self) -> Coherence:
        """Open the table that the owner has made."""
        fd = self.disk.open(self.layout.coherence)
        try:
            return Coherence(fd)
        finally:
            os.close(fd)

    def follow_spool(self, digest: Digest, generation: int) -> tuple[int, StateRecord] | None:
        """Open a spool that another process writes, to read: its descriptor and its record. None if it is gone."""
        try:
            fd = os.open(self.layout.spool(digest, generation), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        path, record = self.layout.state(digest, generation), None
        try:
            record = StateRecord.open(self.disk, path, digest, generation, self._boot, writable=False)
            return None if record is None else (fd, record)
        finally:
            if record is None:
                os.close(fd)

    def copy_spool(self, digest: Digest, generation: int, spool: Spool) -> None:
        """Write to `spool` what is certain of another process's spool, which may still grow."""
        followed = self.follow_spool(digest, generation)
        if followed is None:
            return
        fd, record = followed
        try:
            progress = record.progress()
            if progress is not None and progress.size is not None:
                spool.size = progress.size
            position, end = 0, min(record.trusted(), os.fstat(fd).st_size)
            while position < end and (part := os.pread(fd, min(_COPY, end - position), position)):
                spool.write(position, part)
                position += len(part)
        finally:
            record.close()
            os.close(fd)

    def create_spool(
        self, digest: Digest, generation: int, size: int | None, repository: Repository, copied: int = 0
    ) -> Spool:
        """Make an empty spool and its record. Leaves nothing behind when it fails."""
        path = self.layout.spool(digest, generation)
        try:
            record = self.create_record(digest, generation)
            try:
                fd = self.disk.create(path)
            except BaseException:
                record.close()
                raise
        except BaseException:
            self.remove_spool(digest, generation)
            raise
        return Spool(
            disk=self.disk,
            path=path,
            fd=fd,
            record=record,
            digest=digest,
            generation=generation,
            repository=repository,
            size=size,
            copied=copied,
        )

    def create_record(self, digest: Digest, generation: int) -> StateRecord:
        """Make the record of a new spool, and hold it."""
        return StateRecord.create(self.disk, self.layout.state(digest, generation), digest, generation, self._boot)

    def reopen_spool(self, intent: Intent) -> Spool | None:
        """Open the spool of an interrupted attempt, cut to the bytes that are certain; None if there are none.

        Raises InUse when the attempt runs, in another process.
        """
        path = self.layout.spool(intent.digest, intent.generation)
        record = self._record(intent)
        if record is None:
            return None
        if not record.hold():
            record.close()
            raise InUse
        try:
            fd = self.disk.open(path)
        except FileNotFoundError:
            record.close()
            return None
        contiguous = record.trusted()
        if not 0 < contiguous <= os.fstat(fd).st_size:
            os.close(fd)
            record.close()
            return None
        progress = record.progress()
        size = progress.size if progress is not None and progress.size is not None else intent.size
        spool = Spool(
            disk=self.disk,
            path=path,
            fd=fd,
            record=record,
            digest=intent.digest,
            generation=intent.generation,
            repository=intent.repository,
            size=size,
            contiguous=contiguous,
        )
        self.disk.truncate(fd, contiguous)
        return spool

    def trusted(self, intent: Intent) -> int:
        """Return how many bytes of an interrupted spool are certain."""
        record = self._record(intent)
        if record is None:
            return 0
        try:
            size = self.layout.spool(intent.digest, intent.generation).stat().st_size
            return trusted if (trusted := record.trusted()) <= size else 0
        except FileNotFoundError:
            return 0
        finally:
            record.close()

    def note(self, intent: Intent) -> CommitNote | None:
        """Return the note of a commit that had begun, if the bytes are there, in the spool or in their place."""
        record = self._record(intent)
        if record is None:
            return None
        try:
            raw = record.note()
            note = _decode_note(raw) if raw else None
        except msgspec.MsgspecError:
            return None
        finally:
            record.close()
        if note is None:
            return None
        for path in (self.layout.spool(intent.digest, intent.generation), self.layout.blob(intent.digest)):
            with suppress(FileNotFoundError):
                if path.stat().st_size == note.size:
                    return note
        return None

    def seal(self, spool: Spool, note: CommitNote) -> None:
        """Make a verified spool durable, with the note of its commit. Raises CommitRefused."""
        length = os.fstat(spool.fd).st_size
        if not length == spool.contiguous == note.size:
            raise CommitRefused(
                f"spool of {spool.digest} holds {spool.contiguous} bytes in a file of {length}, not the {note.size} "
                "that were verified: it must be fetched again"
            )
        spool.seal(msgspec.json.encode(note))

    def install(self, *sealed: tuple[Digest, int]) -> None:
        """Give sealed spools, by digest and generation, their final names, durably. Nothing to do for one that has it.

        Raises FileNotFoundError.
        """
        shelves = {self.layout.blob(digest).parent for digest, _ in sealed}
        for folder in {shelf.parent for shelf in shelves if self.disk.make_folder(shelf)}:
            self.disk.fsync_folder(folder)
        with self._names():
            for digest, generation in sealed:
                target = self.layout.blob(digest)
                try:
                    self.disk.rename(self.layout.spool(digest, generation), target)
                except FileNotFoundError:
                    if not target.exists():
                        raise
        for shelf in shelves:
            self.disk.fsync_folder(shelf)
        self.disk.fsync_folder(self.layout.ingest)

    def remove_spool(self, digest: Digest, generation: int) -> None:
        """Remove a spool and its record, whichever of them is there."""
        self.disk.unlink(self.layout.spool(digest, generation))
        self.disk.unlink(self.layout.state(digest, generation))

    def remove_interrupted(self, intent: Intent) -> bool:
        """As `remove_spool`; False, and nothing is removed, while another process has the attempt."""
        record = self._record(intent)
        if record is None:
            self.remove_spool(intent.digest, intent.generation)
            return True
        try:
            if not record.hold():
                return False
            self.remove_spool(intent.digest, intent.generation)
        finally:
            record.close()
        return True

    def in_use(self, intent: Intent) -> bool:
        """Tell whether a process has the attempt."""
        record = self._record(intent)
        if record is None:
            return False
        try:
            return not record.hold()
        finally:
            record.close()

    def ingested(self) -> list[str]:
        """Return the names of the spools and records that are there."""
        return [name for name in os.listdir(self.layout.ingest) if not name.endswith(".lock")]

    def sweep_ingest(self, keep: list[Intent], found: list[str] | None = None) -> int:
        """Remove what no intent speaks of (of what was `found`; None: of all); return how many files that were."""
        known = set()
        for intent in keep:
            known.add(self.layout.spool(intent.digest, intent.generation).name)
            known.add(self.layout.state(intent.digest, intent.generation).name)
        strays = [name for name in (os.listdir(self.layout.ingest) if found is None else found) if name not in known]
        for name in strays:
            self.disk.unlink(self.layout.ingest / name)
        return len(strays)

    def volume(self) -> Volume:
        """Return how large the volume is, what is free for us, and what the spools take of it."""
        stats = os.statvfs(self.layout.root)
        spools = 0
        for entry in os.scandir(self.layout.ingest):
            with suppress(FileNotFoundError):
                spools += entry.stat(follow_symlinks=False).st_blocks * 512
        return Volume(stats.f_blocks * stats.f_frsize, stats.f_bavail * stats.f_frsize, spools)

    def has_blob(self, digest: Digest) -> bool:
        return self.layout.blob(digest).exists()

    def open_blob(self, digest: Digest) -> int | None:
        """Return a descriptor to read a blob from, None when there is no file."""
        try:
            return os.open(self.layout.blob(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None

    def set_aside(self, path: Path, inode: int) -> Path | None:
        """Move a wrong file to quarantine and return where; None if another file has taken its place meanwhile."""
        target = self.layout.quarantine / f"{path.name}.{time.time_ns()}"
        with self._names():
            try:
                if path.stat(follow_symlinks=False).st_ino != inode:
                    return None
                self.disk.rename(path, target)
            except FileNotFoundError:
                return None
        self.disk.fsync_folder(self.layout.quarantine)
        self.disk.fsync_folder(path.parent)
        return target

    @contextmanager
    def _names(self) -> Iterator[None]:
        """Keep other threads and processes from giving or taking a blob's name meanwhile."""
        with self._threads:
            fd = self.disk.open_or_create(self.layout.names_guard)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)

    def _record(self, intent: Intent) -> StateRecord | None:
        path = self.layout.state(intent.digest, intent.generation)
        return StateRecord.open(self.disk, path, intent.digest, intent.generation, self._boot)


def _locked(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
