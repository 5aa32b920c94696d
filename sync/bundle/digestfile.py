"""Files of sorted digests, searched without being read into memory: inventories of sites, and receipts of bundles.

A line with the kind and its version, a line of JSON (padded with spaces) with what the file is about and how many
digests of each algorithm follow, the digests as raw bytes in order, first those of sha256 with 32 bytes each, then
those of sha512 with 64; at last the sha256 of all bytes before. What goes into a receipt is `receipts`' matter.
Blocking, for threads.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal, Self

import msgspec

from proxy.oci.digest import Digest
from sync.bundle.errors import BundleError

Kind = Literal["inventory", "receipt"]
INVENTORY = b"entrepot-inventory/1\n"
RECEIPT = b"entrepot-receipt/1\n"
SIZES = {"sha256": 32, "sha512": 64}
MAX_HEADER = 64 << 10
_SLICE = 1 << 20
_WIDEST = 10**12
_HASH = 32


class InventoryHeader(msgspec.Struct, frozen=True):
    """Of what a site holds: its region, and when it was written, in seconds since the epoch."""

    region: str
    created: float


class ReceiptHeader(msgspec.Struct, frozen=True):
    """That a bundle was imported: its plan's name, its series and the region that made it, at which site and when.

    created: the bundle's; spoken: the name as `receipts.spoken` gives it. Seconds since the epoch.
    """

    plan: str
    series: str
    region: str
    site: str
    created: int
    imported_at: float
    spoken: str


Header = InventoryHeader | ReceiptHeader


class _Counts(msgspec.Struct, frozen=True):
    sha256: int
    sha512: int


class _Line(msgspec.Struct, frozen=True):
    """The second line; `about` is the header of the file's kind."""

    digests: _Counts
    about: msgspec.Raw


def kind_of(beginning: bytes) -> Kind | None:
    """Return what a file is by its first bytes, of which some twenty suffice; None where it is no file of digests."""
    if beginning.startswith(INVENTORY):
        return "inventory"
    return "receipt" if beginning.startswith(RECEIPT) else None


def write_digests(path: Path, header: Header, digests: Iterable[str]) -> int:
    """Write `digests`, which come sorted and once each, to `path`, there whole or not at all; return their number.

    Raises OSError; ValueError where they are not sorted.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w+b") as file:
            count = _fill(file, header, digests)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return count


def _fill(file: BinaryIO, header: Header, digests: Iterable[str]) -> int:
    kind = INVENTORY if isinstance(header, InventoryHeader) else RECEIPT
    about = msgspec.Raw(msgspec.json.encode(header))
    length = len(msgspec.json.encode(_Line(_Counts(_WIDEST, _WIDEST), about)))
    file.write(kind + b" " * length + b"\n")
    counts = {"sha256": 0, "sha512": 0}
    last = ""
    for digest in digests:
        if digest <= last:
            raise ValueError(f"{digest} comes after {last}: digests are written in order, once each")
        last = digest
        counts[digest[:6]] += 1
        file.write(bytes.fromhex(digest[7:]))
    line = msgspec.json.encode(_Line(_Counts(**counts), about))
    file.seek(len(kind))
    file.write(line.ljust(length))
    file.seek(0)
    hasher = hashlib.sha256()
    while piece := file.read(_SLICE):
        hasher.update(piece)
    file.write(hasher.digest())
    return sum(counts.values())


class DigestFile:
    """An open inventory or receipt. `header` tells which it is; `name` is the hash that the file ends with.

    State: the mapped file, and where the digests of each algorithm begin in it, with their number.
    """

    def __init__(self, path: Path, file: mmap.mmap, header: Header, counts: _Counts, start: int) -> None:
        self.path = path
        self.header = header
        self.name = Digest(f"sha256:{file[-_HASH:].hex()}")
        self._file = file
        self._shelves = {
            "sha256": (start, counts.sha256),
            "sha512": (start + counts.sha256 * SIZES["sha256"], counts.sha512),
        }

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file and check all of it against its hash. Raises BundleError for one that is damaged, OSError."""
        with path.open("rb") as opened:
            if os.fstat(opened.fileno()).st_size <= _HASH:
                raise BundleError(
                    f"{path} is empty or cut short: it is no inventory and no receipt; have it sent again"
                )
            file = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            kind = kind_of(file[: len(INVENTORY)])
            if kind is None:
                raise BundleError(f"{path} is no inventory and no receipt: it does not begin as one")
            header, counts, start = _read_lines(path, file, kind)
            size = start + counts.sha256 * SIZES["sha256"] + counts.sha512 * SIZES["sha512"] + _HASH
            if size != len(file):
                raise BundleError(f"{path} has {len(file)} bytes and not {size}: it was cut short; have it sent again")
            _check_hash(path, file)
            return cls(path, file, header, counts, start)
        except BaseException:
            file.close()
            raise

    @property
    def kind(self) -> Kind:
        return "inventory" if isinstance(self.header, InventoryHeader) else "receipt"

    def __contains__(self, digest: object) -> bool:
        """Tell whether a digest, in the form `sha256:…`, is in it; anything else is not."""
        if not isinstance(digest, str) or digest[:6] not in self._shelves:
            return False
        algorithm = digest[:6]
        start, count = self._shelves[algorithm]
        size, wanted = SIZES[algorithm], bytes.fromhex(digest[7:])
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            at = start + middle * size
            found = self._file[at : at + size]
            if found == wanted:
                return True
            if found < wanted:
                low = middle + 1
            else:
                high = middle
        return False

    def __len__(self) -> int:
        return sum(count for _, count in self._shelves.values())

    def __iter__(self) -> Iterator[str]:
        """Give the digests in order."""
        for algorithm, (start, count) in self._shelves.items():
            size = SIZES[algorithm]
            for at in range(start, start + count * size, size):
                yield f"{algorithm}:{self._file[at : at + size].hex()}"

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _read_lines(path: Path, file: mmap.mmap, kind: Kind) -> tuple[Header, _Counts, int]:
    begin = len(INVENTORY if kind == "inventory" else RECEIPT)
    end = file.find(b"\n", begin, begin + MAX_HEADER)
    form: type[InventoryHeader | ReceiptHeader] = InventoryHeader if kind == "inventory" else ReceiptHeader
    try:
        if end < 0:
            raise ValueError("its second line does not end")
        line = msgspec.json.decode(file[begin:end], type=_Line)
        if min(line.digests.sha256, line.digests.sha512) < 0:
            raise ValueError("it counts less than nothing")
        return msgspec.json.decode(line.about, type=form), line.digests, end + 1
    except ValueError as error:
        raise BundleError(f"the {kind} {path} cannot be read: {error}; have it sent again") from None


def _check_hash(path: Path, file: mmap.mmap) -> None:
    hasher = hashlib.sha256()
    end = len(file) - _HASH
    for at in range(0, end, _SLICE):
        hasher.update(file[at : min(at + _SLICE, end)])
    if hasher.digest() != file[end:]:
        raise BundleError(f"{path} is damaged: its bytes do not match the hash that it ends with; have it sent again")
