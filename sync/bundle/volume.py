"""One volume of a bundle as a file: opened, read and compared with what its plan says. Blocking: for threads.

Nothing that the tar says is believed, see `layout`. What the volumes of a bundle are together is `opened`'s, whether a
signature is trusted is `keys`'.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, NoReturn, Self

import msgspec

from proxy.oci.digest import Digest
from sync.bundle import layout
from sync.bundle.errors import BundleError, Damaged, NotABundle, Refused
from sync.bundle.layout import BLOCK, BlobPart, DocumentPart, Entry, OffsetsPart, PlanPart, SignaturePart, VolumePart
from sync.bundle.plan import FORMAT, MAX_PLAN, MAX_VOLUMES, Sealed, read_plan

CHUNK = 1 << 20
MAX_SIGNATURE = 4096
SUFFIX = ".tar"

_BEGIN = layout.PLAN.encode() + b"\0"
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
"""How files of gzip, bzip2, xz and zstd begin."""
_MAGIC = slice(257, 265)
_NAME = slice(0, 100)
_SIZE = slice(124, 136)
_OCTAL = re.compile(rb"[0-7]{11}\0")
_NAMED_PLAN = re.compile(rb'"plan":"(sha256:[0-9a-f]{64})"')
_NAMED_WITHIN = 16 << 10
_REMEDY = "copy the volume again from where it was made, or make it anew there with entrepot export --recut"

_UNKNOWN: Mapping[Digest, Sealed] = MappingProxyType({})


class _Itself(msgspec.Struct):
    volume: Annotated[int, msgspec.Meta(ge=1, le=MAX_VOLUMES)]
    plan: str


_decode_itself = msgspec.json.Decoder(_Itself).decode


def _nobody(count: int) -> None:
    """Hear of bytes that were read, and do nothing about it."""


class Volume:
    """An open volume. `size`: the file's, in bytes; `signature`: the body of plan.sig, or None."""

    def __init__(self, file: int, path: Path, size: int) -> None:
        self._file = file
        self._offsets: array[int] | None = None
        self.path = path
        self.size = size
        self.label = shown(path.name)
        self.number = 0
        self.signature: bytes | None = None
        self.sealed: Sealed

    @classmethod
    def open(cls, path: Path, known: Mapping[Digest, Sealed] = _UNKNOWN) -> Self:
        """Open a volume and check its plan, signature entry and volume.json; the rest is for the check methods.

        known: plans that were read before, by their names; one of them is taken as it is, and not read again.

        Raises:
            NotABundle: it does not begin as a volume does.
            Damaged: it does, and the plan, or what follows it, is not as it must be.
            Refused: a newer version wrote it, or the plan is too large.
            OSError: it cannot be read.
        """
        # Not to wait for who writes to a pipe.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                raise NotABundle(f"{shown(str(path))} is no volume of a bundle: it is no file")
            volume = cls(file, path, found.st_size)
            volume._begin(known)
        except BaseException:
            os.close(file)
            raise
        return volume

    def read(self, offset: int, length: int) -> bytes:
        """Return these bytes. Raises Damaged where the file ends before, OSError."""
        parts = []
        while length:
            part = os.pread(self._file, length, offset)
            if not part:
                self._fail(f"it ends at byte {offset}, in the midst of what it must hold")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def duplicate(self) -> int:
        """Return a descriptor of the file that is the caller's to close. Raises OSError."""
        return os.dup(self._file)

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and time of the last change (ns) of the file now: equal ones tell that nobody wrote to it meanwhile."""
        now = os.fstat(self._file)
        return now.st_size, now.st_mtime_ns

    def entries(self) -> list[Entry]:
        """Return what must be in it, in the order of the file."""
        return list(self.walk())

    def walk(self) -> Iterator[Entry]:
        """Yield the same one by one, where there may be very many."""
        return layout.entries(self.sealed, self._signature_size, self.number)

    def data_offset(self, blob: int) -> int:
        """Return where in the file the bytes lie that it has of this blob, which must be one of its own."""
        if self._offsets is None:
            self._offsets = layout.data_offsets(self.sealed, self._signature_size, self.number)
        return self._offsets[blob - self.sealed.plan.volumes[self.number - 1].blob]

    def check_frame(self, entry: Entry) -> None:
        """Compare an entry's header and padding with what they must be. Raises Damaged, OSError."""
        head = layout.header(entry, self.sealed.plan.created)
        if self.read(entry.start, len(head)) != head:
            self._fail(f"the header of {self.describe(entry)} is not what it must be")
        padding = entry.end - entry.data - entry.size
        if padding and self.read(entry.data + entry.size, padding).count(0) != padding:
            self._fail(f"the padding after {self.describe(entry)} is not zero")

    def check_small(self, entry: Entry) -> None:
        """Compare the content of an entry that is no blob with what it must be. Raises Damaged, OSError."""
        match entry.part:
            case PlanPart():
                fits = self.read(entry.data, entry.size) == self.sealed.body
            case SignaturePart():
                fits = self.read(entry.data, entry.size) == self.signature
            case VolumePart():
                fits = self.read(entry.data, entry.size) == layout.volume_document(self.sealed, self.number)
            case DocumentPart(index):
                fits = self._hash(entry, hashlib.sha256(), _nobody) == self.sealed.plan.documents[index].sha256
            case OffsetsPart():
                expected = layout.offsets_document(self.sealed, self._signature_size, self.number)
                fits = self.read(entry.data, entry.size) == expected
            case BlobPart():
                raise ValueError(f"{entry.name} is a blob")
        if not fits:
            self._fail(f"{self.describe(entry)} is not what the plan says")

    def check_blob(self, entry: Entry, told: Callable[[int], None] = _nobody) -> None:
        """Hash a blob, or a slice of one; `told` hears how many more bytes were read. Raises Damaged, OSError."""
        if not isinstance(entry.part, BlobPart):
            raise ValueError(f"{entry.name} is no blob")
        expected, hasher = self._hash_of(entry.part)
        if self._hash(entry, hasher, told) != expected:
            self._fail(f"{self.describe(entry)} is not what the plan says: the hash of its bytes is another")

    def check_end(self) -> None:
        """Check that it ends where it must, with zeros. Raises Damaged, OSError."""
        size = layout.volume_size(self.sealed, self._signature_size, self.number)
        found = os.fstat(self._file).st_size
        if found != size:
            self._fail(f"it has {found} bytes instead of {size}: " + ("it is cut off" if found < size else "too many"))
        if any(self.read(size - layout.END, layout.END)):
            self._fail("the blocks at its end are not zero")

    def describe(self, entry: Entry) -> str:
        """Return what a person calls an entry: `blob sha256:…`, or which of its bytes."""
        if not isinstance(entry.part, BlobPart):
            return entry.name
        digest = self.sealed.plan.blobs[entry.part.blob].digest
        if entry.part.whole:
            return f"blob {digest}"
        return f"blob {digest} (bytes {entry.part.offset} to {entry.part.offset + entry.size - 1} of it)"

    def close(self) -> None:
        """Close the file. It may be closed twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @property
    def _signature_size(self) -> int:
        return len(self.signature or b"")

    def _begin(self, known: Mapping[Digest, Sealed]) -> None:
        """Read what a volume begins with, and compare it with what follows from it."""
        first = os.pread(self._file, BLOCK + 64, 0)
        if not _begins(first):
            raise _no_volume(self.path, first)
        size = self._size_at(0, layout.PLAN, MAX_PLAN)
        body = self.read(BLOCK, size)
        try:
            self.sealed = known.get(Digest.of(body)) or read_plan(body)
        except Damaged as error:
            self._fail(str(error))
        except Refused as error:
            if self._names_another(body, BLOCK + layout.padded(size)):
                self._fail("the plan is not the one that the volume names")
            raise Refused(f"{self.label}: {error}") from None
        at = BLOCK + layout.padded(size)
        if self.read(at, BLOCK)[_NAME].rstrip(b"\0") == layout.SIGNATURE.encode():
            size = self._size_at(at, layout.SIGNATURE, MAX_SIGNATURE)
            self.signature = self.read(at + BLOCK, size)
            at += BLOCK + layout.padded(size)
        self._read_itself(at)
        for entry in self.walk():
            if isinstance(entry.part, DocumentPart | BlobPart | OffsetsPart):
                break
            self.check_frame(entry)

    def _names_another(self, body: bytes, at: int) -> bool:
        """Tell whether the volume names another plan than it has, so that a newer format may be a flipped bit."""
        named = _NAMED_PLAN.search(os.pread(self._file, _NAMED_WITHIN, at))
        return named is not None and named[1].decode() != Digest.of(body)

    def _read_itself(self, at: int) -> None:
        body = self.read(at + BLOCK, self._size_at(at, layout.VOLUME, BLOCK))
        try:
            itself = _decode_itself(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._fail(f"{layout.VOLUME} cannot be read: {error}")
        if itself.plan != self.sealed.name:
            self._fail(f"its plan is {self.sealed.name}, and {layout.VOLUME} says that it must be {itself.plan[:160]}")
        if itself.volume > len(self.sealed.plan.volumes) or body != layout.volume_document(self.sealed, itself.volume):
            self._fail(f"{layout.VOLUME} is not what the plan says")
        self.number = itself.volume
        self.label = f"volume {self.number} ({shown(self.path.name)})"

    def _size_at(self, at: int, name: str, most: int) -> int:
        """Return the size that a header gives, of which nothing else is believed yet."""
        written = self.read(at, BLOCK)[_SIZE]
        size = int(written[:11], 8) if _OCTAL.fullmatch(written) else 0
        if not 0 < size <= most:
            self._fail(f"the header of {name} is not what it must be")
        return size

    def _hash(self, entry: Entry, hasher: hashlib._Hash, told: Callable[[int], None]) -> str:
        """Return the hash of an entry's bytes, read into one buffer."""
        buffer = memoryview(bytearray(min(CHUNK, entry.size)))
        offset, rest = entry.data, entry.size
        while rest:
            count = os.preadv(self._file, [buffer[: min(rest, CHUNK)]], offset)
            if not count:
                self._fail(f"it ends at byte {offset}, within {self.describe(entry)}")
            hasher.update(buffer[:count])
            told(count)
            offset += count
            rest -= count
        return hasher.hexdigest()

    def _hash_of(self, part: BlobPart) -> tuple[str, hashlib._Hash]:
        plan = self.sealed.plan
        if part.whole:
            digest = layout.digest_at(plan, part.blob)
            return digest.hex, digest.hasher()
        found = layout.slice_at(plan, part.blob, part.offset)
        if found is None:
            raise ValueError(f"the plan has no slice of blob {part.blob} at {part.offset}")
        return found.sha256, hashlib.sha256()

    def _fail(self, what: str) -> NoReturn:
        raise Damaged(f"{self.label}: {what}; {_REMEDY} {self.number or 'and its number'}")


