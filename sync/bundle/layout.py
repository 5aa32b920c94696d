"""Where every byte of a bundle's volumes lies: entries, headers, and where volumes are cut. Pure, exact to the byte.

All of it follows from the sealed plan, the size of the signature and the number of the volume, so that a reader
believes nothing that a tar says: it reckons what must be there and compares. docs/bundle-format.md is the same in
words. Reading files is `volume`'s; what goes into a plan is `making`'s.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import msgspec

from proxy.oci.digest import Digest
from sync.bundle.errors import BundleError, Damaged
from sync.bundle.plan import MAX_PLAN, MAX_VOLUMES, Blob, Cut, Plan, Sealed, Slice, cut_slices, read_plan, write_plan

PLAN = "entrepot/plan.json"
SIGNATURE = "entrepot/plan.sig"
VOLUME = "entrepot/volume.json"
OFFSETS = "entrepot/offsets.json"
VOLUME_FORMAT = "entrepot-volume/1"
BLOCK = 512
PLAN_UNIT = 4096
"""A plan is padded with spaces to a multiple of this."""
END = 2 * BLOCK
"""The zeros after the last entry, in bytes."""

_NAME = 100
_OCTAL = 8**11
_EXTENDED = "././@PaxHeader"
_UNHASHED = "0" * 64
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class PlanPart:
    """The plan."""


@dataclass(frozen=True, slots=True)
class SignaturePart:
    """The signature of the plan."""


@dataclass(frozen=True, slots=True)
class VolumePart:
    """Which volume it is."""


@dataclass(frozen=True, slots=True)
class DocumentPart:
    """The plan's document of this place."""

    index: int


@dataclass(frozen=True, slots=True)
class BlobPart:
    """A blob, by its place in the plan, from this byte of it on; `whole`: all of it."""

    blob: int
    offset: int
    whole: bool


@dataclass(frozen=True, slots=True)
class OffsetsPart:
    """Where in the volume the blobs lie."""


Part = PlanPart | SignaturePart | VolumePart | DocumentPart | BlobPart | OffsetsPart


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a volume: its header begins at `start`; size in bytes without padding."""

    name: str
    size: int
    start: int
    part: Part

    @property
    def data(self) -> int:
        """Where its first byte lies."""
        return self.start + head_size(self.name)

    @property
    def end(self) -> int:
        """Where the next entry begins."""
        return self.data + padded(self.size)


def padded(size: int, unit: int = BLOCK) -> int:
    """Return `size` rounded up to a multiple of `unit`."""
    return -(-size // unit) * unit


def seal(plan: Plan) -> Sealed:
    """Return the plan with its exact bytes, padded. Raises BundleError where no reader would take it."""
    body = write_plan(plan)
    size = padded(len(body), PLAN_UNIT)
    if size > MAX_PLAN:
        raise BundleError(f"the plan would have {size} bytes, more than {MAX_PLAN}: export fewer images at once")
    try:
        return read_plan(body.ljust(size))
    except Damaged as error:
        raise BundleError(f"no site would take such a bundle: {error}") from None


def entries(sealed: Sealed, signature_size: int, volume: int) -> Iterator[Entry]:
    """Yield the entries of a volume (from 1) in their order; a signature of 0 bytes is none."""
    plan = sealed.plan
    start, rows, index = 0, 0, 2
    for name, size, part in chain(_preamble(sealed, signature_size, volume), _share(plan, volume)):
        entry = Entry(name, size, start, part)
        yield entry
        start = entry.end
        if isinstance(part, BlobPart):
            rows += 1
            index += len(_row(plan.blobs[part.blob].digest, entry.data, size, part.offset))
    yield Entry(OFFSETS, index + max(rows - 1, 0), start, OffsetsPart())


def volume_size(sealed: Sealed, signature_size: int, volume: int) -> int:
    """Return the bytes of a volume's file."""
    return max(entry.end for entry in entries(sealed, signature_size, volume)) + END


def volume_document(sealed: Sealed, volume: int) -> bytes:
    """Return what a volume says of itself."""
    return msgspec.json.encode(
        {"format": VOLUME_FORMAT, "volume": volume, "volumes": len(sealed.plan.volumes), "plan": str(sealed.name)}
    )


