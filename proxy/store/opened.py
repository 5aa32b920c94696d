"""Opening what is stored. A file that is not what the catalog says is set aside, and the catalog told."""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from proxy.oci.digest import Digest
from proxy.store.catalog import Catalog
from proxy.store.files import Files
from proxy.store.stored import StoredFile, Wrong, close_result, open_stored, read_stored
from proxy.store.tasks import Owned
from proxy.store.trash import Trash

THREADS = 4

_log = logging.getLogger(__name__)


class Opened:
    """State: the threads that open files."""

    def __init__(self, files: Files, catalog: Catalog, trash: Trash, owned: Owned) -> None:
        self._files = files
        self._catalog = catalog
        self._trash = trash
        self._owned = owned
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="store-read")

    async def aclose(self) -> None:
        """Let the threads end."""
        await asyncio.to_thread(self._executor.shutdown)

    async def open(self, digest: Digest) -> StoredFile | None:
        """Open a stored blob, None when there is none, or it was wrong."""
        record = await self._catalog.blob(digest)
        if record is None or not record.present:
            return None
        job = self._executor.submit(open_stored, self._files, digest, record.size)
        try:
            return StoredFile(await asyncio.wrap_future(job), record.size, record.media_type, digest)
        except asyncio.CancelledError:
            job.add_done_callback(close_result)
            raise
        except Wrong as wrong:
            await self._owned.run(self._lose(digest, wrong.found, record.size))
            return None

    async def read(self, digest: Digest, limit: int) -> bytes | None:
        """Return a stored blob of up to `limit` bytes, None when there is none, it is larger, or it was wrong."""
        record = await self._catalog.blob(digest)
        if record is None or not record.present or record.size > limit:
            return None
        try:
            return await asyncio.wrap_future(self._executor.submit(read_stored, self._files, digest, record.size))
        except Wrong as wrong:
            await self._owned.run(self._lose(digest, wrong.found, record.size))
            return None

    async def set_aside(self, digest: Digest, inode: int) -> None:
        """Set aside the file of a blob, if it still is that one, whose bytes somebody has found to be wrong."""
        await self._owned.run(self._set_aside(digest, inode))

    async def _set_aside(self, digest: Digest, inode: int) -> None:
        path = self._files.layout.blob(digest)
        target = await asyncio.to_thread(self._files.set_aside, path, inode)
        if target is not None:
            _log.error("blob %s does not hold what its name says; set aside as %s", digest, target)
            await self._catalog.lose_blob(digest, partial(self._still_there, digest))

    async def _lose(self, digest: Digest, found: os.stat_result | None, size: int) -> None:
        still_there = partial(self._still_there, digest)
        if found is None:
            if await self._catalog.lose_blob(digest, still_there):
                _log.error("blob %s is in the catalog but not on the disk: it is fetched again when asked for", digest)
            return
        path = self._files.layout.blob(digest)
        target = await asyncio.to_thread(self._files.set_aside, path, found.st_ino)
        _log.error("blob %s has %d bytes instead of %d; set aside as %s", digest, found.st_size, size, target)
        await self._catalog.lose_blob(digest, still_there)

    def _still_there(self, digest: Digest) -> bool:
        return self._files.has_blob(digest) or self._trash.restore(digest)
