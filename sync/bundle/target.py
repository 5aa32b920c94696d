"""Where an export writes: names of volumes, hashes and journal, its lock, what the file system allows. Blocking."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sync.bundle.archive import put_file
from sync.bundle.errors import BundleError, Refused

SUFFIX = ".tar"
PARTIAL = ".partial"
FAT_SPLIT = 4 << 30
MOUNTS = Path("/proc/mounts")

_FAT = frozenset({"vfat", "msdos"})
_LOCKLESS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
_SUM = re.compile(r"([0-9a-f]{64}) [ *]([^/]+)")
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Target:
    """The files of the bundle that is written as `path`; `split`: its volumes are numbered."""

    path: Path
    split: bool

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def stem(self) -> str:
        return self.path.name.removesuffix(SUFFIX)

    @property
    def sums(self) -> Path:
        """The hashes of the volumes, as `sha256sum` writes them."""
        return self.folder / f"{self.stem}.sha256"

    @property
    def journal(self) -> Path:
        return self.folder / f"{self.stem}.export{PARTIAL}"

    @property
    def lock(self) -> Path:
        return self.folder / f"{self.stem}.export.lock"

    def volume(self, number: int) -> Path:
        """Return the file of a volume, counted from 1."""
        return self.folder / f"{self.stem}.{number:03d}{SUFFIX}" if self.split else self.path

    def partial(self, number: int) -> Path:
        """Return where a volume is written before it is whole."""
        volume = self.volume(number)
        return volume.with_name(f"{volume.name}{PARTIAL}")

    def volumes(self) -> list[Path]:
        """Return the files that bear a name of this bundle, split or not."""
        return self._named(SUFFIX)

    def partials(self) -> list[Path]:
        """Return what was being written to under such names."""
        return self._named(f"{SUFFIX}{PARTIAL}")

    def check(self, split: int | None, mounts: Path = MOUNTS) -> None:
        """See that files can be written there. Raises Refused, which says what to do."""
        if self.path.suffix != SUFFIX or not self.stem:
            raise Refused(f"{self.path} does not end in {SUFFIX}: a bundle is written as FILE{SUFFIX}")
        if self.path.is_dir():
            raise Refused(f"{self.path} is a folder: name a file in it, such as {self.path / f'site{SUFFIX}'}")
        if not self.folder.is_dir():
            raise Refused(f"there is no folder {self.folder}: make it, or mount the disk that it is on")
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise Refused(f"nothing can be written to {self.folder}: it is read-only, or belongs to somebody else")
        if (split is None or split > FAT_SPLIT) and filesystem_of(self.folder, mounts) in _FAT:
            raise Refused(f"{self.folder} is on a FAT file system, whose files end at 4 GiB: add --split-size 4GiB")

    def _named(self, ending: str) -> list[Path]:
        pattern = re.compile(rf"{re.escape(self.stem)}(\.[0-9]{{3,4}})?{re.escape(ending)}")
        return sorted(path for path in self.folder.iterdir() if pattern.fullmatch(path.name))


def take_lock(target: Target) -> int:
    """Keep every other export from this bundle until `release_lock`, or the end of the process.

    Raises Refused where another is under way, OSError.
    """
    while True:
        file = os.open(target.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise Refused(
                f"another export to {target.path} is under way: wait until it ends, or name another file with -o"
            ) from None
        except OSError as error:
            if error.errno not in _LOCKLESS:
                os.close(file)
                raise
        try:
            if os.path.samestat(os.fstat(file), target.lock.stat()):
                return file
        except FileNotFoundError:
            pass
        os.close(file)  # whoever held it has just removed it


def release_lock(target: Target, file: int) -> None:
    """Let others write this bundle. What a disk that fails keeps of the lock counts for nothing."""
    with suppress(OSError):
        target.lock.unlink()
    os.close(file)


def filesystem_of(folder: Path, mounts: Path = MOUNTS) -> str | None:
    """Return the type of the file system that a folder is on; None where the system does not tell."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    where = folder.resolve()
    found: tuple[int, str | None] = (-1, None)
    for line in lines:
        fields = line.split()
        point = Path(_ESCAPED.sub(lambda escaped: chr(int(escaped[1], 8)), fields[1]))
        if where.is_relative_to(point) and len(point.parts) >= found[0]:
            found = len(point.parts), fields[2]
    return found[1]


def require_room(folder: Path, needed: int) -> None:
    """Raise Refused where a file system has not `needed` bytes free. Raises OSError."""
    stats = os.statvfs(folder)
    free = stats.f_bavail * stats.f_frsize
    if needed > free:
        raise Refused(
            f"{folder} has not enough room: {needed} bytes are still to be written and {free} are free; "
            "free some, name another folder with -o, or leave out what the site has with --base"
        )


def read_sums(path: Path) -> dict[str, str]:
    """Return the hashes by file name; none where there is no such file. Raises BundleError, OSError."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        raise BundleError(f"{path} is no file of hashes as sha256sum writes it: remove it") from None
    found = [_SUM.fullmatch(line) for line in lines if line]
    if not all(found):
        raise BundleError(f"{path} is no file of hashes as sha256sum writes it: remove it")
    return {match[2]: match[1] for match in found if match is not None}


def write_sums(path: Path, hashes: Mapping[str, str]) -> None:
    """Write hashes by file name as `sha256sum` does, whole or not at all. Raises OSError."""
    put_file(path, "".join(f"{hex}  {name}\n" for name, hex in hashes.items()).encode())