def offsets_document(sealed: Sealed, signature_size: int, volume: int) -> bytes:
    """Return the offset index of a volume: digest, offset in the volume, bytes, offset in the blob."""
    blobs = sealed.plan.blobs
    rows = (
        _row(blobs[entry.part.blob].digest, entry.data, entry.size, entry.part.offset)
        for entry in entries(sealed, signature_size, volume)
        if isinstance(entry.part, BlobPart)
    )
    return f"[{','.join(rows)}]".encode()


def data_offsets(sealed: Sealed, signature_size: int, volume: int) -> array[int]:
    """Return where in a volume the bytes of each blob lie that it has a part of, from that of its first on."""
    plan = sealed.plan
    at = sum(head_size(name) + padded(size) for name, size, _ in _preamble(sealed, signature_size, volume))
    found = array("q")
    for place, _, size in _parts(plan, volume):
        at += _blob_head(plan.blobs[place])
        found.append(at)
        at += padded(size)
    return found


def slice_at(plan: Plan, blob: int, offset: int) -> Slice | None:
    """Return the slice of a blob that begins there; None where the blob is not cut, or not there."""
    place = bisect_left(plan.slices, (blob, offset), key=lambda one: (one.blob, one.offset))
    found = plan.slices[place] if place < len(plan.slices) else None
    return found if found is not None and (found.blob, found.offset) == (blob, offset) else None


def digest_at(plan: Plan, blob: int) -> Digest:
    """Return the digest of a blob of the plan; its pattern was checked when the plan was read."""
    return Digest(plan.blobs[blob].digest)


def slices_of(plan: Plan, blob: int) -> tuple[Slice, ...]:
    """Return the slices of a blob in their order; none where it is not cut."""
    first = bisect_left(plan.slices, blob, key=lambda one: one.blob)
    return plan.slices[first : bisect_left(plan.slices, blob + 1, key=lambda one: one.blob)]


def head_size(name: str) -> int:
    """Return the bytes of the header of an entry: three blocks where its name does not fit into one."""
    return BLOCK if len(name) - name.rfind("/") - 1 <= _NAME else 3 * BLOCK


def header(entry: Entry, created: int) -> bytes:
    """Return the header of an entry; that of one with a long name is preceded by a pax header that has the name."""
    name = entry.name.encode()
    if head_size(entry.name) == BLOCK:
        prefix, _, last = name.rpartition(b"/") if len(name) > _NAME else (b"", b"", name)
        return _block(last, prefix, entry.size, created, b"0")
    record = b" path=" + name + b"\n"
    length = len(record) + 3
    record = b"%d%b" % (length, record)
    extended = _block(_EXTENDED.encode(), b"", len(record), created, b"x") + record.ljust(BLOCK, b"\0")
    return extended + _block(name[:_NAME], b"", entry.size, created, b"0")


def cut(plan: Plan, split: int | None, signature_size: int) -> Plan:
    """Return the plan with volumes that are smaller than `split` bytes; None: a single one.

    The slices have zeros for hashes, to be filled in. Raises BundleError where `split` is too small for the plan.
    """
    plan = msgspec.structs.replace(plan, volumes=(Cut(0, 0),), slices=())
    if split is None:
        return plan
    found = _cut(plan, split, signature_size)
    if found is not None:
        return found
    enough = max(split, _MIB)
    while _cut(plan, enough, signature_size) is None:
        enough *= 2
    raise BundleError(
        f"volumes of less than {split} bytes are too small: each begins with the plan and the index of all images,"
        f" and there may be {MAX_VOLUMES}; --split-size {padded(enough, _MIB) // _MIB}MiB would do"
    )


