"""The bundles that lie on a medium: volumes grouped by their plan, and where the bytes of a blob are to be read.

Blocking: for threads. Nothing is hashed here; what one volume is, and how it is checked, is `volume`'s.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from proxy.oci.digest import Digest
from sync.bundle.errors import Damaged
from sync.bundle.layout import slices_of
from sync.bundle.plan import Plan, Sealed
from sync.bundle.volume import Volume, find_volumes


class Readable(Protocol):
    """A file that parts of blobs are read from."""

    @property
    def label(self) -> str: ...

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly these bytes. Raises Damaged where the file ends before, OSError."""
        ...


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of a blob: `size` of them from this byte of a file on."""

    file: Readable
    offset: int
    size: int


@dataclass(eq=False)
class Bundle:
    """A bundle as far as it is at hand. volumes: by number, from 1.

    staged: files that hold, from their first byte on, a part of a blob: (place of the blob in the plan, offset in it).
    """

    sealed: Sealed
    signature: bytes | None
    volumes: dict[int, Volume] = field(default_factory=dict)
    staged: dict[tuple[int, int], Readable] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        return self.sealed.plan

    @property
    def name(self) -> Digest:
        return self.sealed.name

    @property
    def missing(self) -> list[int]:
        """The numbers of the volumes that are not at hand."""
        return [number for number in range(1, len(self.plan.volumes) + 1) if number not in self.volumes]

    def place(self, digest: str) -> int | None:
        """Return the place of a blob in the plan; None where the bundle does not bring it."""
        return self._places.get(digest)

    def extents(self, blob: int) -> list[Extent] | None:
        """Return where the bytes of a blob lie, in their order; None where a part of it is not at hand."""
        parts = [(one.offset, one.size) for one in slices_of(self.plan, blob)] or [(0, self.plan.blobs[blob].size)]
        found = []
        for offset, size in parts:
            staged = self.staged.get((blob, offset))
            volume = self.volumes.get(bisect_right(self._begins, (blob, offset)))
            if staged is not None:
                found.append(Extent(staged, 0, size))
            elif volume is not None:
                found.append(Extent(volume, volume.data_offset(blob), size))
            else:
                return None
        return found

    def close(self) -> None:
        """Close the volumes; staged files are those of who staged them."""
        for volume in self.volumes.values():
            volume.close()

    @cached_property
    def _places(self) -> dict[str, int]:
        return {blob.digest: place for place, blob in enumerate(self.plan.blobs)}

    @cached_property
    def _begins(self) -> list[tuple[int, int]]:
        return [(cut.blob, cut.offset) for cut in self.plan.volumes]


def open_bundles(paths: Sequence[Path]) -> list[Bundle]:
    """Return the bundles whose volumes are named, or lie in the folders that are: one after those it stands on.

    Otherwise they come by their time. Of a volume that is there twice the first counts.

    Raises:
        NotABundle: as `find_volumes`.
        Damaged: as `Volume.open`, and where volumes of one plan are signed differently.
        OSError: one cannot be read.
    """
    found: dict[Digest, Bundle] = {}
    try:
        known: dict[Digest, Sealed] = {}
        for path in find_volumes(paths):
            volume = Volume.open(path, known)
            known[volume.sealed.name] = volume.sealed
            _add(found, volume)
    except BaseException:
        for bundle in found.values():
            bundle.close()
        raise
    return _in_order(list(found.values()))


def _add(found: dict[Digest, Bundle], volume: Volume) -> None:
    bundle = found.setdefault(volume.sealed.name, Bundle(volume.sealed, volume.signature))
    if volume.signature != bundle.signature:
        first = next(iter(bundle.volumes.values()))
        volume.close()
        raise Damaged(
            f"{volume.label} and {first.label} are of one plan and have different signatures: take the volumes of one"
            " export only, or copy them again"
        )
    if volume.number in bundle.volumes:
        volume.close()
        return
    bundle.volumes[volume.number] = volume


def _in_order(bundles: list[Bundle]) -> list[Bundle]:
    waiting = sorted(bundles, key=lambda bundle: (bundle.plan.created, bundle.plan.series, bundle.name))
    ordered = []
    while waiting:
        free = (one for one in waiting if not any(_stands_on(one, other) for other in waiting if other is not one))
        chosen = next(free, waiting[0])
        waiting.remove(chosen)
        ordered.append(chosen)
    return ordered


def _stands_on(bundle: Bundle, other: Bundle) -> bool:
    return any(other.place(required.digest) is not None for required in bundle.plan.requires)
