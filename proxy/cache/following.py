"""Following a fill that another process of this node leads, until its claim is free or it stands still."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic

from proxy.cache.generation import Generation
from proxy.cache.lead import Shown
from proxy.cache.plan import Candidate
from proxy.cache.progress import Verdict
from proxy.oci.errors import BadContent
from proxy.store.claims import STALE_SECONDS, Claim, Watched
from proxy.store.inotify import Change
from proxy.store.record import StateRecord
from proxy.store.store import Store

ANOTHER = "another worker"


class Follower:
    """Shows what the leader publishes as generations of this process's fill. State: the one shown, and its record."""

    def __init__(self, fill: Shown, store: Store, on_mismatch: Callable[[Candidate | None], None]) -> None:
        self._fill = fill
        self._store = store
        self._on_mismatch = on_mismatch
        self._number = 0
        self._generation: Generation | None = None
        self._record: StateRecord | None = None

    async def until_claimed(self) -> Claim:
        """Return the claim once it is this process's: what to do then, the store and the spools tell.

        Readers of what was shown wait for the next generation meanwhile.
        """
        self._fill.supply.source = ANOTHER
        self._fill.supply.waits.begin()  # a leader shows bytes once its source has answered
        try:
            while True:
                with self._store.watching(self._fill.digest) as watched:
                    claim = await self._store.claim(self._fill.digest)
                    if claim is not None:
                        return claim
                    if watched is not None:
                        await self._watch(watched)
        finally:
            self._fill.supply.waits.end()
            self._leave()

    async def _watch(self, watched: Watched) -> None:
        """Follow until the claim may be free; a leader that stands still is put out."""
        while self._store.is_current(watched):
            says = watched.says()
            self._fill.supply.borrows(says.lender)
            self._refresh()
            if says.generation not in (0, self._number):
                await self._open(says.generation, says.copied)
            change = await watched.wait(STALE_SECONDS)
            if monotonic() - watched.says().beat >= STALE_SECONDS:
                await self._store.put_out(watched)
                return
            if change & ~Change.MODIFY:
                return

    async def _open(self, number: int, copied: int) -> None:
        """Show another generation. Where its files are gone already, the claim will tell what became of it."""
        digest = self._fill.digest
        followed = await self._store.follow(digest, number)
        if followed is None:
            return
        fd, record = followed
        try:
            intents = await self._store.catalog.intents(digest)
        except BaseException:
            os.close(fd)
            record.close()
            raise
        self._leave()
        self._number, self._record = number, record
        progress = record.progress()
        self._generation = Generation(digest, fd, progress.size if progress else None, number, copied)
        self._fill.supply.proven.update(intent.repository for intent in intents if intent.generation == number)
        self._refresh()
        self._fill.supply.waits.end()
        self._fill.announce(self._generation)

    def _refresh(self) -> None:
        if self._record is None or self._generation is None:
            return
        told, shown = self._record.progress(), self._generation.progress
        if told is None or shown.verdict is not Verdict.RUNNING:
            return
        shown.size = told.size if told.size is not None else shown.size
        self._fill.received = told.contiguous
        if told.verdict == "verified":
            shown.verified(told.releasable)
        elif told.verdict == "corrupt":
            self._on_mismatch(None)
            digest = self._fill.digest
            shown.broken(Verdict.CORRUPT, BadContent(f"the bytes received for {digest} do not match it"))
        else:
            shown.advance(told.releasable)

    def _leave(self) -> None:
        """Send the readers of what was shown on to what comes next."""
        self._refresh()
        if self._record is not None:
            self._record.close()
            self._record = None
        if self._generation is not None and self._generation.progress.verdict is Verdict.RUNNING:
            self._generation.progress.handed_over()
