"""What differs between two bundles or sites: images by their references, blobs by their digests. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from sync.bundle.plan import Plan, reference_of


class Digests(Container[str], Iterable[str], Protocol):
    """Digests in order that can be searched, as in an inventory."""


@dataclass(frozen=True, slots=True)
class Side:
    """What is compared: its digests, in order; sizes of them and images by reference, where it tells those."""

    label: str
    digests: Digests
    sizes: Mapping[str, int] | None = None
    images: Mapping[str, str] | None = None


class Amount(msgspec.Struct, frozen=True):
    """So many blobs, of so many bytes as far as that is known; of `unsized` of them it is not."""

    blobs: int
    bytes: int
    unsized: int


class Moved(msgspec.Struct, frozen=True):
    """A reference that means another image there."""

    reference: str
    a: str
    b: str


class Difference(msgspec.Struct, frozen=True):
    """What is in A and not in B, and so on; images by reference. Where one side has digests alone, none is `moved`."""

    a: str
    b: str
    new: tuple[str, ...]
    gone: tuple[str, ...]
    moved: tuple[Moved, ...]
    only_a: Amount
    only_b: Amount
    both: Amount


def side_of(label: str, plan: Plan) -> Side:
    """Return a bundle as a side: what a site has that imported it, so what it stands on too."""
    brought = [(blob.digest, blob.size) for blob in plan.blobs]
    sizes = dict(sorted(brought + [(one.digest, one.size) for one in plan.requires]))
    images = {reference_of(plan, image): image.digest for image in plan.images}
    return Side(label, sizes.keys(), sizes, images)


def compare(a: Side, b: Side) -> Difference:
    """Return what differs."""
    new, gone, moved = _images(a, b)
    only_a, only_b, both = _Sum(), _Sum(), _Sum()
    for digest, in_a, in_b in _merged(a.digests, b.digests):
        (both if in_a and in_b else only_a if in_a else only_b).add(digest, a, b)
    return Difference(a.label, b.label, new, gone, moved, only_a.amount(), only_b.amount(), both.amount())


def _images(a: Side, b: Side) -> tuple[tuple[str, ...], tuple[str, ...], tuple[Moved, ...]]:
    """Return what is new, gone and moved. Of a side that has no references an image is there when its manifest is."""
    in_a, in_b = a.images or {}, b.images or {}
    new = [name for name, digest in in_b.items() if (digest not in a.digests if a.images is None else name not in in_a)]
    gone = [
        name for name, digest in in_a.items() if (digest not in b.digests if b.images is None else name not in in_b)
    ]
    moved = [Moved(name, in_a[name], in_b[name]) for name in in_a.keys() & in_b.keys() if in_a[name] != in_b[name]]
    return tuple(sorted(new)), tuple(sorted(gone)), tuple(sorted(moved, key=lambda one: one.reference))


def _merged(a: Iterable[str], b: Iterable[str]) -> Iterator[tuple[str, bool, bool]]:
    """Give every digest once, and in which of the two it is, both being in order."""
    of_a, of_b = iter(a), iter(b)
    left, right = next(of_a, None), next(of_b, None)
    while left is not None or right is not None:
        in_a = right is None or (left is not None and left <= right)
        in_b = left is None or (right is not None and right <= left)
        yield (left if in_a else right) or "", in_a, in_b
        left = next(of_a, None) if in_a else left
        right = next(of_b, None) if in_b else right


class _Sum:
    def __init__(self) -> None:
        self._blobs = self._bytes = self._unsized = 0

    def add(self, digest: str, *sides: Side) -> None:
        sizes = (side.sizes.get(digest) for side in sides if side.sizes is not None)
        size = next((size for size in sizes if size is not None), None)
        self._blobs += 1
        self._bytes += size or 0
        self._unsized += size is None

    def amount(self) -> Amount:
        return Amount(self._blobs, self._bytes, self._unsized)
