"""Writing a volume: stored blobs are read, verified, and put between what else it has. What follows is `outflow`'s.

Every byte follows from the plan (`layout`); a stored blob that is not what it should be ends the writing and is named.
Which volumes are written, and what is done about a wrong blob, is the caller's.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from proxy.oci.digest import Digest
from sync.bundle import layout
from sync.bundle.errors import Interrupted
from sync.bundle.journal import Mark
from sync.bundle.layout import BlobPart, DocumentPart, Entry, OffsetsPart, PlanPart, SignaturePart, VolumePart
from sync.bundle.outflow import BUFFER, Outflow, open_direct
from sync.bundle.plan import Plan, Sealed, Slice

if TYPE_CHECKING:
    from hashlib import _Hash

STEP = 32 << 20
"""So often it is noted how far a volume is. What comes meanwhile is at most as much again: a kill repeats 64 MiB."""

_SPOILT = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.EISDIR, errno.ELOOP})


class WrongBlob(Exception):
    """A stored blob is gone (`inode` None) or not what it should be; nothing of the volume from `start` on counts."""

    def __init__(self, digest: Digest, inode: int | None, start: int) -> None:
        super().__init__(str(digest))
        self.digest = digest
        self.inode = inode
        self.start = start


@dataclass(frozen=True, slots=True)
class Work:
    """What writing a volume needs: the plan, the bodies of its documents, where blobs lie, and what ends it early.

    told: hears how many more bytes were read or written, in any thread.
    """

    sealed: Sealed
    signature: bytes | None
    documents: tuple[bytes, ...]
    volume: int
    blob_path: Callable[[Digest], Path]
    told: Callable[[int], None] = lambda count: None
    stop: threading.Event = field(default_factory=threading.Event)
    step: int = STEP

    def entries(self) -> Iterator[Entry]:
        """Yield what the volume is made of."""
        return layout.entries(self.sealed, len(self.signature or b""), self.volume)


def hash_slices(work: Work, plan: Plan) -> Plan:
    """Return the plan with the hashes of its slices. Reads the blobs that are cut, and verifies them.

    Raises WrongBlob, Interrupted, OSError.
    """
    hashed: list[Slice] = []
    buffer = memoryview(bytearray(BUFFER))
    with ThreadPoolExecutor(1, thread_name_prefix="export") as beside:
        for place in dict.fromkeys(one.blob for one in plan.slices):
            whole = layout.digest_at(plan, place).hasher()
            with _Stored(work, plan, place, 0) as stored:
                for one in layout.slices_of(plan, place):
                    part = hashlib.sha256()
                    at, end = one.offset, one.offset + one.size
                    while at < end:
                        count = stored.read(buffer[: end - at], at)
                        hashing = beside.submit(whole.update, buffer[:count])
                        part.update(buffer[:count])
                        hashing.result()
                        at += count
                        work.told(count)
                    hashed.append(msgspec.structs.replace(one, sha256=part.hexdigest()))
                if not layout.digest_at(plan, place).matches(whole):
                    raise stored.wrong()
    return msgspec.structs.replace(plan, slices=tuple(hashed))


def write_volume(work: Work, path: Path, mark: Mark | None, reached: Callable[[Mark], None]) -> str:
    """Write a volume to `path`, from `mark` on if that fits what is there; durable on return, with its hash.

    reached: hears in another thread what is on the disk by now.

    Raises:
        WrongBlob: a stored blob is not what the plan says.
        Interrupted: `work.stop` was set; what was reached stays.
        OSError: the disk refuses.
    """
    with ExitStack() as opened:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        opened.callback(os.close, file)
        opened.enter_context(_named(path))
        begun = _Begun.at(work, file, mark)
        os.ftruncate(file, begun.offset)
        direct = open_direct(path)
        if direct is not None:
            opened.callback(os.close, direct)

        def marked(offset: int, hash: str) -> None:
            reached(Mark(work.volume, offset, hash))

        out = Outflow(file, direct, begun.offset, begun.hasher, work.step, marked, work.told)
        opened.callback(out.close)
        end = 0
        for entry in work.entries():
            end = entry.end
            if end > begun.offset:
                _write_entry(work, entry, begun, out)
        out.put(end, bytes(layout.END))
        return out.finish()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let errors of the disk tell the file: those of an open one do not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@dataclass(slots=True)
class _Begun:
    """What a volume has already: bytes, their hash, and that of the blob in whose midst they end."""

    offset: int
    hasher: _Hash
    blob: _Hash | None

    @classmethod
    def at(cls, work: Work, file: int, mark: Mark | None) -> _Begun:
        """Hash what is there up to the mark; where it is something else, the volume is begun anew."""
        nothing = cls(0, hashlib.sha256(), None)
        if mark is None:
            return nothing
        hasher = hashlib.sha256()
        inner: _Hash | None = None
        data = mark.offset
        for entry in work.entries():
            if entry.data < mark.offset < entry.data + entry.size and isinstance(entry.part, BlobPart):
                inner, data = _expected(work.sealed.plan, entry.part)[0], entry.data
                break
            if entry.start >= mark.offset:
                break
        buffer = memoryview(bytearray(BUFFER))
        at = 0
        while at < mark.offset:
            edge = data if at < data else mark.offset
            count = os.preadv(file, [buffer[: min(BUFFER, edge - at)]], at)
            if count == 0:
                return nothing
            hasher.update(buffer[:count])
            if inner is not None and at >= data:
                inner.update(buffer[:count])
            at += count
            work.told(count)
            _check_stop(work)
        if hasher.hexdigest() != mark.sha256:
            work.told(-mark.offset)
            return nothing
        return cls(mark.offset, hasher, inner)


class _Stored:
    """An open stored blob that must have the plan's size. `start`: see WrongBlob."""

    def __init__(self, work: Work, plan: Plan, place: int, start: int) -> None:
        self._work = work
        self._digest = layout.digest_at(plan, place)
        self._start = start
        self._path = work.blob_path(self._digest)
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise WrongBlob(self._digest, None, start) from None
        found = os.fstat(self._file)
        self._inode, self._size = found.st_ino, found.st_size
        if found.st_size != plan.blobs[place].size:
            os.close(self._file)
            raise self.wrong()

    def __enter__(self) -> _Stored:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def read(self, room: memoryview, at: int) -> int:
        """Fill `room` from that byte on; return how much came. Raises WrongBlob, Interrupted, OSError."""
        _check_stop(self._work)
        try:
            if at + len(room) < self._size:  # what comes next is on its way from the disk while this is hashed
                os.posix_fadvise(self._file, at + len(room), BUFFER, os.POSIX_FADV_WILLNEED)
            count = os.preadv(self._file, [room], at)
        except OSError as error:
            if error.errno in _SPOILT:
                raise self.wrong() from None
            error.filename = str(self._path)
            raise
        if count == 0:
            raise self.wrong()
        return count

    def wrong(self) -> WrongBlob:
        return WrongBlob(self._digest, self._inode, self._start)


