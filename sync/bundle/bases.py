"""What a thin bundle stands on: bundles, inventories and receipts that an operator names, as one set of digests.

Blocking, for threads. What of a base an export leaves out is `making`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from sync.bundle.archive import Archive
from sync.bundle.digestfile import DigestFile, InventoryHeader, kind_of
from sync.bundle.errors import BundleError, NotABundle
from sync.bundle.plan import Base, Plan, Sealed
from sync.bundle.volume import Volume

_HEAD = 64
FORMS = (
    "a base is a volume of a bundle, an inventory (entrepot inventory -o FILE), a receipt (which entrepot import "
    "writes), or the twelve digits that import shows"
)


class BaseSet:
    """All digests that the bases have. State: the open files, until `close`."""

    def __init__(self) -> None:
        self.bases: tuple[Base, ...] = ()
        self._known: list[Callable[[str], bool]] = []
        self._closing: list[Callable[[], None]] = []

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, str) and any(known(digest) for known in self._known)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        while self._closing:
            self._closing.pop()()
        self._known.clear()

    def add_plan(self, sealed: Sealed, kind: str) -> None:
        """Count as known what a bundle brought, and what it stood on itself."""
        plan = sealed.plan
        known = {blob.digest for blob in plan.blobs} | {one.digest for one in plan.requires}
        self._known.append(known.__contains__)
        self._add(Base(kind=kind, name=str(sealed.name), label=_label(plan)))

    def add_file(self, path: Path) -> None:
        """Count as known what an inventory or a receipt lists. Raises BundleError, OSError."""
        file = DigestFile.open(path)
        self._closing.append(file.close)
        self._known.append(file.__contains__)
        header = file.header
        if isinstance(header, InventoryHeader):
            label = f"the inventory of {header.region} of {_day(header.created)}"
            self._add(Base(kind="inventory", name=str(file.name), label=label[:255]))
        else:
            label = f"{header.series} of {_day(header.created)}, which {header.site} has"
            self._add(Base(kind="receipt", name=header.plan, label=label[:255]))

    def _add(self, base: Base) -> None:
        if base not in self.bases:
            self.bases += (base,)


def open_bases(given: Sequence[str], archive: Archive) -> BaseSet:
    """Open the bases that `given` names: paths, or spoken receipts of bundles that were exported here.

    Raises BundleError, which says what a base may be; OSError.
    """
    found = BaseSet()
    try:
        for text in given:
            _open(found, text, archive)
    except BaseException:
        found.close()
        raise
    return found


def _open(found: BaseSet, text: str, archive: Archive) -> None:
    path = Path(text)
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if kind_of(head) is not None:
            found.add_file(path)
            return
        try:
            volume = Volume.open(path)
        except NotABundle:
            raise BundleError(f"{text} is no base: {FORMS}") from None
        try:
            found.add_plan(volume.sealed, "bundle")
        finally:
            volume.close()
        return
    if sum(character.isdigit() for character in text) < len(text) // 2:
        raise BundleError(f"there is no file {text}: {FORMS}")
    try:
        sealed, _ = archive.find(text)
    except BundleError as error:
        raise BundleError(f"{text} is no base: {error}; {FORMS}") from None
    found.add_plan(sealed, "receipt")


def _label(plan: Plan) -> str:
    return f"{plan.series} of {_day(plan.created)}"[:255]


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")
