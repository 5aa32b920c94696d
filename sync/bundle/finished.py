"""Volumes that are there already when an export begins or goes on: taken over, or never replaced. Blocking."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sync.bundle import layout
from sync.bundle.archive import sync_folder
from sync.bundle.errors import Damaged, NotABundle, Refused
from sync.bundle.journal import Journal, Mark
from sync.bundle.plan import Sealed
from sync.bundle.target import Target
from sync.bundle.volume import Volume

_OTHER = "write under another name with -o, or remove it"


def sizes_of(journal: Journal) -> dict[int, int]:
    """Return the bytes of every volume."""
    signature = len(journal.signature or b"")
    return {
        number: layout.volume_size(journal.sealed, signature, number)
        for number in range(1, len(journal.sealed.plan.volumes) + 1)
    }


def take_over(journal: Journal, target: Target, sizes: dict[int, int]) -> None:
    """Count as done what is whole under its name, or was about to be given it; refuse to replace anything else."""
    for number in list(journal.done):
        partly, volume = target.partial(number), target.volume(number)
        if _has(partly, sizes[number]):
            give_name(target, number)
        elif not _has(volume, sizes[number]):
            del journal.done[number]
            volume.unlink(missing_ok=True)
    ours = {target.volume(number) for number in journal.done}
    for path in target.volumes():
        if path not in ours:
            number, hash = _same(path, journal, target)
            journal.reached(Mark(number, sizes[number], hash, whole=True))


def refuse_others(target: Target, sealed: Sealed) -> None:
    """Raise Refused where a file bears a name of the target and is no volume of this plan."""
    for path in target.volumes():
        try:
            volume = Volume.open(path)
        except (NotABundle, Damaged) as error:
            raise Refused(f"{path} is there already, and would be replaced: {error}; {_OTHER}") from None
        volume.close()
        if volume.sealed.name != sealed.name:
            raise Refused(
                f"{path} is there already, and belongs to another bundle ({volume.sealed.plan.series}, "
                f"{volume.sealed.name}); {_OTHER}"
            )


def _same(path: Path, journal: Journal, target: Target) -> tuple[int, str]:
    """Return the number and the hash of a volume that was there before, which must be what would be written."""
    try:
        volume = Volume.open(path)
        try:
            fits = volume.sealed.name == journal.sealed.name and volume.signature == journal.signature
            if not fits or target.volume(volume.number) != path:
                raise Refused(f"{path} is there already, and is not what would be written; {_OTHER}")
            for entry in volume.walk():
                volume.check_frame(entry)
                if isinstance(entry.part, layout.BlobPart):
                    volume.check_blob(entry)
                else:
                    volume.check_small(entry)
            volume.check_end()
        finally:
            volume.close()
    except (NotABundle, Damaged) as error:
        raise Refused(f"{path} is there already, and is not what would be written: {error}; {_OTHER}") from None
    with path.open("rb") as file:
        return volume.number, hashlib.file_digest(file, "sha256").hexdigest()


def _has(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def give_name(target: Target, number: int) -> None:
    target.partial(number).rename(target.volume(number))
    sync_folder(target.folder)
