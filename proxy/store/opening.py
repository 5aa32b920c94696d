"""Opening the catalog file: a damaged one is set aside, so that the mirror starts without it."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from proxy.store.disk import Disk
from proxy.store.errors import CatalogError
from proxy.store.schema import connect

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_log = logging.getLogger(__name__)


def open_catalog(path: Path, disk: Disk) -> sqlite3.Connection:
    """Return the writing connection to the catalog at `path`. Blocks.

    A file that SQLite calls damaged is renamed and logged, and an empty catalog takes its place: nothing is
    served that it does not know, and what is pulled again or verified comes back.

    Raises:
        CatalogTooNew: a newer version of the program has written it.
        CatalogError: it cannot be opened, read or written.
    """
    with suppress(FileExistsError):
        os.close(disk.create(path))
    try:
        return connect(path)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF not in _DAMAGED:
            raise CatalogError(
                f"catalog {path} cannot be opened: {error}. Check its permissions and free space"
            ) from error
        aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
        for suffix in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                disk.rename(Path(f"{path}{suffix}"), Path(f"{aside}{suffix}"))
        disk.fsync_folder(path.parent)
        _log.error(
            "catalog %s is damaged (%s) and was set aside as %s; an empty one takes its place: "
            "run `entrepot verify` to take the stored blobs in again",
            path,
            error,
            aside,
        )
    try:
        return connect(path)
    except sqlite3.DatabaseError as error:
        raise CatalogError(f"catalog {path} cannot be made: {error}. Check permissions and free space") from error