def _write_entry(work: Work, entry: Entry, begun: _Begun, out: Outflow) -> None:
    out.put(entry.start, layout.header(entry, work.sealed.plan.created))
    if isinstance(entry.part, BlobPart):
        _write_blob(work, entry, entry.part, begun, out)
    else:
        out.put(entry.data, _body(work, entry))
    out.put(entry.data + entry.size, bytes(entry.end - entry.data - entry.size))


def _write_blob(work: Work, entry: Entry, part: BlobPart, begun: _Begun, out: Outflow) -> None:
    plan = work.sealed.plan
    hasher, expected = _expected(plan, part)
    skipped = max(0, begun.offset - entry.data)
    if skipped >= entry.size > 0:
        return
    if skipped and begun.blob is not None:
        hasher = begun.blob
    with _Stored(work, plan, part.blob, entry.start) as stored:
        at = skipped
        while at < entry.size:
            room = out.room(entry.size - at)
            count = stored.read(room, part.offset + at)
            hasher.update(room[:count])
            out.filled(count)
            at += count
        if hasher.hexdigest() != expected:
            raise stored.wrong()


def _body(work: Work, entry: Entry) -> bytes:
    match entry.part:
        case PlanPart():
            return work.sealed.body
        case SignaturePart():
            return work.signature or b""
        case VolumePart():
            return layout.volume_document(work.sealed, work.volume)
        case DocumentPart(index):
            return work.documents[index]
        case OffsetsPart():
            return layout.offsets_document(work.sealed, len(work.signature or b""), work.volume)
        case BlobPart():
            raise ValueError(f"{entry.name} is a blob")


def _expected(plan: Plan, part: BlobPart) -> tuple[_Hash, str]:
    """Return what hashes a blob or a slice of one, and what must come out."""
    if part.whole:
        digest = layout.digest_at(plan, part.blob)
        return digest.hasher(), digest.hex
    found = layout.slice_at(plan, part.blob, part.offset)
    assert found is not None, "the layout of a plan has the slices of that plan"
    return hashlib.sha256(), found.sha256


def _check_stop(work: Work) -> None:
    if work.stop.is_set():
        raise Interrupted("the export was stopped: the same command goes on where it ended")
