"""Following what another region says: one task per peer asks, takes over, compares, and waits for more.

    ask → merge → compare fingerprints → (reconcile) → ask and wait; a failure: pause, and ask again

What is said goes into the shadow of the peer and what it changes here into rows that wait (`proxy/store/shadow`); who
works those off is told that there are more. Every answer that goes up to the peer's head says the fingerprint of all it
has. Where the shadow has another, or the peer does not know the position that it was told, ranges are compared
(`reconcile`), and the feed is read on from where it stood at the first answer. Steady traffic never comes to that.

A region may have several nodes behind one name, each with a feed of its own. What one of them has, another has a moment
later: with several of them a difference counts once the node that says so has nothing new since it was asked before.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from metrics.events import Emit, PeerFailed, PeerPolled, PeerReconciled
from proxy.oci.errors import BadContent, Denied, RegistryError, Unauthorized, Unavailable
from proxy.oci.names import Repository
from proxy.regions.peer import Refused
from proxy.regions.scope import Scope
from proxy.store.catalog import Catalog
from proxy.store.errors import StoreError
from proxy.store.ranges import Sum
from proxy.store.roots import Marks
from proxy.store.shadow import Peer
from sync.comparing import Comparison
from sync.exchange import SameCatalog
from sync.regional_records import (
    RANGES,
    RangesQuestion,
    RangesTold,
    RootsQuestion,
    RootsTold,
    decode_ranges,
    decode_roots,
    encode,
    mesh_name,
)
from sync.taking import Taker

WAIT_SECONDS = 25.0
GRACE_SECONDS = 20.0
RANGES_SECONDS = 60.0
SETTLE_SECONDS = 2.0
"""So long a node may take to hear what another node of its region has said."""
PAUSE_SECONDS = (0.5, 60.0)
MOST_RECONCILIATIONS = 3
"""So often in a row two catalogs may be compared without being alike afterwards."""
MOST_KEYS = 3
"""So often in a row a peer may say its records under another key."""
MOST_TURNS = 100_000
"""So many answers may come in a row without reaching the peer's head."""

_log = logging.getLogger(__name__)

