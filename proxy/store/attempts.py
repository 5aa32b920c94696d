"""Attempts at blobs: begun, parked, resumed, abandoned, committed; each ends exactly once.

The intent is durable before the spool exists. A commit syncs the spool together with a note of what the catalog
will be told, renames it, syncs the folders, then makes one catalog transaction; whatever a crash leaves of that
is put right by `recovery`. The methods are to be run by an `Owned`: none may be cancelled half-way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent
from proxy.oci.manifests import ParsedManifest
from proxy.oci.names import Repository
from proxy.store.catalog import Catalog
from proxy.store.errors import StoreClosed
from proxy.store.files import CommitNote, Files, InUse
from proxy.store.records import Intent, Proof, Verified
from proxy.store.recovery import finish
from proxy.store.spool import Spool
from proxy.store.storing import Storing
from proxy.store.together import Together

THREADS = 4
NEW = 60.0
"""Seconds for which an attempt of another process may have no spool yet."""

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Attempts:
    """State: the attempts that run (`_active`), those being committed, those that wait to be resumed (oldest first)."""

    def __init__(self, files: Files, catalog: Catalog, interrupted: Iterable[Intent]) -> None:
        self._files = files
        self._catalog = catalog
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="store-write")
        self._active: dict[tuple[Digest, int], Spool] = {}
        self._committing: Counter[Digest] = Counter()
        self._interrupted: dict[Digest, list[Intent]] = {}
        for intent in interrupted:
            self._interrupted.setdefault(intent.digest, []).append(intent)

    def active(self) -> list[Spool]:
        """Return the spools of the attempts that run."""
        return list(self._active.values())

    def interrupted(self) -> list[Intent]:
        """Return the attempts that wait, oldest first."""
        waiting = [intent for intents in self._interrupted.values() for intent in intents]
        return sorted(waiting, key=lambda intent: intent.generation)

    def is_committing(self, digest: Digest) -> bool:
        """Tell whether the file may be in its place before the catalog knows."""
        return self._committing[digest] > 0

    async def aclose(self) -> None:
        """Let the threads end."""
        await asyncio.to_thread(self._executor.shutdown)

    async def begin(
        self,
        digest: Digest,
        size: int | None,
        repository: Repository,
        reserved: int,
        high: int | None,
        copied: int = 0,
    ) -> Spool:
        """Raises NoRoom when, with `reserved` bytes more, over `high` (None: no limit) would be stored and reserved."""
        generation = await self._catalog.add_intent(digest, size, repository, reserved, high)
        try:
            spool = await self._run(self._files.create_spool, digest, generation, size, repository, copied)
        except BaseException:
            await self._catalog.drop_intent(digest, generation)
            raise
        spool.reserved = reserved
        self._active[digest, generation] = spool
        return spool

    async def extend(self, spool: Spool, more: int, high: int | None) -> None:
        """Reserve `more` bytes for an attempt that runs. Raises NoRoom."""
        await self._catalog.extend_intent(spool.digest, spool.generation, more, high)
        spool.reserved += more

    async def forget_oldest(self) -> bool:
        """Remove the attempt that has waited longest to be resumed, in whatever process; False when none waits.

        Those of a process that was killed wait too. A commit that such a one had begun is carried to its end.
        """
        now = time.time()
        for intent in await self._catalog.intents():
            ours = any(one.generation == intent.generation for one in self._interrupted.get(intent.digest, ()))
            if (intent.digest, intent.generation) in self._active or (not ours and 0 <= now - intent.created < NEW):
                continue
            if ours:
                self._no_longer_waits(intent)
            if await self._run(self._files.in_use, intent):
                continue
            note = await self._run(self._files.note, intent)
            if note is not None:
                await finish(self._files, self._catalog, intent, note)
                return True
            if await self._forget_interrupted(intent):
                return True
        return False

    async def remove_strays(self) -> int:
        """Remove the files of attempts that have ended, which a process that was killed has left; return how many.

        An intent is there before its files, and goes only when they are of no more use.
        """
        found = await self._run(self._files.ingested)
        return await self._run(self._files.sweep_ingest, await self._catalog.intents(), found)

    async def resume(self, digest: Digest) -> Spool | None:
        """Return the newest spool that has certain bytes, having removed all others of the digest.

        A commit that a process which is gone had begun is carried to its end. What a process has that stands still,
        which can only wake to write on, is left to it, and copied. The caller holds the digest's claim.
        """
        intents = [one for one in await self._catalog.intents(digest) if (digest, one.generation) not in self._active]
        self._interrupted.pop(digest, None)
        chosen: Spool | None = None
        try:
            while intents:
                intent = intents[-1]
                note = await self._run(self._files.note, intent)
                if note is not None:
                    await finish(self._files, self._catalog, intent, note)
                else:
                    chosen = chosen or await self._taken_up(intent)
                    if chosen is None or chosen.generation != intent.generation:
                        await self._forget_interrupted(intent)
                intents.pop()
        except OSError:
            self._interrupted[digest] = intents
            if chosen is None:
                raise
            _log.warning("older spools of %s could not be removed", digest, exc_info=True)
        return chosen

    async def _taken_up(self, intent: Intent) -> Spool | None:
        try:
            spool = await self._run(self._files.reopen_spool, intent)
        except InUse:
            return await self._copied(intent)
        if spool is not None:
            self._active[intent.digest, intent.generation] = spool
        return spool

    async def _copied(self, intent: Intent) -> Spool | None:
        spool = await self.begin(intent.digest, None, intent.repository, 0, None, copied=intent.generation)
        try:
            await self._run(self._files.copy_spool, intent.digest, intent.generation, spool)
        except BaseException:
            await self.abandon(spool)
            raise
        if spool.contiguous:
            return spool
        await self.abandon(spool)
        return None

    async def park(self, spool: Spool) -> None:
        if self._active.pop((spool.digest, spool.generation), None) is None:
            return
        try:
            await self._run(spool.checkpoint)
        except OSError:
            _log.warning("spool of %s could not be synced: a power loss may cost it", spool.digest, exc_info=True)
        spool.close()
        if not spool.contiguous:
            await self._forget(spool.digest, spool.generation)
            return
        intent = Intent(spool.digest, spool.generation, spool.size, spool.repository, time.time(), spool.contiguous)
        self._interrupted.setdefault(spool.digest, []).append(intent)

    async def abandon(self, spool: Spool) -> None:
        if self._active.pop((spool.digest, spool.generation), None) is None:
            return
        spool.close()
        await self._forget(spool.digest, spool.generation)

    async def commit(
        self,
        spool: Spool,
        *,
        size: int,
        repository: Repository,
        proof: Proof,
        public: bool,
        parsed: ParsedManifest | None,
        shared: bool = False,
    ) -> None:
        """Raises CommitRefused, StoreClosed when the attempt has ended; after a failure it still runs."""
        digest, generation = key = (spool.digest, spool.generation)
        if self._active.pop(key, None) is None:
            raise StoreClosed(f"the attempt at {digest} has ended already: it cannot be committed")
        media_type = parsed.media_type if parsed else None
        note = CommitNote(size, (repository.upstream, repository.path), proof, public, media_type)
        try:
            with self._being_committed([digest]):
                await self._run(self._seal_and_install, spool, note)
                await self._catalog.store_blob(
                    digest,
                    size=size,
                    parsed=parsed,
                    public=public,
                    membership=(repository, proof),
                    generation=generation,
                    shared=shared,
                )
        except BaseException:
            self._active[key] = spool
            raise
        spool.close()
        await self._run(self._files.remove_spool, digest, generation)

    async def put_manifest(
        self,
        body: bytes,
        *,
        parsed: ParsedManifest,
        repository: Repository,
        proof: Proof,
        public: bool,
        digest: Digest,
        shared: bool = False,
    ) -> None:
        if await self._run(Digest.of, body, digest.algorithm) != digest:
            raise BadContent(f"manifest of {repository} does not match {digest}: it is not stored")
        record = await self._catalog.blob(digest)
        if record is not None and record.present:
            membership = (repository, proof)
            await self._catalog.store_blob(
                digest, size=len(body), parsed=parsed, public=public, membership=membership, shared=shared
            )
            return
        spool = await self.begin(digest, len(body), repository, len(body), None)
        try:
            await self._run(spool.write, 0, body)
            await self.commit(
                spool,
                size=len(body),
                repository=repository,
                proof=proof,
                public=public,
                parsed=parsed,
                shared=shared,
            )
        except BaseException:
            await self.abandon(spool)
            raise

    async def put_all(self, blobs: Sequence[Verified], proof: Proof, *, public: bool, high: int | None) -> None:
        """Store small blobs, for which `commit` would do the same one by one. Raises NoRoom, as `begin`, for all.

        After an OSError none is stored, or all are carried to their end by whoever resumes them.
        """
        generations = await self._catalog.add_intents(blobs, high)
        together = Together(self._files, blobs, generations)
        try:
            with self._being_committed([blob.digest for blob in blobs]):
                try:
                    await self._run(partial(together.seal, proof, public=public))
                except BaseException:
                    for blob, generation in zip(blobs, generations, strict=True):
                        await self._catalog.drop_intent(blob.digest, generation)
                    raise
                await self._run(together.install)
                await self._catalog.store_all(
                    [
                        Storing(blob.digest, len(blob.body), blob.parsed, public, (blob.repository, proof), generation)
                        for blob, generation in zip(blobs, generations, strict=True)
                    ]
                )
            await self._run(together.remove)
        finally:
            together.close()

    @contextmanager
    def _being_committed(self, digests: Sequence[Digest]) -> Iterator[None]:
        self._committing.update(digests)
        try:
            yield
        finally:
            self._committing.subtract(digests)
            for digest in digests:
                if not self._committing[digest]:
                    del self._committing[digest]

    def _seal_and_install(self, spool: Spool, note: CommitNote) -> None:
        self._files.seal(spool, note)
        self._files.install((spool.digest, spool.generation))

    async def _forget(self, digest: Digest, generation: int) -> None:
        await self._run(self._files.remove_spool, digest, generation)
        await self._catalog.drop_intent(digest, generation)

    async def _forget_interrupted(self, intent: Intent) -> bool:
        if not await self._run(self._files.remove_interrupted, intent):
            return False
        await self._catalog.drop_intent(intent.digest, intent.generation)
        return True

    def _no_longer_waits(self, intent: Intent) -> None:
        left = [one for one in self._interrupted.pop(intent.digest) if one.generation != intent.generation]
        if left:
            self._interrupted[intent.digest] = left

    async def _run(self, function: Callable[..., T], *values: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(function, *values))
