"""Getting the parts of images through the cache: bounded over all peers, each digest once at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from proxy.cache.fill import Arriving
from proxy.oci.descriptor import Manifest
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, Denied, NotFound, Transient, Unauthorized
from proxy.oci.names import Repository
from proxy.regions.peer import Refused
from proxy.store.catalog import Catalog
from proxy.store.errors import StoreError
from proxy.store.store import Store
from sync.walking import Body, is_here, stored_manifest

IMAGES_AT_ONCE = 4
BLOBS_AT_ONCE = 8
ERROR_LENGTH = 300


class Filler(Protocol):
    """The part of the cache that brings bytes here, from whoever has them, once for all who ask."""

    async def ensure_manifest(self, repository: Repository, digest: Digest) -> Manifest: ...

    async def ensure_blob(self, repository: Repository, digest: Digest) -> int: ...

    def arriving(self, digest: Digest) -> Arriving | None:
        """Return how far the download of a digest is; None where none runs."""
        ...

    def leave(self, digest: Digest) -> object:
        """End the download of a digest that nobody reads; what came of it is kept."""
        ...


class Fetcher:
    """State: the places, and who waits for which digest."""

    def __init__(self, catalog: Catalog, store: Store, cache: Filler) -> None:
        self._catalog = catalog
        self._store = store
        self._cache = cache
        self._places = asyncio.Semaphore(BLOBS_AT_ONCE)
        self._taken: dict[Digest, tuple[asyncio.Lock, int]] = {}
        self.images = asyncio.Semaphore(IMAGES_AT_ONCE)

    async def manifest(self, repository: Repository, digest: Digest) -> tuple[Body, int]:
        """Return a manifest, and how many bytes had to be fetched for it. Raises RegistryError, OSError."""
        stored = await stored_manifest(self._catalog, self._store, repository, digest)
        if stored is not None:
            return stored, 0
        async with self._alone(digest):
            stored = await stored_manifest(self._catalog, self._store, repository, digest)
            if stored is not None:
                return stored, 0
            async with self._places:
                found = await self._cache.ensure_manifest(repository, digest)
        return (found.body, found.descriptor.media_type), len(found.body)

    async def blob(self, repository: Repository, digest: Digest) -> int:
        """Bring a blob here; return how many bytes had to be fetched. Raises RegistryError, OSError.

        Whoever is cancelled lets go of the download at once.
        """
        async with self._alone(digest):
            if await is_here(self._catalog, repository, digest):
                return 0
            async with self._places:
                record = await self._catalog.blob(digest)
                had = record is not None and record.present
                try:
                    size = await self._cache.ensure_blob(repository, digest)
                except asyncio.CancelledError:
                    self._cache.leave(digest)
                    raise
        return 0 if had else size

    @asynccontextmanager
    async def _alone(self, digest: Digest) -> AsyncIterator[None]:
        lock, users = self._taken.get(digest, (asyncio.Lock(), 0))
        self._taken[digest] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._taken.pop(digest)
            if users > 1:
                self._taken[digest] = lock, users - 1


def reason_of(error: Exception) -> str:
    """Return what kind of failure it is: missing | corrupt | refused | store | unreachable | other."""
    match error:
        case NotFound():
            return "missing"
        case Denied() | Unauthorized() | Refused():
            return "refused"
        case BadContent():
            return "corrupt"
        case StoreError():
            return "store"
        case Transient() | OSError():
            return "unreachable"
    return "other"


def words_of(error: Exception) -> str:
    """Return what a failure says, cut to ERROR_LENGTH characters; of what nobody foresaw only its kind."""
    if reason_of(error) == "other":
        return f"{type(error).__name__}: the log has the reason"
    text = str(error) or type(error).__name__
    return text if len(text) <= ERROR_LENGTH else f"{text[: ERROR_LENGTH - 1]}…"
