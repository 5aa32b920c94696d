"""How far an export is: a file beside the volumes, by which the next run goes on where this one ended. Blocking.

A line of JSON, the plan and the signature as they are, then a line for every piece that is on the disk for certain and
for every volume that is whole. A last line that was cut off counts for nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import msgspec

from proxy.oci.digest import Digest
from sync.bundle.archive import sync_folder
from sync.bundle.errors import BundleError
from sync.bundle.plan import MAX_PLAN, Sealed, read_plan

FORMAT = "entrepot-export/1"
_MAX_LINE = 1 << 24


class Mark(msgspec.Struct, frozen=True):
    """So many bytes of a volume are on the disk, and this is their hash; `whole`: that is all of it."""

    volume: int
    offset: int
    sha256: str
    whole: bool = False


class _Head(msgspec.Struct, frozen=True):
    format: str
    request: str
    notes: list[tuple[str, str]]
    plan: int
    plan_name: str
    signature: int
    signature_name: str


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_mark = msgspec.json.Decoder(Mark).decode


@dataclass(slots=True)
class Journal:
    """An open journal. request: what was asked for; notes: what could not be had then.

    done: the hashes of whole volumes; marks: of the volume that is being written, in order.
    """

    path: Path
    request: str
    sealed: Sealed
    signature: bytes | None
    notes: list[tuple[str, str]]
    done: dict[int, str] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list)

    @classmethod
    def begin(
        cls, path: Path, request: str, sealed: Sealed, signature: bytes | None, notes: list[tuple[str, str]]
    ) -> Self:
        """Write a new journal. Raises OSError."""
        body = signature or b""
        head = _Head(FORMAT, request, notes, len(sealed.body), str(sealed.name), len(body), str(Digest.of(body)))
        with path.open("wb") as file:
            file.write(msgspec.json.encode(head) + b"\n" + sealed.body + body)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
        return cls(path, request, sealed, signature, notes)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the journal that is there; None where there is none, or one that was never whole. Raises OSError."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        with file:
            try:
                head = _decode_head(file.readline(_MAX_LINE))
                plan = file.read(min(head.plan, MAX_PLAN))
                signature = file.read(min(head.signature, MAX_PLAN))
                if head.format != FORMAT or Digest.of(signature) != head.signature_name:
                    return None
                sealed = read_plan(plan)
            except (msgspec.MsgspecError, UnicodeDecodeError, BundleError):
                return None
            if sealed.name != head.plan_name:
                return None
            journal = cls(path, head.request, sealed, signature or None, head.notes)
            for line in file:
                try:
                    journal._take(_decode_mark(line))
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    break
        return journal

    def reached(self, mark: Mark) -> None:
        """Note that so much is on the disk, which it must be by now. Durable on return. Raises OSError."""
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(mark) + b"\n")
            file.flush()
            os.fdatasync(file.fileno())
        self._take(mark)

    def last(self, volume: int, before: int | None = None) -> Mark | None:
        """Return how far a volume is; `before`: as far as nothing beyond that byte is relied on."""
        marks = [mark for mark in self.marks if mark.volume == volume and (before is None or mark.offset <= before)]
        return marks[-1] if marks else None

    def end(self) -> None:
        """Remove it. Raises OSError."""
        self.path.unlink(missing_ok=True)
        sync_folder(self.path.parent)

    def _take(self, mark: Mark) -> None:
        if mark.whole:
            self.done[mark.volume] = mark.sha256
            self.marks.clear()
        else:
            self.marks = [one for one in self.marks if one.volume == mark.volume and one.offset < mark.offset]
            self.marks.append(mark)
