"""The catalog: tags, memberships, blob records and intents, in SQLite. It knows nothing of files.

What it answers is in `reading`; here it is opened and changed. All writes go through the one `Writer`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self, TypeVar

from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.manifests import ParsedManifest
from proxy.oci.names import Reference, Repository, Tag
from proxy.store import changes, closure, eviction, feed, keeping, merging, queries, roots, uploading, wanted
from proxy.store.coherence import Coherence
from proxy.store.disk import Disk
from proxy.store.exchanged import MembershipChange, Page, TagChange
from proxy.store.opening import RESCAN, attach_catalog, open_catalog
from proxy.store.published import Published
from proxy.store.readers import Readers
from proxy.store.reading import Reading
from proxy.store.records import BlobRecord, Intent, Proof, TagRecord, Verified
from proxy.store.storing import Storing, store
from proxy.store.touches import Checks, Touches, Uses
from proxy.store.writer import Transaction, Writer

__all__ = ["BlobRecord", "Catalog", "Intent", "Proof", "TagRecord"]

T = TypeVar("T")
Also = Callable[[Transaction], None]


class Catalog(Reading):
    """Make it with `open`, end it with `aclose`. Its methods raise CatalogError when SQLite refuses.

    State: besides the caches the touches that wait to be written. `replaced`: why another catalog was replaced by this
    one, while the files have still to be compared with it (see `opening`). `queued`: set when this process has given
    the queue of uploads something to do.
    """

    def __init__(self, writer: Writer, readers: Readers, coherence: Coherence, published: Published) -> None:
        self._touches = Touches(self._write_touches)
        super().__init__(readers, coherence, self._touches.last_check)
        self._writer = writer
        self.published = published
        self.replaced: str | None = None
        self.queued = asyncio.Event()

    @classmethod
    async def open(cls, path: Path, disk: Disk, coherence: Coherence | None = None, region: str = "local") -> Self:
        """Open or create the catalog at `path`, replacing one that is damaged; `coherence` is shared by processes.

        region: whose the observations are that are written here. Raises CatalogError, CatalogTooNew.
        """
        catalog = await cls._over(path, lambda: open_catalog(path, disk), coherence or Coherence(), region)
        try:
            mark = await catalog._readers.row(queries.META, (RESCAN,))
            while await catalog._writer.write(roots.go_on):
                pass
        except BaseException:
            await catalog.aclose()
            raise
        catalog.replaced = None if mark is None else str(mark[0])
        return catalog

    @classmethod
    async def attach(cls, path: Path, coherence: Coherence, region: str = "local") -> Self:
        """Open the catalog that another process has opened, who alone may replace it. Raises as `open`."""
        return await cls._over(path, lambda: attach_catalog(path), coherence, region)

    @classmethod
    async def _over(
        cls, path: Path, connect: Callable[[], sqlite3.Connection], coherence: Coherence, region: str
    ) -> Self:
        readers = Readers(path)
        try:
            published = Published(coherence)
            writer = Writer(await readers.call(connect), published.tell, region)
            writer.start()
            return cls(writer, readers, coherence, published)
        except BaseException:
            await readers.aclose()
            raise

    @property
    def epoch(self) -> str:
        """What names this catalog for the change feed: another value means another history."""
        return self._writer.epoch

    @property
    def region(self) -> str:
        """Whose the observations are that are written here."""
        return self._writer.region

    @property
    def mesh(self) -> bytes:
        """The key of the hashes that regions compare. A secret: for those who have a grant."""
        return self._writer.mesh

    async def rekey(self, mesh: bytes) -> None:
        """Take another mesh key (1 to 64 bytes), as all nodes of a fleet have the same; before anybody compares."""
        while await self._writer.write(lambda transaction: roots.rekey(transaction, mesh)):
            pass

    @property
    def damaged(self) -> str | None:
        """Why the file cannot be read any more, as far as that was met; only the next start mends it."""
        return self._readers.damaged

    async def aclose(self) -> None:
        """Write what waits, then close the file."""
        await self._touches.aclose()
        await self._writer.aclose()
        await self._readers.aclose()

    async def put_tag(self, repository: Repository, tag: Tag, descriptor: Descriptor, now: float) -> bool:
        """Record what a tag is at `now`; True when it is new or has moved. An equal digest only counts as a check."""

        def operation(transaction: Transaction) -> bool:
            transaction.on_commit(lambda: self._forget_tag(repository, tag))
            return changes.put_tag(transaction, repository, tag, descriptor, now)

        return await self._writer.write(operation)

    async def touch_tag(self, repository: Repository, tag: Tag, now: float) -> None:
        """Record that a tag was confirmed at `now`: seen by `tag` at once, written with the next batch."""
        self._touches.checked(repository, tag, now)
        key = (repository, tag)
        known = self._tags.get(key)
        if known is not None:
            self._tags.replace(key, replace(known, checked_at=now))

    async def hold_tag(self, repository: Repository, tag: Tag, pending: Digest, now: float) -> None:
        """Record that a known tag was seen at `now` to be `pending`, which is not what it is served as yet."""

        def operation(transaction: Transaction) -> None:
            transaction.on_commit(lambda: self._tags.forget((repository, tag)))
            changes.hold_tag(transaction, repository, tag, pending, now)

        await self._writer.write(operation)

    async def deny_tag(self, repository: Repository, tag: Tag, now: float) -> None:
        """Record that the upstream refused a known tag at `now`. It stays known, and counts as gone until confirmed."""

        def operation(transaction: Transaction) -> None:
            transaction.on_commit(lambda: self._forget_tag(repository, tag))
            changes.deny_tag(transaction, repository, tag, now)

        await self._writer.write(operation)

    async def prove(self, repository: Repository, digest: Digest, proof: Proof) -> None:
        """Record that the repository contains the digest. The first proof stays."""
        if not await self.has_membership(repository, digest):
            now = time.time()

            def operation(transaction: Transaction) -> None:
                # What was removed is wanted again: a collector that has not heard of it may find the object too old.
                renew = uploading.is_buried(transaction, digest) and closure.is_present(transaction, digest)
                changes.prove(transaction, repository, digest, proof, now)
                if renew and uploading.recorded(transaction, digest, now, wanted=True, held=False):
                    transaction.on_commit(self.queued.set)

            await self._writer.write(operation)

    def touch(self, digest: Digest) -> None:
        """Note that a blob was used now; written with the next batch."""
        self._touches.used(digest, time.time())

    async def store_blob(
        self,
        digest: Digest,
        *,
        size: int,
        parsed: ParsedManifest | None,
        public: bool,
        membership: tuple[Repository, Proof] | None,
        generation: int | None = None,
        shared: bool = False,
    ) -> None:
        """Record a verified, durable blob with its edges and membership, and end its intent. Idempotent.

        `shared`: it came from the fleet's bucket or from a node, so that it need not be uploaded.
        """
        await self.store_all([Storing(digest, size, parsed, public, membership, generation, shared)])

    async def store_all(self, blobs: Sequence[Storing]) -> None:
        """Record several as `store_blob` does, in one transaction."""
        now = time.time()

        def operation(transaction: Transaction) -> None:
            for blob in blobs:
                store(transaction, blob, now, self._forget_blobs, self.queued.set)

        await self._writer.write(operation)

    async def lose_blob(self, digest: Digest, still_there: Callable[[], bool]) -> bool:
        """Record that a blob's file is gone, unless `still_there`, asked in the writer's thread, says otherwise.

        False also when that was known: it was evicted meanwhile. No eviction is half done while `still_there` is asked.
        """

        def operation(transaction: Transaction) -> bool:
            if not closure.is_present(transaction, digest) or still_there():
                return False
            closure.lose_blob(transaction, digest, self._forget_blobs)
            transaction.on_commit(self._coherence.moved)
            return True

        return await self._writer.write(operation)

    async def add_intent(
        self, digest: Digest, size: int | None, repository: Repository, reserved: int = 0, high: int | None = None
    ) -> int:
        """Record that an attempt at a blob begins; return its generation, greater than all before.

        `reserved` bytes are kept for it. Raises NoRoom when that makes more than `high` (None: no limit).
        """
        now = time.time()
        return await self._writer.write(
            lambda transaction: changes.add_intent(transaction, digest, size, repository, now, reserved, high)
        )

    async def add_intents(self, blobs: Sequence[Verified], high: int | None) -> list[int]:
        """As `add_intent` for each, with its size reserved, in one transaction. Raises NoRoom for all together."""
        now = time.time()
        return await self._writer.write(lambda transaction: changes.add_intents(transaction, blobs, now, high))

    async def extend_intent(self, digest: Digest, generation: int, more: int, high: int | None) -> None:
        """Reserve `more` bytes for an attempt that runs. Raises NoRoom."""
        await self._writer.write(lambda transaction: changes.extend_intent(transaction, digest, generation, more, high))

    async def evict(self, order: eviction.Order, move: Callable[[Digest, int], None]) -> eviction.Step:
        """Carry out a step of an eviction, with all last uses up to now known. `move` is called in another thread."""
        await self._touches.flush()

        def operation(transaction: Transaction) -> eviction.Step:
            done = eviction.step(transaction, order, move, self._forget_blobs)
            if done.moved:
                transaction.on_commit(self._coherence.moved)
            return done

        return await self._writer.write(operation)

    async def while_present(self, digest: Digest, work: Callable[[], None]) -> None:
        """Call `work` in the writer's thread, with no eviction half done, if the blob counts as stored."""

        def operation(transaction: Transaction) -> None:
            if closure.is_present(transaction, digest):
                work()

        await self._writer.write(operation)

    async def drop_intent(self, digest: Digest, generation: int) -> None:
        """Record that an attempt has ended without a blob."""
        await self._writer.write(lambda transaction: changes.drop_intent(transaction, digest, generation))

    async def rescanned(self) -> None:
        """Record that files and catalog agree."""
        if self.replaced is None:
            return

        def operation(transaction: Transaction) -> None:
            transaction.connection.execute("DELETE FROM meta WHERE key = ?", (RESCAN,))

        await self._writer.write(operation)
        self.replaced = None

    async def pin(self, repository: Repository, reference: Reference) -> bool:
        """Keep what the reference is from eviction; True when it was not pinned before."""
        now = time.time()
        return await self._writer.write(lambda transaction: keeping.pin(transaction, repository, reference, now))

    async def unpin(self, repository: Repository, reference: Reference) -> bool:
        """End a pin; False when there was none."""
        now = time.time()
        return await self._writer.write(lambda transaction: keeping.unpin(transaction, repository, reference, now))

    async def remove(self, repository: Repository, reference: Reference) -> keeping.Removal:
        """Remove a tag, or a digest with its tags and what belonged to it alone, unless it is pinned."""
        now = time.time()

        def forget(removal: keeping.Removal, named: list[str]) -> None:
            for tag in removal.tags:
                self._forget_tag(repository, Tag(tag))
            if len(named) > merging.MOST_NAMED:
                self._coherence.all_changed()
                return
            for digest in removal.digests:
                self._members.forget((repository, digest))
            for child in named:
                self._named.forget((repository, child))
            if removal.digests:
                self._coherence.moved()

        return await self._writer.write(
            lambda transaction: keeping.remove(transaction, repository, reference, now, forget)
        )

    async def aim(self, store: str | None) -> None:
        """Note which store, named by a hash of its URL, the blobs are uploaded to from now on; None: to none.

        Before anything is served: what is recorded later is queued or not as that says, in every process.
        """
        await self._writer.write(lambda transaction: uploading.aim(transaction, store))

    async def learn(self, digest: Digest, size: int, parsed: ParsedManifest | None) -> None:
        """Record what a verified blob that only others have stored is, and names. See `wanted.learn`."""
        now = time.time()
        await self._writer.write(
            lambda transaction: wanted.learn(transaction, digest, size, parsed, now, self._forget_blobs)
        )

    async def write(self, operation: Callable[[Transaction], T]) -> T:
        """Return what `operation` gives, in the writer's thread: for those whose statements are their own."""
        return await self._writer.write(operation)

    async def merge(
        self, page: Page, repositories: Sequence[Repository], start: int, node: str, *, hold: bool = False
    ) -> feed.Merged:
        """Merge what `node` said, from the record `start` on, as far as one short step goes. See `feed.merge`."""
        now = time.time()

        def operation(transaction: Transaction) -> feed.Merged:
            merged = feed.merge(transaction, page, repositories, start, node, now, hold)
            if merged.void_tags or merged.void_members:
                transaction.on_commit(lambda: self._forget_merged(merged))
            return merged

        return await self._writer.write(operation)

    async def apply(
        self, repository: Repository, told: Sequence[TagChange | MembershipChange], also: Also | None = None
    ) -> feed.Merged:
        """As `apply_all`, of records of one repository."""
        return await self.apply_all([(repository, told)], also=also)

    async def apply_all(
        self,
        told: Sequence[tuple[Repository, Sequence[TagChange | MembershipChange]]],
        seen: Sequence[tuple[Repository, Tag, Descriptor]] = (),
        also: Also | None = None,
    ) -> feed.Merged:
        """Take over records that another region told, and tags as if `seen` now, and do `also`, in one transaction.

        Raises Pinned: a removal of what is kept here; nothing is written then. Further as `merging.apply`.
        """
        now = time.time()

        def operation(transaction: Transaction) -> feed.Merged:
            merged = merging.apply(transaction, told, now)
            for repository, tag, descriptor in seen:
                if changes.put_tag(transaction, repository, tag, descriptor, now):
                    merged.saw(repository, tag)
            if also is not None:
                also(transaction)
            transaction.on_commit(lambda: self._forget_merged(merged))
            return merged

        return await self._writer.write(operation)

    async def _write_touches(self, uses: Uses, checks: Checks) -> None:
        def forget_loads() -> None:
            for key in checks:
                self._tags.cancel(key)

        def operation(transaction: Transaction) -> None:
            transaction.on_commit(forget_loads)
            changes.write_touches(transaction, uses, checks)

        await self._writer.write(operation)

    def _forget_tag(self, repository: Repository, tag: Tag) -> None:
        self._tags.forget((repository, tag))
        self._coherence.moved()

    def _forget_merged(self, merged: feed.Merged) -> None:
        if merged.void_all:
            self._coherence.all_changed()
            return
        for repository, tag in merged.void_tags:
            self._tags.forget((repository, tag))
        for member in merged.void_members:
            self._members.forget(member)
        for named in merged.void_named:
            self._named.forget(named)
        if merged.moved:
            self._coherence.moved()

    def _forget_blobs(self, digests: list[str]) -> None:
        for digest in digests:
            self._blobs.forget(digest)
