"""What the catalog answers: tags, memberships, blob records, attempts, totals. What changes it is `catalog`'s.

Reads that the serving path repeats are answered from bounded caches without leaving the event loop; the others
take one hop to a reader's thread.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.manifests import Child
from proxy.oci.names import Repository, Tag
from proxy.oci.platforms import Platform
from proxy.store import changes, conflicting, eviction, feed, queries
from proxy.store.coherence import Coherence
from proxy.store.evict import Usage
from proxy.store.exchanged import TagChange
from proxy.store.lru import Lru
from proxy.store.readers import Readers
from proxy.store.records import BlobRecord, Conflict, Intent, TagRecord
from proxy.store.tagstate import read_others

CACHED = 50_000
MOST_REFERRERS = 1000

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")

LastCheck = Callable[[Repository, Tag], float | None]


class Reading:
    """State: the caches, which the commits of all processes keep right.

    last_check: when a tag was last confirmed, where the catalog does not show it yet.
    """

    def __init__(self, readers: Readers, coherence: Coherence, last_check: LastCheck) -> None:
        self._readers = readers
        self._coherence = coherence
        self._last_check = last_check
        self._tags: Lru[tuple[Repository, str], TagRecord] = Lru(CACHED, coherence, _spell("tag"))
        self._members: Lru[tuple[Repository, str], bool] = Lru(CACHED, coherence, _spell("member"))
        self._named: Lru[tuple[Repository, str], bool] = Lru(CACHED, coherence, _spell("named"))
        self._blobs: Lru[str, BlobRecord] = Lru(CACHED, coherence, lambda digest: digest)

    @property
    def moves(self) -> int:
        """Another number whenever a tag has moved or a blob was lost, in any process: answers kept before are void."""
        return self._coherence.moves

    async def tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """Return what a tag was last seen to be."""

        async def read() -> TagRecord | None:
            row = await self._readers.row(queries.TAG, (*repository, tag))
            if row is None:
                return None
            digest, media_type, size, version, origin, observed_at, checked_at, denied_at, *rest = row
            pending, pending_at, others = rest
            noted = self._last_check(repository, tag)
            if noted is not None and not changes.is_late(noted, checked_at):
                checked_at = noted
            descriptor = Descriptor(media_type, Digest(digest), size)
            held = Digest(pending) if pending else None
            past = tuple(Digest(entry.digest) for entry in read_others(others) if entry.digest)
            return TagRecord(
                descriptor, version, origin, observed_at, checked_at, denied_at, held, pending_at or 0.0, past
            )

        return await _cached(self._tags, (repository, tag), read)

    async def tag_change(self, repository: Repository, tag: Tag) -> TagChange | None:
        """Return a tag's record as it is exchanged, a tombstone's too; `seq` and `at` are 0. Not cached."""
        row = await self._readers.row(queries.TAG_CHANGE, (*repository, tag))
        return None if row is None else feed.tag_change(*row)

    async def conflicts(self, limit: int) -> list[Conflict]:
        """Return up to `limit` tags that regions moved without knowing of each other, the newest first."""
        return await self._readers.run(lambda connection: conflicting.read_conflicts(connection, limit))

    async def list_tags(self, repository: Repository, after: str | None, limit: int, since: float = 0.0) -> list[Tag]:
        """Return up to `limit` tags after `after` in ASCII order (P11), none gone or last confirmed before `since`."""
        rows = await self._readers.rows(queries.TAGS, (*repository, after or "", since, limit))
        return [Tag(row[0]) for row in rows]

    async def list_referrers(self, repository: Repository, subject: Digest) -> list[tuple[Descriptor, str | None]]:
        """Return the stored manifests of the repository that refer to `subject`, with their artifact types (P12)."""
        rows = await self._readers.rows(queries.REFERRERS, (*repository, subject, MOST_REFERRERS))
        return [(Descriptor(media_type, Digest(digest), size), kind or None) for digest, media_type, size, kind in rows]

    async def list_repositories(self, after: str | None, limit: int) -> list[str]:
        """Return up to `limit` names, upstream and all, after `after`, in ASCII order (P15). Walks the table."""
        return [row[0] for row in await self._readers.rows(queries.REPOSITORIES, (after or "", limit))]

    async def has_membership(self, repository: Repository, digest: Digest) -> bool:
        """Tell whether the repository is proven to contain the digest (P43)."""

        async def read() -> bool | None:
            return True if await self._readers.row(queries.MEMBERSHIP, (*repository, digest)) else None

        member = await _cached(self._members, (repository, digest), read)
        return member is True

    async def named_in(self, repository: Repository, digest: Digest) -> bool:
        """Tell whether a manifest that the repository is proven to contain has the digest for a child.

        That is no proof by itself (P43): it suffices only for a public blob.
        """

        async def read() -> bool | None:
            return True if await self._readers.row(queries.NAMED_IN, (*repository, digest)) else None

        named = await _cached(self._named, (repository, digest), read)
        return named is True

    async def blob(self, digest: Digest) -> BlobRecord | None:
        """Return what is known of a blob that is, or was, stored."""

        async def read() -> BlobRecord | None:
            row = await self._readers.row(queries.BLOB, (digest,))
            if row is None:
                return None
            size, media_type, present, public, servable, complete = row
            return BlobRecord(digest, size, media_type, bool(present), bool(public), bool(servable), bool(complete))

        return await _cached(self._blobs, digest, read)

    async def expected_size(self, digest: Digest) -> int | None:
        """Return the size in bytes that the digest must have: as stored once, or as all manifests that name it say."""
        row = await self._readers.row(queries.EXPECTED_SIZE, {"digest": digest})
        return None if row is None else row[0]

    async def children(self, digest: Digest) -> tuple[Child, ...]:
        """Return what a manifest names, each digest once, in the manifest's order."""
        return await self._readers.run(lambda connection: _children(connection, digest))

    async def usage(self) -> Usage:
        """Return how many bytes are stored and reserved."""
        return await self._readers.run(eviction.usage)

    async def totals(self) -> tuple[int, int, int, int, int]:
        """Return the numbers of blobs, bytes, manifests, repositories and tags; kept, not counted."""
        row = await self._readers.row(queries.TOTALS, ())
        return row[0], row[1], row[2], row[3], row[4]

    async def intents(self, digest: Digest | None = None) -> list[Intent]:
        """Return the attempts (at `digest`) that have not ended, oldest first."""
        if digest is None:
            rows = await self._readers.rows(queries.INTENTS, ())
        else:
            rows = await self._readers.rows(queries.INTENTS_OF, (digest,))
        return [
            Intent(Digest(digest), generation, size, Repository(upstream, path), created)
            for digest, generation, size, upstream, path, created in rows
        ]

    async def shelf(self, algorithm: str, prefix: str) -> dict[Digest, int]:
        """Return the sizes of the present blobs whose hex begins with `prefix`."""
        low = f"{algorithm}:{prefix}"
        rows = await self._readers.rows(queries.SHELF, (low, f"{low}g"))
        return {Digest(digest): size for digest, size in rows}

    async def read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Return what `read` finds, in a reader's thread: for those whose statements are their own."""
        return await self._readers.run(read)


def _children(connection: sqlite3.Connection, digest: Digest) -> tuple[Child, ...]:
    """Return what a manifest names; an index may name thousands, too many for the event loop."""
    return tuple(
        Child(
            Descriptor(media_type, Digest(child), size),
            role,
            Platform(*json.loads(platform)) if platform else None,
            bool(required),
        )
        for child, media_type, size, role, platform, required in connection.execute(queries.CHILDREN, (digest,))
    )


def _spell(kind: str) -> Callable[[tuple[Repository, str]], str]:
    return lambda key: f"{kind} {key[0][0]}/{key[0][1]} {key[1]}"


async def _cached(cache: Lru[K, V], key: K, read: Callable[[], Awaitable[V | None]]) -> V | None:
    value = cache.get(key)
    if value is not None:
        return value
    ticket = cache.begin(key)
    try:
        value = await read()
    finally:
        cache.end(key, ticket, value)
    return value
