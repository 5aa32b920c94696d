"""The plans of bundles that were exported from here: what spoken receipts and lost volumes are looked up in. Blocking.

A folder with `<hex of the plan's name>.plan`, the plan's exact bytes, and `.sig` where it was signed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from proxy.oci.digest import Digest
from sync.bundle.errors import BundleError
from sync.bundle.plan import Sealed, read_plan
from sync.bundle.receipts import read_spoken, spoken

KEPT = 200
_PLAN = ".plan"
_SIGNATURE = ".sig"
_FOLDER_MODE = 0o700


@dataclass(frozen=True, slots=True)
class Kept:
    """A plan that is kept: its name without the algorithm, and when it was exported last (seconds since the epoch)."""

    hex: str
    exported_at: float


@dataclass(frozen=True, slots=True)
class Archive:
    """The archive in `folder`, which is made when something is kept. No state."""

    folder: Path

    def keep(self, sealed: Sealed, signature: bytes | None) -> None:
        """Keep a plan, as the newest; the oldest beyond KEPT go. Raises OSError."""
        self.folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        hex = sealed.name.hex
        if signature is None:
            (self.folder / f"{hex}{_SIGNATURE}").unlink(missing_ok=True)
        else:
            put_file(self.folder / f"{hex}{_SIGNATURE}", signature)
        put_file(self.folder / f"{hex}{_PLAN}", sealed.body)
        for old in self.plans()[KEPT:]:
            for suffix in (_PLAN, _SIGNATURE):
                (self.folder / f"{old.hex}{suffix}").unlink(missing_ok=True)

    def plans(self) -> list[Kept]:
        """Return what is kept, the newest first. Raises OSError."""
        found = [Kept(path.stem, path.stat().st_mtime) for path in self.folder.glob(f"*{_PLAN}")]
        return sorted(found, key=lambda kept: (-kept.exported_at, kept.hex))

    def read(self, hex: str) -> tuple[Sealed, bytes | None]:
        """Return a plan that is kept, and its signature. Raises BundleError where it is damaged, OSError."""
        path = self.folder / f"{hex}{_PLAN}"
        try:
            sealed = read_plan(path.read_bytes())
        except BundleError as error:
            raise BundleError(f"{path}: {error}; remove it") from None
        if sealed.name.hex != hex:
            raise BundleError(f"{path} is damaged: its bytes are not those of the plan that it is named by; remove it")
        signature = path.with_suffix(_SIGNATURE)
        return sealed, signature.read_bytes() if signature.exists() else None

    def find(self, text: str) -> tuple[Sealed, bytes | None]:
        """Return the plan that a spoken receipt, or the beginning of its name, means.

        Raises BundleError where none or several are meant, OSError.
        """
        plans = self.plans()
        try:
            digits = read_spoken(text)
        except ValueError as wrong:
            begin = text.removeprefix("sha256:")
            if not (len(begin) >= 6 and set(begin) <= set("0123456789abcdef")):
                raise BundleError(str(wrong)) from None
            found = [kept.hex for kept in plans if kept.hex.startswith(begin)]
        else:
            found = [kept.hex for kept in plans if spoken_of(kept.hex) == digits]
        if len(found) != 1:
            many = "no plan is" if not found else f"{len(found)} plans are"
            raise BundleError(
                f"{many} known here by {text}: {len(plans)} of bundles that were exported from this site are kept in "
                f"{self.folder}; give the bundle itself, its receipt, or an inventory of the site"
            )
        return self.read(found[0])


def spoken_of(hex: str) -> str:
    """Return what a plan is called aloud whose name is this sha256."""
    return spoken(Digest(f"sha256:{hex}"))


def put_file(path: Path, body: bytes) -> None:
    """Write a file that is there whole or not at all, durably. Raises OSError."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
