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
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from metrics.events import Emit, PeerFailed, PeerPolled, PeerReconciled
from proxy.oci.errors import BadContent, Denied, RegistryError, Unauthorized
from proxy.oci.names import Repository
from proxy.regions.scope import Scope
from proxy.store import shadow
from proxy.store.catalog import Catalog
from proxy.store.errors import StoreError
from proxy.store.exchanged import AHEAD_SECONDS
from proxy.store.ranges import OWN, SPAN, Interval, Sum, read_fingerprint, read_marks, sums
from proxy.store.remote import RootChange
from proxy.store.roots import Marks
from proxy.store.visible import Visible
from sync.exchange import SameCatalog
from sync.packing import asked, unpack_places, unpack_sums
from sync.reconcile import Step, Walk
from sync.regional_records import (
    MOST_MARKS,
    PROTOCOL,
    RANGES,
    RangesQuestion,
    RangesTold,
    RootsQuestion,
    RootsTold,
    decode_ranges,
    decode_roots,
    encode,
    mesh_name,
    spell_scope,
)

WAIT_SECONDS = 25.0
GRACE_SECONDS = 20.0
RANGES_SECONDS = 60.0
PAUSE_SECONDS = (0.5, 60.0)
MOST_RECONCILIATIONS = 3
"""So often in a row two catalogs may be compared without being alike afterwards."""
MOST_TURNS = 100_000

