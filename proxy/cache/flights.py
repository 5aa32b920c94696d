"""Who fills: the table of running fills of this process, and the short memory of how fills failed.

Between the processes of a node claims decide (`store.claims`); each has the fill in its table, one leads it.

Remembered, all bounded and for a minute at most: wrong bytes per (repository, source, digest), so that the
next fill asks somebody else; digests that had wrong bytes (by the store, for all processes), so that no client
stitches a bad prefix to a good tail; what has just been committed; failures per (repository, digest), so that a
client's Range retry after a broken body fails at once (P28). Never per digest alone where that would let one
repository's failure be another's.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from concurrent.futures import Executor
from time import monotonic
from typing import Generic, TypeVar

from metrics.events import Emit, FillJoined
from proxy.cache.fill import Fill, FillStatus
from proxy.cache.lead import Means
from proxy.cache.near import Asker, Fleet
from proxy.cache.once import Background
from proxy.cache.plan import Candidate, Roster
from proxy.cache.progress import Signal
from proxy.cache.supply import Witness
from proxy.oci.digest import Digest
from proxy.oci.errors import GatewayTimeout, RegistryError, Transient, Unavailable
from proxy.oci.names import Repository
from proxy.source import Source
from proxy.store.records import Proof
from proxy.store.store import Store

SUSPECT_SECONDS = 60.0
BLAME_SECONDS = 60.0
FAILURE_SECONDS = 10.0
COMMITTED_SECONDS = 5.0
PATIENCE_SECONDS = 30.0
REMEMBERED = 4096
AT_ONCE = 256
QUEUED = 256

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Memory(Generic[K, V]):
    """Remembers values for some seconds, at most `REMEMBERED` of them."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def put(self, key: K, value: V) -> None:
        """Remember `value` from now on."""
        self._entries[key] = (monotonic() + self._seconds, value)
        self._entries.move_to_end(key)
        while len(self._entries) > REMEMBERED:
            self._entries.popitem(last=False)

    def get(self, key: K) -> V | None:
        """Return what is remembered, or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[0] < monotonic():
            del self._entries[key]
            return None
        return entry[1]


class Flights:
    """Starts fills in `background` and lets others join them."""

    def __init__(
        self,
        store: Store,
        background: Background,
        executor: Executor,
        emit: Emit,
        fleet: Fleet,
        witness: Witness,
        proof: Proof,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._means = Means(store, executor, emit, fleet, witness, proof)
        self._background = background
        self._emit = emit
        self._patience = patience
        self._running: dict[Digest, Fill] = {}
        self._tasks: dict[Digest, asyncio.Task[None]] = {}
        self._ended = Signal()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._blamed: Memory[tuple[Repository, str, Digest], bool] = Memory(BLAME_SECONDS)
        self._committed: Memory[Digest, bool] = Memory(COMMITTED_SECONDS)
        self._failed: Memory[tuple[Repository, Digest], RegistryError] = Memory(FAILURE_SECONDS)

    def running(self, digest: Digest) -> Fill | None:
        """Return the fill of `digest` that is under way."""
        return self._running.get(digest)

    def leave(self, digest: Digest) -> None:
        """End the fill of `digest` where nobody reads it or waits for it; what is there is kept for the next one."""
        fill = self._running.get(digest)
        if fill is not None and fill.leads and fill.deserted:
            self._tasks[digest].cancel()

    def statuses(self) -> list[FillStatus]:
        """Return all running fills."""
        return [fill.status() for fill in self._running.values()]

    async def idle(self) -> None:
        """Return when no fill is under way."""
        while self._running:
            await self.ended()

    async def ended(self) -> None:
        """Return when the next fill has ended."""
        await self._ended.wait()

    def just_committed(self, digest: Digest) -> bool:
        """Tell whether `digest` was committed so lately that an earlier look at the store may have missed it."""
        return self._committed.get(digest) is not None

    def suspect(self, digest: Digest) -> bool:
        """Tell whether wrong bytes of `digest` may be in clients' hands: no Range past 0 is answered then."""
        return self._means.store.suspected(digest)

    def doubt(self, digest: Digest) -> None:
        """Have `digest` suspected: wrong bytes of it were given to a client, who heard that by a cut."""
        self._mismatch(digest, None)

    def recent_failure(self, repository: Repository, digest: Digest) -> RegistryError | None:
        """Return how the last fill for `repository` failed, if that was a moment ago."""
        return self._failed.get((repository, digest))

    def start(
        self,
        digest: Digest,
        repository: Repository,
        sources: Sequence[Source],
        expected: int | None,
        asker: Asker = Asker.CLIENT,
    ) -> Fill:
        """Start the fill of `digest`, which is not under way. `expected` is its size in bytes, if it is known.

        `asker` says for whom: that decides whom it may wait for.

        At most `AT_ONCE` run, as many wait; Unavailable is raised beyond that.
        """
        if len(self._running) >= AT_ONCE + QUEUED:
            raise Unavailable(f"{len(self._running)} downloads run or wait: {digest} is not begun", retry_after=5)
        roster = Roster(self._patience)
        fill = Fill(
            digest,
            repository,
            roster,
            self._means,
            expected=expected,
            asker=asker,
            on_mismatch=lambda culprit: self._mismatch(digest, culprit),
        )
        self._add(fill, repository, sources)
        self._running[digest] = fill
        self._tasks[digest] = self._background.create_task(self._drive(fill), name=f"fill {digest}")
        return fill

    def join(self, fill: Fill, repository: Repository, sources: Sequence[Source]) -> None:
        """Add a repository that is known to have the digest, and its sources, to a running fill."""
        self._add(fill, repository, sources)
        fill.supply.proven.add(repository)
        fill.changed.wake()

    def joined(self, fill: Fill) -> None:
        """Count a reader that found the fill under way."""
        self._emit(FillJoined(fill.owner.upstream))

    def _add(self, fill: Fill, repository: Repository, sources: Sequence[Source]) -> None:
        for source in sources:
            blamed = self._blamed.get((repository, source.name, fill.digest)) is not None
            fill.supply.roster.add(repository, source, blamed=blamed)

    async def _drive(self, fill: Fill) -> None:
        try:
            async with self._turns:
                await fill.run()
        finally:
            del self._running[fill.digest], self._tasks[fill.digest]
            self._ended.wake()
            error = fill.finished.exception() if fill.finished.done() and not fill.finished.cancelled() else None
            if error is None:
                self._committed.put(fill.digest, True)
            if isinstance(error, Transient) and not isinstance(error, GatewayTimeout):
                for candidate in fill.supply.roster.candidates:
                    self._failed.put((candidate.repository, fill.digest), error)

    def _mismatch(self, digest: Digest, culprit: Candidate | None) -> None:
        self._means.store.suspect(digest, SUSPECT_SECONDS)
        if culprit is not None:
            self._blamed.put((culprit.repository, culprit.source.name, digest), True)
