"""All that is wrong with volumes: every byte is compared or hashed, and one fault does not end it.

What must be in a volume is `layout`'s, a single check is `volume`'s. Blocking: for threads, `AT_ONCE` volumes each.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import msgspec

from proxy.oci.digest import Digest
from sync.bundle.errors import BundleError, Damaged, Untrusted
from sync.bundle.keys import Trust, Verdict
from sync.bundle.layout import BlobPart, Entry
from sync.bundle.opened import Bundle
from sync.bundle.plan import Sealed
from sync.bundle.volume import CHUNK, Volume, find_volumes

AT_ONCE = 2
_LISTED = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_NUMBERED = re.compile(r"\.\d{3,}\Z")

Told = Callable[[int], None]


class Fault(msgspec.Struct, frozen=True):
    """One thing that is wrong, in words; `file`, `volume` and `digest` (of a blob) where it is of one."""

    message: str
    file: str | None = None
    volume: int | None = None
    digest: str | None = None


class CheckedBundle(msgspec.Struct, frozen=True):
    """What was found of one bundle. `key`: the trusted key that signed it; `note`: what else is to be said of that.

    checked, missing: numbers of its volumes that were at hand and that were not. bytes: of the files that were read.
    """

    plan: str
    series: str
    region: str
    created: int
    volumes: int
    checked: tuple[int, ...]
    missing: tuple[int, ...]
    blobs: int
    bytes: int
    key: str | None
    note: str | None
    faults: tuple[Fault, ...]


class Checked(msgspec.Struct, frozen=True):
    """What was found at all; `faults` are those of files that could not be told to be of a bundle."""

    bundles: tuple[CheckedBundle, ...]
    faults: tuple[Fault, ...]

    @property
    def good(self) -> bool:
        """Nothing is wrong and no volume is missing."""
        return not self.faults and not any(one.faults or one.missing for one in self.bundles)


class Stopped(BundleError):
    """The check was ended before its time."""


class Progress:
    """Bytes that were read so far, by all threads, of about `total`. State: that number, and whether to end."""

    def __init__(self, total: int, report: Callable[[int, int], None]) -> None:
        self._total = total
        self._report = report
        self._lock = Lock()
        self._done = 0
        self._stopped = False

    def told(self, count: int) -> None:
        """Count bytes. Raises Stopped after `stop`."""
        if self._stopped:
            raise Stopped("the check was ended before all was read")
        with self._lock:
            self._done += count
            self._report(min(self._done, self._total), self._total)

    def stop(self) -> None:
        """Let the threads end at their next byte."""
        self._stopped = True


def check(paths: Sequence[Path], trust: Trust, report: Callable[[int, int], None]) -> Checked:
    """Check the bundles whose volumes are named, or lie in the folders that are; `report` hears bytes read, and of all.

    Raises BundleError where no volume is there at all, OSError for a path that cannot be read.
    """
    volumes, faults = _open(paths)
    try:
        groups: dict[Digest, list[Volume]] = {}
        for volume in volumes:
            groups.setdefault(volume.sealed.name, []).append(volume)
        progress = Progress(sum(volume.size for volume in volumes), report)
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="bundle-check") as threads:
            try:
                found = list(threads.map(lambda volume: check_volume(volume, progress.told), volumes))
            except BaseException:
                progress.stop()
                raise
        of_volume = dict(zip(volumes, found, strict=True))
        bundles = [_judge(group, of_volume, trust, progress.told) for group in groups.values()]
    finally:
        for volume in volumes:
            volume.close()
    return Checked(tuple(sorted(bundles, key=lambda one: (one.created, one.series, one.plan))), tuple(faults))


def check_volume(volume: Volume, told: Told = lambda count: None) -> list[Fault]:
    """Return all that is wrong with one volume, its hash in the `.sha256` beside it among that."""
    faults: list[Fault] = []
    lost: list[Entry] = []
    listed: str | None = None
    try:
        listed = listed_hash(volume.path)
    except OSError as error:
        what = f"the file of hashes beside it cannot be read: {error.strerror or error}"
        faults.append(_fault(volume, None, f"{volume.label}: {what}"))
    hasher = hashlib.sha256()
    for entry in volume.walk():
        if entry.data + entry.size > volume.size:
            lost.append(entry)
            continue
        faults += _of_entry(volume, entry, told)
        if listed is not None and not faults:
            _feed(hasher, volume, entry.start, min(entry.end, volume.size))
    if lost:
        count = sum(isinstance(entry.part, BlobPart) for entry in lost)
        blobs = f": {count} blobs, or parts of such" if count else ""
        what = f"it lacks {volume.describe(lost[0])} and all after that{blobs}"
        faults.append(_fault(volume, lost[0], f"{volume.label}: {what}"))
    faults += _attempt(volume, None, volume.check_end)
    if listed is not None and not faults:
        _feed(hasher, volume, entry.end, volume.size)
        if hasher.hexdigest() != listed:
            told_by = _hashes_beside(volume.path)[0].name
            faults.append(_fault(volume, None, f"{volume.label} is whole, and {told_by} says another hash for it"))
    return faults


def listed_hash(path: Path) -> str | None:
    """Return the hash that the file beside a volume gives for it, None where there is none. Raises OSError."""
    for beside in _hashes_beside(path):
        for line in beside.read_text(errors="replace").splitlines():
            found = _LISTED.fullmatch(line)
            if found is not None and found[2] == path.name:
                return found[1]
    return None


def _hashes_beside(path: Path) -> list[Path]:
    stems = dict.fromkeys([path.stem, _NUMBERED.sub("", path.stem)])
    return [beside for stem in stems if (beside := path.with_name(f"{stem}.sha256")).is_file()]


def _open(paths: Sequence[Path]) -> tuple[list[Volume], list[Fault]]:
    volumes: dict[Path, Volume] = {}
    plans: dict[Digest, Sealed] = {}
    faults: list[Fault] = []
    others: list[BundleError] = []
    try:
        for path in paths:
            try:
                found = find_volumes([path])
            except BundleError as error:
                others.append(error)
                faults.append(Fault(str(error), path.name))
                continue
            for file in found:
                if file in volumes:
                    continue
                try:
                    # One plan for all of its volumes: a large one takes tens of megabytes.
                    volume = volumes[file] = Volume.open(file, plans)
                    plans[volume.sealed.name] = volume.sealed
                except BundleError as error:
                    faults.append(Fault(str(error), file.name))
                except OSError as error:
                    faults.append(Fault(f"{file} cannot be read: {error.strerror or error}", file.name))
        if others and not volumes and len(others) == len(faults):
            raise others[0]
    except BaseException:
        for volume in volumes.values():
            volume.close()
        raise
    return list(volumes.values()), faults


def _of_entry(volume: Volume, entry: Entry, told: Told) -> Iterator[Fault]:
    yield from _attempt(volume, entry, lambda: volume.check_frame(entry))
    if isinstance(entry.part, BlobPart):
        yield from _attempt(volume, entry, lambda: volume.check_blob(entry, told))
    else:
        yield from _attempt(volume, entry, lambda: volume.check_small(entry))
        told(entry.size)


def _attempt(volume: Volume, entry: Entry | None, check: Callable[[], None]) -> Iterator[Fault]:
    try:
        check()
    except Damaged as error:
        yield _fault(volume, entry, str(error))
    except OSError as error:
        what = volume.describe(entry) if entry is not None else "its end"
        yield _fault(volume, entry, f"{volume.label}: {what} cannot be read: {error.strerror or error}")


def _fault(volume: Volume, entry: Entry | None, message: str) -> Fault:
    part = entry.part if entry is not None else None
    digest = volume.sealed.plan.blobs[part.blob].digest if isinstance(part, BlobPart) else None
    return Fault(message, volume.path.name, volume.number, digest)


def _feed(hasher: hashlib._Hash, volume: Volume, begin: int, end: int) -> None:
    """Hash bytes of the file that were read a moment ago, so that they come from memory."""
    for at in range(begin, end, CHUNK):
        hasher.update(volume.read(at, min(CHUNK, end - at)))


def _judge(group: Sequence[Volume], found: dict[Volume, list[Fault]], trust: Trust, told: Told) -> CheckedBundle:
    """Return what is to be said of the volumes of one plan together."""
    sealed, signature = group[0].sealed, group[0].signature
    plan = sealed.plan
    faults = [fault for volume in group for fault in found[volume]]
    faults += [
        _fault(volume, None, f"{volume.label} and {group[0].label} are of one plan and have different signatures")
        for volume in group
        if volume.signature != signature
    ]
    verdict: Verdict | None = None
    try:
        verdict = trust.judge(sealed, signature)
    except Untrusted as error:
        faults.append(Fault(str(error)))
    bundle = Bundle(sealed, signature, {volume.number: volume for volume in group})
    if not faults:
        faults += _of_cut_blobs(bundle, told)
    return CheckedBundle(
        plan=str(sealed.name),
        series=plan.series,
        region=plan.region,
        created=plan.created,
        volumes=len(plan.volumes),
        checked=tuple(sorted(bundle.volumes)),
        missing=tuple(bundle.missing),
        blobs=len(plan.blobs),
        bytes=sum(volume.size for volume in group),
        key=verdict.key if verdict is not None else None,
        note=verdict.note if verdict is not None else None,
        faults=tuple(faults),
    )


def _of_cut_blobs(bundle: Bundle, told: Told) -> Iterator[Fault]:
    """Hash the blobs that are cut, across their volumes: their parts alone are only what the plan says."""
    for place in dict.fromkeys(one.blob for one in bundle.plan.slices):
        digest = Digest(bundle.plan.blobs[place].digest)
        hasher = digest.hasher()
        extents = bundle.extents(place)
        for extent in extents or ():
            for at in range(0, extent.size, CHUNK):
                hasher.update(extent.file.read(extent.offset + at, min(CHUNK, extent.size - at)))
                told(0)
        if extents is not None and not digest.matches(hasher):
            yield Fault(
                f"blob {digest}: its parts are what the plan says, and together another blob: the plan is wrong; ask "
                "whoever made the bundle for another one",
                digest=str(digest),
            )
