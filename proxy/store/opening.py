"""Opening the catalog file of a data folder by the process that owns it. One that is damaged or gone is replaced.

A damaged catalog is set aside; the backup takes its place if it is good, else an empty catalog does. Either speaks
of another moment than the files do: it gets a new epoch, and a mark that stays until a rescan has brought both
together (`rescan`). The replacement is made under another name and renamed when it is whole, so that a crash at any
point finds no catalog and begins anew.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

from proxy.store.disk import Disk
from proxy.store.errors import CatalogError, CatalogTooNew
from proxy.store.layout import ALGORITHMS, Layout
from proxy.store.schema import VERSION, connect, new_epoch
from proxy.store.writer import DAMAGED

RESCAN = "rescan"
"""The key in `meta` of why the files have to be compared with the catalog."""

_BESIDE = ("-wal", "-shm")

_log = logging.getLogger(__name__)


def open_catalog(path: Path, disk: Disk) -> sqlite3.Connection:
    """Return the writing connection to the catalog at `path`, having replaced one that cannot be used. Blocks.

    Raises:
        CatalogTooNew: a newer version of the program has written it.
        CatalogError: it cannot be opened, read or written.
    """
    try:
        fault = _fault(path)
        if fault is not None:
            _set_aside(path, disk)
            _replace(path, disk, fault)
        with suppress(FileExistsError):
            os.close(disk.create(path))
        return connect(path)
    except sqlite3.DatabaseError as error:
        raise _unopened(path, error) from error


def attach_catalog(path: Path) -> sqlite3.Connection:
    """Return a writing connection to the catalog that another process has opened, as it is. Blocks. Raises as above."""
    try:
        return connect(path)
    except sqlite3.DatabaseError as error:
        raise _unopened(path, error) from error


def _unopened(path: Path, error: Exception) -> CatalogError:
    return CatalogError(f"catalog {path} cannot be opened: {error}. Check its permissions and free space")


def _fault(path: Path) -> str | None:
    """Return why the catalog has to be replaced. A new data folder has none, and nothing is wrong with it."""
    if not path.exists() or path.stat().st_size == 0:
        return "missing" if _has_blobs(path.parent) else None
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
            made = int(connection.execute("PRAGMA user_version").fetchone()[0])
            verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF not in DAMAGED:
            raise
        return f"damaged ({error})"
    if verdict != "ok":
        return f"damaged ({verdict})"
    return "empty" if made == 0 and _has_blobs(path.parent) else None


def _has_blobs(root: Path) -> bool:
    shelves = (Layout(root).shelves(algorithm) for algorithm in ALGORITHMS)
    return any(any(shelf.iterdir()) for shelves_of in shelves if shelves_of.is_dir() for shelf in shelves_of.iterdir())


def _set_aside(path: Path, disk: Disk) -> None:
    """Rename what is there, the catalog first: what is left after a crash is then no catalog, and not a wrong one."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    for suffix in ("", *_BESIDE):
        with suppress(FileNotFoundError):
            disk.rename(Path(f"{path}{suffix}"), Path(f"{aside}{suffix}"))
            if not suffix:
                _log.error("the catalog was set aside as %s", aside)
    disk.fsync_folder(path.parent)


def _replace(path: Path, disk: Disk, fault: str) -> None:
    """Put the backup, or an empty catalog, in place of one that is gone."""
    backup = Layout(path.parent).backup
    replacement = path.with_name(f"{path.name}.replacement")
    _begin(replacement, disk)
    why_not = "there is none"
    if backup.exists():
        shutil.copyfile(backup, replacement)
        why_not = _why_not(replacement)
        if why_not:
            _begin(replacement, disk)
    with closing(connect(replacement)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE meta SET value = ? WHERE key = 'epoch'", (new_epoch(),))
        connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (RESCAN, fault))
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = DELETE")
    fd = disk.open(replacement)
    try:
        disk.fdatasync(fd)
    finally:
        os.close(fd)
    disk.rename(replacement, path)
    disk.fsync_folder(path.parent)
    taken = f"no backup could be used ({why_not}), an empty one" if why_not else f"the backup of {_time_of(backup)}"
    _log.error(
        "catalog %s is %s: %s takes its place, and the stored blobs are compared with it in the background",
        path,
        fault,
        taken,
    )


def _begin(path: Path, disk: Disk) -> None:
    for suffix in ("", "-journal", *_BESIDE):
        disk.unlink(Path(f"{path}{suffix}"))
    os.close(disk.create(path))


def _why_not(copy: Path) -> str:
    """Return why the copied backup cannot be used; empty when it can."""
    try:
        with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            made = int(connection.execute("PRAGMA user_version").fetchone()[0])
            verdict = str(connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        return f"it is damaged: {error}"
    if made > VERSION:
        raise CatalogTooNew(
            f"the backup of the catalog in {copy.parent} has schema {made}, this program knows up to {VERSION}: run "
            "the newer version, or move the backup away to begin with an empty catalog"
        )
    if verdict != "ok" or made == 0:
        return f"it is damaged: {verdict}" if made else "it is empty"
    return ""


def _time_of(path: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