_log = logging.getLogger(__name__)
_WHOLE = Interval(0, SPAN - 1)

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
        case Unauthorized() | Denied():
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
    rows wait. State: the standing, and what was told about in the log.
    """

    def __init__(
        self, catalog: Catalog, name: str, scope: Scope, fetch: Fetch, emit: Emit, news: Callable[[], None]
    ) -> None:
        self._catalog = catalog
        self._name = name
        self._scope = scope
        self._fetch = fetch
        self._emit = emit
        self._news = news
        self._turn = asyncio.Lock()
        self._hurried = asyncio.Event()
        self._standing = Following()
        self._ask_mesh = False
        self._differing: tuple[str, int] | None = None
        self._reconciled = 0
        self._told_clock = self._told_name = False

    @property
    def standing(self) -> Following:
        """How far the peer's records are here."""
        return self._standing

    async def run(self) -> None:
        """Follow the peer until cancelled."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began = loop.time()
            try:
                async with self._turn:
                    current = await self._poll(WAIT_SECONDS if failures == 0 else 0.0)
                failures = 0
            except Exception as error:
                self._failed(error, first=failures == 0)
                failures += 1
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
                for _ in range(MOST_TURNS):
                    if await self._poll(0.0):
                        return
                raise BadContent(f"region {self._name} answers about its changes without coming to an end")
            except Exception as error:
                self._failed(error, first=True)
                raise

    async def _poll(self, wait: float) -> bool:
        """Ask once, and take over what is said. True: all that the peer had is here."""
        peer = await self._catalog.write(lambda transaction: shadow.introduce(transaction, self._name))
        if peer.mesh is None or not peer.positions:
            wait = 0.0
        question = RootsQuestion(peer.positions, self._scope, wait, self._ask_mesh or peer.mesh is None)
        body = await self._answer(question)
        if body is None:
            return False
        told, repositories = decode_roots(body, self._scope)
        self._check(told)
        self._count(len(body))
        self._emit(PeerPolled(self._name, len(body), len(told.records)))
        self._ask_mesh = False
        if told.mesh is not None and told.mesh != peer.mesh:
            peer = await self._begin_anew(peer, told, told.mesh)
        if peer.mesh is None or mesh_name(peer.mesh) != told.mesh_name:
            self._ask_mesh = True
            return False
        known = peer.positions.get(told.epoch)
        if not told.restart and not peer.positions:
            return False
        if not told.restart:
            if known is None or told.next < known:
                raise BadContent(f"region {self._name} answers about another catalog or position than was asked for")
            if told.records or told.next != known:
                records = [(repositories[record.at], record) for record in told.records]
                await self._take(peer, Marks(peer.mesh), records, (told.epoch, told.next))
        return not told.more and await self._compare(peer, told, known)

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

    async def _compare(self, peer: shadow.Peer, told: RootsTold, known: int | None) -> bool:
        """Compare the shadow with what the peer says that it has; reconcile where they differ. True: they are alike."""
        mine = await self._catalog.read(lambda connection: read_fingerprint(connection, peer.id, None))
        if told.fingerprint is None and not told.restart:
            self._read(mine)
            return True
        if told.fingerprint is not None and Sum(*told.fingerprint) == mine:
            if told.restart:
                await self._note(peer, told.epoch, told.head)
            self._reconciled, self._differing = 0, None
            self._read(mine)
            return True
        if not told.restart and len(peer.positions) > 1 and self._differing != (told.epoch, told.head):
            self._differing = told.epoch, told.head
            return False
        if self._reconciled >= MOST_RECONCILIATIONS:
            self._reconciled = 0
            raise BadContent(
                f"region {self._name} has other records than it tells of, after {MOST_RECONCILIATIONS} comparisons: "
                "bring both regions up to date; its catalog may be damaged"
            )
        self._reconciled += 1
        await self._reconcile(peer)
        return False

    async def _reconcile(self, peer: shadow.Peer) -> None:
        """Find by ranges what differs, and take it over. An answer is merged while the next one is fetched."""
        assert peer.mesh is not None
        marks, walk = Marks(peer.mesh), Walk()
        before, rounds = self._standing.sync_bytes, 0
        first: RangesTold | None = None
        step = walk.ask()
        question = await self._question(peer, step) if step else None
        fetching = asyncio.create_task(self._ranges(question)) if question else None
        try:
            while step is not None and question is not None and fetching is not None:
                told, repositories = await fetching
                rounds += 1
                first = first or told
                if told.mesh_name != mesh_name(peer.mesh):
                    self._ask_mesh = True
                    return
                own = await self._own(peer, step)
                empty = walk.answered(step, own, [unpack_sums(one) for one in told.sums], told.done, told.upto)
                step = walk.ask()
                question = await self._question(peer, step) if step else None
                fetching = asyncio.create_task(self._ranges(question)) if question else None
                await self._take(peer, marks, [(repositories[record.at], record) for record in told.records], None)
                await self._drop(peer, unpack_places(told.gone), empty)
            if first is not None:
                await self._note(peer, first.epoch, first.head)
        finally:
            if fetching is not None:
                fetching.cancel()
                await asyncio.gather(fetching, return_exceptions=True)
            self._standing = replace(self._standing, rounds=self._standing.rounds + rounds)
            self._emit(PeerReconciled(self._name, rounds, self._standing.sync_bytes - before))

    async def _question(self, peer: shadow.Peer, step: Step) -> RangesQuestion:
        known = await self._catalog.read(
            lambda connection: [read_marks(connection, peer.id, one, MOST_MARKS) for one in step.compare]
        )
        compare = asked(step.compare, known)
        return RangesQuestion(PROTOCOL, spell_scope(self._scope), step.levels, list(step.deeper), compare)

    async def _ranges(self, question: RangesQuestion) -> tuple[RangesTold, list[Repository]]:
        sent = encode(question)
        body = await self._fetch(RANGES, RANGES_SECONDS, sent)
        told, repositories = decode_ranges(body, question, self._scope)
        self._check(told)
        self._count(len(sent) + len(body))
        return told, repositories

    async def _own(self, peer: shadow.Peer, step: Step) -> list[list[Sum]]:
        split = [step.intervals(prefix) for prefix in step.deeper]
        found = iter(await sums(self._catalog, peer.id, [interval for ranges in split for interval in ranges]))
        return [[next(found) for _ in ranges] for ranges in split]

    async def _take(
        self,
        peer: shadow.Peer,
        marks: Marks,
        records: Sequence[tuple[Repository, RootChange]],
        position: tuple[str, int] | None,
    ) -> None:
        done = ahead = news = 0
        while True:
            step = partial(shadow.merge, records=records, start=done, position=position, now=time.time())
            taken = await self._catalog.write(partial(step, peer=peer.id, marks=marks))
            done, ahead, news = taken.done, ahead + taken.ahead, news + taken.news
            if done >= len(records):
                break
        if ahead and not self._told_clock:
            self._told_clock = True
            _log.warning(
                "records of region %s wait: their versions are more than %d s ahead of this node's clock. Set the "
                "clocks of both regions right",
                self._name,
                AHEAD_SECONDS,
            )
        if news:
            self._news()

    async def _drop(self, peer: shadow.Peer, places: Sequence[int], intervals: Sequence[Interval]) -> None:
        for begin in range(0, len(places), shadow.DROP_ROWS):
            some = places[begin : begin + shadow.DROP_ROWS]
            await self._catalog.write(partial(shadow.drop, peer=peer.id, places=some))
        for interval in intervals:
            while await self._catalog.write(partial(shadow.drop_range, peer=peer.id, interval=interval)):
                pass

    async def _begin_anew(self, peer: shadow.Peer, told: RootsTold, mesh: bytes) -> shadow.Peer:
        """Drop what was kept under another key. Suppose that the peer has what we have, where it has about as much."""
        await self._catalog.write(partial(shadow.forget_mesh, peer=peer.id))
        await self._drop(peer, [], [_WHOLE])
        theirs = told.fingerprint[2] if told.fingerprint else 0
        ours = await self._catalog.read(partial(_in_scope, scope=self._scope))
        if theirs / 2 <= ours <= theirs * 2:
            await self._suppose(peer, Marks(mesh))
        await self._catalog.write(partial(shadow.learn_mesh, peer=peer.id, mesh=mesh))
        return shadow.Peer(peer.id, mesh, {})

    async def _suppose(self, peer: shadow.Peer, marks: Marks) -> None:
        begin: int | None = shadow.BEGIN
        while begin is not None:
            guesses, begin = await self._catalog.read(partial(shadow.read_guesses, begin=begin, marks=marks))
            guesses = [guess for guess in guesses if self._scope.admits(guess[2])]
            await self._catalog.write(partial(shadow.seed, peer=peer.id, guesses=guesses))

    async def _note(self, peer: shadow.Peer, epoch: str, seq: int) -> None:
        now = time.time()
        await self._catalog.write(lambda transaction: shadow.note(transaction, peer.id, epoch, seq, now))

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
        self._standing = replace(self._standing, records=mine.records, error=None, read_at=time.time())

    def _failed(self, error: Exception, *, first: bool) -> None:
        self._standing = replace(self._standing, error=str(error) or type(error).__name__)
        if not isinstance(error, RegistryError | StoreError | OSError | TimeoutError):
            _log.exception("the sync with region %s met what it does not know", self._name)
        elif first:
            _log.warning("the records of region %s cannot be taken over at the moment: %s", self._name, error)
        self._emit(PeerFailed(self._name, reason_of(error)))


def _in_scope(connection: sqlite3.Connection, scope: Scope) -> int:
    ids = None if scope.everything else Visible(scope.admits).ids(connection)
    return read_fingerprint(connection, OWN, ids).records