def _cut(plan: Plan, split: int, signature_size: int) -> Plan | None:
    size = padded(len(write_plan(plan)), PLAN_UNIT)
    while True:
        volumes = _cuts(plan, (split - 1) // BLOCK * BLOCK - _fixed(plan, size, signature_size))
        if volumes is None:
            return None
        found = msgspec.structs.replace(plan, volumes=volumes)
        slices = tuple(Slice(*one, _UNHASHED) for one in cut_slices(found))
        found = msgspec.structs.replace(found, slices=slices)
        needed = padded(len(write_plan(found)), PLAN_UNIT)
        if needed <= size:
            return found
        size = needed


def _fixed(plan: Plan, plan_size: int, signature_size: int) -> int:
    """Return the bytes of a volume that are neither blobs nor rows of the offset index."""
    signature = BLOCK + padded(signature_size) if signature_size else 0
    documents = sum(BLOCK + padded(document.size) for document in plan.documents)
    return BLOCK + plan_size + signature + 2 * BLOCK + documents + BLOCK + END


def _cuts(plan: Plan, room: int) -> tuple[Cut, ...] | None:
    """Return where volumes begin that have `room` bytes for blobs and index; None where that is too little.

    A row is reckoned with 15 digits for its place in the volume, so that it does not depend on what precedes.
    """
    volumes = [Cut(0, 0)]
    used, index = 0, 2
    for place, blob in enumerate(plan.blobs):
        offset = 0
        while True:
            rest = blob.size - offset
            row = len(_row(blob.digest, 10**14, rest, offset)) + 1
            free = room - used - _blob_head(blob) - padded(index + row)
            if free >= padded(rest):
                used += _blob_head(blob) + padded(rest)
                index += row
                break
            if free < BLOCK and index == 2:
                return None
            if free >= BLOCK:
                offset += free
            volumes.append(Cut(place, offset))
            if len(volumes) > MAX_VOLUMES:
                return None
            used, index = 0, 2
    return tuple(volumes) if room >= padded(2) else None


def _preamble(sealed: Sealed, signature_size: int, volume: int) -> Iterator[tuple[str, int, Part]]:
    yield PLAN, len(sealed.body), PlanPart()
    if signature_size:
        yield SIGNATURE, signature_size, SignaturePart()
    yield VOLUME, len(volume_document(sealed, volume)), VolumePart()
    for index, document in enumerate(sealed.plan.documents):
        yield document.name, document.size, DocumentPart(index)


def _share(plan: Plan, volume: int) -> Iterator[tuple[str, int, Part]]:
    for place, offset, size in _parts(plan, volume):
        blob = plan.blobs[place]
        algorithm, digits = blob.digest[:6], blob.digest[7:]
        if size == blob.size:
            yield f"blobs/{algorithm}/{digits}", size, BlobPart(place, 0, True)
        else:
            yield f"entrepot/slices/{algorithm}/{digits}.{offset}", size, BlobPart(place, offset, False)


def _parts(plan: Plan, volume: int) -> Iterator[tuple[int, int, int]]:
    """Yield (blob, offset in it, bytes) of what a volume brings."""
    begin = plan.volumes[volume - 1]
    end = plan.volumes[volume] if volume < len(plan.volumes) else Cut(len(plan.blobs), 0)
    for place in range(begin.blob, end.blob + (end.offset > 0)):
        size = plan.blobs[place].size
        first = begin.offset if place == begin.blob else 0
        last = end.offset if place == end.blob else size
        if first < last or not size:
            yield place, first, last - first


def _row(digest: str, data: int, size: int, offset: int) -> str:
    return f'["{digest}",{data},{size},{offset}]'


def _blob_head(blob: Blob) -> int:
    return BLOCK if blob.digest.startswith("sha256") else 3 * BLOCK


def _block(name: bytes, prefix: bytes, size: int, created: int, kind: bytes) -> bytes:
    """Return a header of ustar: a file without an owner."""
    fields = (
        name.ljust(_NAME, b"\0")
        + b"0000644\x000000000\x000000000\0"
        + _number(size)
        + _number(created)
        + b" " * 8
        + kind
        + bytes(100)
        + b"ustar\x0000"
        + bytes(80)
        + prefix.ljust(155, b"\0")
        + bytes(12)
    )
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def _number(value: int) -> bytes:
    return b"%011o\0" % value if value < _OCTAL else b"\x80" + value.to_bytes(11, "big")