def shown(name: str) -> str:
    """Return the name of a file, which a medium may have from anybody, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def find_volumes(paths: Sequence[Path]) -> list[Path]:
    """Return the volumes that are meant: files themselves; of a folder its *.tar that begin as a volume does.

    Raises NotABundle for a named file that is none, and for a folder without any; BundleError for a path that is not
    there; OSError.
    """
    found: list[Path] = []
    for path in paths:
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise BundleError(f"{shown(str(path))} is not there: is its drive mounted, and the name right?") from None
        if stat.S_ISDIR(mode):
            inside = sorted(one for one in path.iterdir() if one.suffix.lower() == SUFFIX and one.is_file())
            volumes = [one for one in inside if _begins(_first(one))]
            if not volumes:
                raise NotABundle(f"{shown(str(path))} holds no volume of a bundle (*{SUFFIX})")
            found += volumes
        elif _begins(first := _first(path)):
            found.append(path)
        else:
            raise _no_volume(path, first)
    return list(dict.fromkeys(found))


def _first(path: Path) -> bytes:
    """Return the first bytes of a file, nothing of what is none."""
    if not stat.S_ISREG(path.stat().st_mode):
        return b""
    with path.open("rb") as file:
        return file.read(BLOCK + 64)


def _no_volume(path: Path, first: bytes) -> NotABundle:
    why = f"it does not begin with {layout.PLAN}"
    if any(map(first.startswith, _COMPRESSED)):
        why = "it is compressed, and bundles never are; unpack it first"
    return NotABundle(f"{shown(str(path))} is no volume of a bundle: {why}")


def _begins(first: bytes) -> bool:
    """Tell whether a file begins as a volume does, also where a bit of that is wrong: then it is damaged."""
    says_so = first.startswith(_BEGIN)
    looks_so = first[_MAGIC] == b"ustar\x0000" and first[BLOCK:].startswith(b'{"format":"' + FORMAT.encode())
    return says_so or looks_so