Fetch = Callable[[str, float, bytes | None], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Following:
    """How far a peer's records are here.

    records: how many it has that we may know. rounds: questions about ranges since the start; sync_bytes: of the bodies
    of all questions and answers since then. error: why it could not be asked the last time. read_at: when all that it
    had was here last, in seconds since the epoch.
    """

    records: int = 0
    rounds: int = 0
    sync_bytes: int = 0
    error: str | None = None
    read_at: float | None = None


def reason_of(error: Exception) -> str:
    """Return why a peer could not be asked: same-catalog | unreadable | refused | store | unreachable | other."""
    match error:
        case SameCatalog():
            return "same-catalog"
        case BadContent():
            return "unreadable"
        case Unauthorized() | Denied() | Refused():
            return "refused"
        case StoreError():
            return "store"
        case RegistryError() | OSError():
            return "unreachable"
    return "other"


class Follower:
    """See the module. `run` it, or call `once`; both at a time take turns.

    scope: the repositories to follow. fetch: asks the peer for a path with its query, gives it so many seconds, with a
    body as POST, and returns the answer's body; raises RegistryError, OSError or TimeoutError. news: called when more
    rows wait. State: the standing; heads at which the peer's nodes had other records; how often in a row the two were
    compared, and begun anew; what was told about in the log.
    """

    def __init__(
        self, catalog: Catalog, name: str, scope: Scope, fetch: Fetch, emit: Emit, news: Callable[[], None]
    ) -> None:
        self._catalog = catalog
        self._name = name
        self._scope = scope
        self._fetch = fetch
        self._emit = emit
        self._taker = Taker(catalog, name, scope, news)
        self._turn = asyncio.Lock()
        self._hurried = asyncio.Event()
        self._standing = Following()
        self._differing: dict[str, int] = {}
        self._reconciled = self._renewed = 0
        self._told_name = False

    @property
    def standing(self) -> Following:
        """How far the peer's records are here."""
        return self._standing

    async def run(self) -> None:
        """Follow the peer until cancelled."""
        loop = asyncio.get_running_loop()
        failures = turns = 0
        current = False
        while True:
            began = loop.time()
            try:
                async with self._turn:
                    current = await self._poll(WAIT_SECONDS if current else self._patience)
                turns = 0 if current else self._turned(turns)
                failures = 0 if current else failures
            except Exception as error:
                self._failed(error, first=failures == 0)
                current = False
                failures, turns = failures + 1, 0
                least, most = PAUSE_SECONDS
                await asyncio.sleep(min(most, least * 2 ** min(failures, 16)) * random.uniform(0.5, 1.0))
                continue
            if current and loop.time() - began < PAUSE_SECONDS[0]:
                await asyncio.sleep(PAUSE_SECONDS[0])  # there is news all the time, or nobody is let wait

    async def once(self) -> None:
        """Take over all that the peer has now. Raises what `fetch` does, StoreError, BadContent."""
        self._hurried.set()  # `run` may be waiting for news
        async with self._turn:
            self._hurried.clear()
            try:
                turns = 0
                while not await self._poll(self._patience):
                    turns = self._turned(turns)
            except Exception as error:
                self._failed(error, first=True)
                raise

    @property
    def _patience(self) -> float:
        """How long to wait for news while it is not known whether all that the peer has is here."""
        return SETTLE_SECONDS if self._differing else 0.0

    async def _poll(self, wait: float) -> bool:
        """Ask once, and take over what is said. True: all that the peer had is here."""
        peer = await self._taker.peer()
        body = await self._answer(RootsQuestion(peer.positions, self._scope, wait if peer.positions else 0.0))
        if body is None:
            return False
        told, repositories = decode_roots(body, self._scope)
        self._check(told)
        self._count(len(body))
        self._emit(PeerPolled(self._name, len(body), len(told.records)))
        if peer.mesh is None or mesh_name(peer.mesh) != told.mesh_name:
            await self._learn_mesh(peer, told)
            return False
        known = peer.positions.get(told.epoch)
        if not told.restart:
            if known is None or told.next < known + (told.more and not told.records):
                raise BadContent(f"region {self._name} answers about another catalog or position than was asked for")
            if told.records or told.next != known:
                records = [(repositories[record.at], record) for record in told.records]
                await self._taker.take(peer, Marks(peer.mesh), records, (told.epoch, told.next))
        return not told.more and await self._compare(peer, peer.mesh, told)

    async def _answer(self, question: RootsQuestion) -> bytes | None:
        """Return the answer; None where `once` is called while it is waited for."""
        asked = asyncio.ensure_future(self._fetch(question.target, question.wait + GRACE_SECONDS, None))
        if not question.wait:
            return await asked
        hurried = asyncio.create_task(self._hurried.wait())
        try:
            await asyncio.wait([asked, hurried], return_when=asyncio.FIRST_COMPLETED)
            return asked.result() if asked.done() else None
        finally:
            asked.cancel()
            hurried.cancel()
            await asyncio.gather(asked, hurried, return_exceptions=True)

    async def _learn_mesh(self, peer: Peer, told: RootsTold) -> None:
        """Begin anew under the key that the peer has now, which it tells to whom it does not know."""
        if not told.restart:
            await self._taker.forget_position(peer)
            return
        if told.mesh is None or mesh_name(told.mesh) != told.mesh_name:
            raise BadContent(f"region {self._name} does not say the key of its hashes: bring it up to date")
        if told.fingerprint is None:
            raise Unavailable(f"region {self._name} is summing up its records under a new key: it is asked again")
        self._renewed += 1
        if self._renewed > MOST_KEYS:
            self._renewed = 0
            raise BadContent(
                f"region {self._name} answers under one key and then under another: give all its nodes one fleet "
                "secret, or its URL to one of them alone"
            )
        await self._taker.begin_anew(peer, told.fingerprint[2], told.mesh)

    async def _compare(self, peer: Peer, mesh: bytes, told: RootsTold) -> bool:
        """Compare the shadow with what the peer says that it has; reconcile where they differ. True: they are alike."""
        mine = await self._taker.fingerprint(peer)
        if told.fingerprint is None and not told.restart:
            self._read(mine)
            return True
        if told.fingerprint is not None and Sum(*told.fingerprint) == mine:
            if told.restart:
                await self._taker.note(peer, told.epoch, told.head)
            self._reconciled = self._renewed = 0
            self._differing.clear()
            self._read(mine)
            return True
        if not told.restart and len(peer.positions) > 1 and self._differing.get(told.epoch) != told.head:
            self._differing[told.epoch] = told.head
            return False
        if self._reconciled >= MOST_RECONCILIATIONS:
            self._reconciled = 0
            raise BadContent(
                f"region {self._name} has other records than it tells of, after {MOST_RECONCILIATIONS} comparisons: "
                "bring both regions up to date; its catalog may be damaged, or its nodes do not hear of one another"
            )
        self._differing.clear()
        await self._reconcile(peer, mesh)
        self._reconciled += 1  # one that the link cut off found nothing out
        return False

    async def _reconcile(self, peer: Peer, mesh: bytes) -> None:
        before = self._standing.sync_bytes
        comparison = Comparison(self._catalog, self._scope, self._taker, self._ranges)
        try:
            await comparison.run(peer, mesh)
        finally:
            self._standing = replace(self._standing, rounds=self._standing.rounds + comparison.rounds)
            self._emit(PeerReconciled(self._name, comparison.rounds, self._standing.sync_bytes - before))

    async def _ranges(self, question: RangesQuestion) -> tuple[RangesTold, list[Repository]]:
        sent = encode(question)
        body = await self._fetch(RANGES, RANGES_SECONDS, sent)
        told, repositories = decode_ranges(body, question, self._scope)
        self._check(told)
        self._count(len(sent) + len(body))
        return told, repositories

    def _turned(self, turns: int) -> int:
        """Count an answer that did not come to the peer's head. Raises BadContent where there are too many."""
        if turns + 1 >= MOST_TURNS:
            raise BadContent(f"region {self._name} answers about its changes without coming to an end")
        return turns + 1

    def _check(self, told: RootsTold | RangesTold) -> None:
        if told.epoch == self._catalog.epoch:
            raise SameCatalog(
                f"region {self._name} has the same catalog as this one (epoch {told.epoch}): is its URL this region's "
                "own, or was the data folder copied? Correct the URL, or take the catalog's files out of one of the "
                "two folders and restart it, its blobs are found again"
            )
        if told.region != self._name and not self._told_name:
            self._told_name = True
            _log.warning(
                "the region at the URL of peer %s calls itself %s: give the peer that name, its tags are known by it",
                self._name,
                told.region,
            )

    def _count(self, size: int) -> None:
        self._standing = replace(self._standing, sync_bytes=self._standing.sync_bytes + size)

    def _read(self, mine: Sum) -> None:
        if self._standing.error is not None:
            _log.info("the records of region %s are taken over again", self._name)
        self._standing = replace(self._standing, records=mine.records, error=None, read_at=time.time())

    def _failed(self, error: Exception, *, first: bool) -> None:
        self._standing = replace(self._standing, error=str(error) or type(error).__name__)
        if not isinstance(error, RegistryError | StoreError | OSError | TimeoutError):
            _log.exception("the sync with region %s met what it does not know", self._name)
        elif first:
            _log.warning("the records of region %s cannot be taken over at the moment: %s", self._name, error)
        self._emit(PeerFailed(self._name, reason_of(error)))
