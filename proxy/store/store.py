"""The store: content-addressed files and the catalog that speaks of them, kept in step through any crash.

It believes that its caller has verified what is committed, and knows nothing of sources, fills or readers. How
blobs enter is in `attempts`, what happens after a crash in `recovery`, the hashing of all in `verify`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Self

from proxy.oci.digest import Digest
from proxy.oci.manifests import ParsedManifest
from proxy.oci.names import Repository
from proxy.store.attempts import Attempts
from proxy.store.backup import Backup, BackupProgress, back_up
from proxy.store.ballast import Ballast
from proxy.store.catalog import Catalog, Proof
from proxy.store.claims import Claim, Claims, Watched
from proxy.store.coherence import Coherence
from proxy.store.disk import Disk
from proxy.store.errors import StoreClosed
from proxy.store.evict import UNSIZED, Volume
from proxy.store.eviction import Order, Step
from proxy.store.files import Files
from proxy.store.opened import Opened
from proxy.store.record import StateRecord
from proxy.store.records import Intent, StoreStats, Verified, VerifyProgress, VerifyReport
from proxy.store.recovery import recover
from proxy.store.rescan import rescan
from proxy.store.space import Space
from proxy.store.spool import Spool
from proxy.store.stored import StoredFile
from proxy.store.tasks import Owned
from proxy.store.trash import Trash, evict, recover_trash, settle
from proxy.store.verify import Verification


class Store:
    """Make it with `open`, end it with `close`. One process owns a data folder at a time; others may `attach` to it.

    Besides what each method names, StoreClosed is raised after `close`, and OSError (as CatalogError is) when the
    disk refuses.
    """

    def __init__(
        self, files: Files, catalog: Catalog, coherence: Coherence, lock: int, interrupted: list[Intent]
    ) -> None:
        self.catalog = catalog
        self.space = Space()
        self._trash = Trash(files.layout, files.disk)
        self._ballast = Ballast(files.layout.ballast, files.disk)
        self._files = files
        self._coherence = coherence
        self._lock = lock
        self._claims = Claims(files.layout)
        self._attempts = Attempts(files, catalog, interrupted)
        self._owned = Owned()
        self._opened = Opened(files, catalog, self._trash, self._owned)
        self._closed = False

    @classmethod
    async def open(cls, root: Path, *, disk: Disk | None = None, region: str = "local") -> Self:
        """Open or make the store in `root` and put right what the last run left.

        region: whose the observations are that are written to its catalog.

        Raises:
            StoreBusy: another process owns it; the message names it.
            CatalogTooNew: a newer version of the program has written it.
        """
        files = Files(root, disk or Disk())
        await asyncio.to_thread(files.prepare)
        owner = await asyncio.to_thread(files.lock)
        try:
            await asyncio.to_thread(files.wait_for_attached)
            coherence = await asyncio.to_thread(files.make_coherence)
            catalog = await Catalog.open(files.layout.catalog, files.disk, coherence, region)
            try:
                interrupted = await recover(files, catalog, time.time())
                await recover_trash(Trash(files.layout, files.disk), catalog)
                return cls(files, catalog, coherence, owner, interrupted)
            except BaseException:
                await catalog.aclose()
                raise
        except BaseException:
            os.close(owner)
            raise

    @classmethod
    async def attach(cls, root: Path, *, disk: Disk | None = None, region: str = "local") -> Self:
        """Open the store in `root` beside the process that owns it, which must outlive this one's use of it.

        region: as of `open`. Raises CatalogError, OSError.
        """
        files = Files(root, disk or Disk())
        lock = await asyncio.to_thread(files.attach)
        try:
            coherence = await asyncio.to_thread(files.share_coherence)
            catalog = await Catalog.attach(files.layout.catalog, coherence, region)
            return cls(files, catalog, coherence, lock, [])
        except BaseException:
            os.close(lock)
            raise

    async def close(self) -> None:
        """Finish what was begun, keep open spools for a later resume, and give the folder free."""
        if self._closed:
            return
        self._closed = True
        for spool in self._attempts.active():
            await self.park(spool)
        await self._owned.aclose()
        await self._attempts.aclose()
        await self.catalog.aclose()
        await self._opened.aclose()
        self._claims.close()
        self._coherence.close()
        os.close(self._lock)

    async def open_blob(self, digest: Digest) -> StoredFile | None:
        """Open a stored blob, None when there is none.

        A file that is gone or of the wrong size is set aside and the catalog told, and None is returned.
        """
        self._require_open()
        return await self._opened.open(digest)

    async def read_blob(self, digest: Digest, limit: int) -> bytes | None:
        """Return a stored blob of up to `limit` bytes, None when there is none, or it is larger."""
        self._require_open()
        return await self._opened.read(digest, limit)

    async def set_aside(self, digest: Digest, inode: int) -> None:
        """Set aside a stored blob whose file, this one, was read and does not match its digest; tell the catalog."""
        self._require_open()
        await self._opened.set_aside(digest, inode)

    async def begin(self, digest: Digest, size: int | None, repository: Repository) -> Spool:
        """Start an attempt at a blob of `size` bytes (None: unknown) that `repository` was asked for.

        Room for it is reserved first, or made. Raises TooLarge, NoRoom.
        """
        self._require_open()

        async def reserve(more: int, high: int | None) -> Spool:
            work = self._attempts.begin(digest, size, repository, more, high)
            return await self._owned.run(work, undo=self.abandon)

        return await self.space.admit(size, reserve)

    async def extend(self, spool: Spool, size: int) -> None:
        """Reserve what an attempt of unknown size needs to hold `size` bytes, and more. Raises TooLarge, NoRoom."""
        if size <= spool.reserved:
            return

        async def reserve(more: int, high: int | None) -> None:
            await self._attempts.extend(spool, more, high)

        marks = self.space.marks
        step = UNSIZED if marks is None else min(UNSIZED, max(1, marks.high // 8))
        await self.space.admit(size - spool.reserved + step, reserve)

    async def evict(self, order: Order) -> Step:
        """Carry out a step of an eviction: a bounded number of blobs leave the catalog, then the disk."""
        self._require_open()
        return await self._owned.run(evict(self.catalog, self._trash, order))

    async def forget_oldest(self) -> bool:
        """Give up the interrupted attempt that has waited longest to be resumed; False when none waits."""
        self._require_open()
        return await self._owned.run(self._attempts.forget_oldest())

    async def remove_strays(self) -> int:
        """Remove what a killed process has left of attempts that have ended; return how many files that were."""
        self._require_open()
        return await self._owned.run(self._attempts.remove_strays())

    async def empty_trash(self, moment: float) -> int:
        """Remove what was evicted before `moment` and is still there; return how many files that were."""
        self._require_open()
        return await self._owned.run(settle(self._trash, self.catalog, moment))

    async def volume(self) -> Volume:
        """Return how large the volume of the data folder is, what is free, and what spools take."""
        return await asyncio.to_thread(self._files.volume)

    async def keep_ballast(self, volume: Volume) -> None:
        """Set aside, where there is enough, the room that evictions need on a full volume."""
        await asyncio.to_thread(self._ballast.keep, volume)

    async def drop_ballast(self) -> bool:
        """Give that room free; False when it is free already."""
        return await asyncio.to_thread(self._ballast.drop)

    async def resume(self, digest: Digest) -> Spool | None:
        """Go on with the newest interrupted attempt that has certain bytes; others of the digest are removed.

        Of one that another process has, which stands still then, a copy is made.

        The caller holds the digest's claim, and looks afterwards whether the blob is stored by now.
        """
        self._require_open()
        return await self._owned.run(self._attempts.resume(digest), undo=self._park_if_any)

    async def claim(self, digest: Digest) -> Claim | None:
        """Return the right to fill `digest` in this node, None while another fill has it."""
        self._require_open()
        claim = await self._owned.run(asyncio.to_thread(self._claims.take, digest), undo=self._release_if_any)
        if claim is not None:
            claim.beat()
        return claim

    async def release(self, claim: Claim) -> None:
        """Let others fill."""
        claim.stop()
        await self._owned.run(asyncio.to_thread(claim.release))

    def suspect(self, digest: Digest, seconds: float) -> None:
        """Let all processes of this node know for so long that wrong bytes of `digest` may be in clients' hands."""
        self._coherence.suspect(digest, seconds)

    def suspected(self, digest: Digest) -> bool:
        """Tell whether `suspect` was called for `digest`, in whichever process."""
        return self._coherence.suspected(digest)

    def doubted(self, digest: Digest) -> bool:
        """Tell whether `suspect` was called lately, so that those who share `digest` with us may have it wrong."""
        return self._coherence.doubted(digest)

    def distrust(self) -> None:
        """Let no process believe what it keeps of the catalog: one has died that may have changed it just before."""
        self._coherence.all_changed()

    def watching(self, digest: Digest) -> AbstractContextManager[Watched | None]:
        """Watch the claim that another has on `digest`; None when nobody has one."""
        return self._claims.watching(digest)

    def is_current(self, watched: Watched) -> bool:
        """Tell whether that is still the claim that counts."""
        return self._claims.is_current(watched)

    async def put_out(self, watched: Watched) -> bool:
        """Take the claim from a process that stands still; True when it was, and `claim` may be tried."""
        return await asyncio.to_thread(self._claims.put_out, watched)

    async def follow(self, digest: Digest, generation: int) -> tuple[int, StateRecord] | None:
        """Open what another process fills, to read along; the caller closes both. None when it is gone."""
        self._require_open()
        return await asyncio.to_thread(self._files.follow_spool, digest, generation)

    async def park(self, spool: Spool) -> None:
        """End an attempt and keep its bytes for a later `resume`. Nothing to do when it has ended already."""
        await self._owned.run(self._attempts.park(spool))
        self.space.nudge_if_wanted()

    async def abandon(self, spool: Spool) -> None:
        """End an attempt and remove its bytes. Nothing to do when it has ended already."""
        await self._owned.run(self._attempts.abandon(spool))
        self.space.nudge_if_wanted()

    async def commit(
        self,
        spool: Spool,
        *,
        size: int,
        repository: Repository,
        proof: Proof,
        public: bool,
        parsed: ParsedManifest | None = None,
        shared: bool = False,
    ) -> None:
        """Store a spool whose digest and size the caller has verified (P38), and end the attempt.

        Once begun it completes, even if the caller is cancelled; idempotent when the blob is stored already.
        `public`: it was given anonymously. `parsed`: what it is, if it is a manifest. `shared`: it came from the
        fleet's bucket or from a node, and need not be uploaded.

        Raises:
            CommitRefused: the spool does not hold `size` bytes. The attempt then is still to be ended.
        """
        self._require_open()
        work = self._attempts.commit(
            spool, size=size, repository=repository, proof=proof, public=public, parsed=parsed, shared=shared
        )
        await self._owned.run(work, rescue=partial(self.park, spool))
        self.space.nudge_if_wanted()

    async def put_all(self, blobs: Sequence[Verified], proof: Proof, *, public: bool) -> None:
        """Store up to `together.MOST` small blobs whose digests the caller has verified: much sooner than one by one.

        None of them is stored, and nobody is at it. Once begun it completes; whatever a crash leaves of it, the next
        `resume` or start carries to its end. Raises TooLarge, NoRoom for all of them together.
        """
        self._require_open()

        async def reserve(more: int, high: int | None) -> None:
            await self._owned.run(self._attempts.put_all(blobs, proof, public=public, high=high))

        await self.space.admit(sum(len(blob.body) for blob in blobs), reserve)
        self.space.nudge_if_wanted()

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
        """Store a manifest as its exact bytes (P18), or add what is new about one that is stored. `shared` as `commit`.

        Raises:
            BadContent: the bytes do not match the digest.
        """
        self._require_open()
        work = self._attempts.put_manifest(
            body, parsed=parsed, repository=repository, proof=proof, public=public, digest=digest, shared=shared
        )
        try:
            await self._owned.run(work)
        except OSError:
            self.space.nudge()
            raise
        self.space.wrote(len(body))

    async def verify(
        self, progress: Callable[[VerifyProgress], None] = lambda progress: None, concurrency: int = 2
    ) -> VerifyReport:
        """Hash every stored blob again, in `concurrency` threads; set aside what is wrong, adopt what is unknown.

        `progress` is called in the event loop after each blob. May run beside fills.
        """
        self._require_open()
        verification = Verification(self._files, self.catalog, self._attempts.is_committing, progress, concurrency)
        report = await verification.run()
        await self.catalog.rescanned()
        return report

    @property
    def recovering(self) -> str | None:
        """Why the catalog was replaced (damaged, missing), until a rescan or a verification has ended; else None."""
        return self.catalog.replaced

    async def rescan(self) -> None:
        """Bring files and catalog together after the catalog was replaced (see `rescan`). May run beside fills."""
        self._require_open()
        await rescan(self._files, self.catalog, self._attempts.is_committing)

    @property
    def backup_path(self) -> Path:
        """Where `back_up` puts a copy of the catalog, and where one that is damaged is restored from."""
        return self._files.layout.backup

    async def back_up(
        self, target: Path | None = None, report: Callable[[BackupProgress], None] = lambda progress: None
    ) -> Backup:
        """Copy the catalog to `target`, else to `backup_path`, beside its use. Raises CatalogError, OSError."""
        self._require_open()
        return await back_up(self._files.layout.catalog, target or self.backup_path, self._files.disk, report)

    async def interrupted(self) -> list[Intent]:
        """Return the attempts that `resume` would go on with, oldest first."""
        return self._attempts.interrupted()

    async def stats(self) -> StoreStats:
        """Return what is stored, from totals that are kept, and how many attempts there are, in all processes."""
        return StoreStats(*await self.catalog.totals(), spools=len(await self.catalog.intents()))

    async def _park_if_any(self, spool: Spool | None) -> None:
        if spool is not None:
            await self.park(spool)

    async def _release_if_any(self, claim: Claim | None) -> None:
        if claim is not None:
            await asyncio.to_thread(claim.release)

    def _require_open(self) -> None:
        if self._closed:
            raise StoreClosed("the store is closed: the mirror is shutting down")
