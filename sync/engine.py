"""The engine: for each peer passes over what waits of it, whenever there is news, a window opens or a retry is due.

It keeps no steps: what is to be done is planned anew from the rows that wait and from what is stored, so that whatever
cuts it short, a crash or a pause, costs what was not stored yet and nothing else. What a pass does is in `passing`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from metrics.events import Emit
from proxy.oci.digest import Digest
from proxy.oci.names import Repository
from proxy.store import remote
from proxy.store.catalog import Catalog
from proxy.store.store import Store
from sync import checking
from sync.facts import Judge
from sync.fetching import Fetcher, Filler
from sync.holding import Holding
from sync.passing import Outcome, Pass
from sync.plan import Step, make_plan, reference_of, retry_after
from sync.removals import refusal_of
from sync.removing import MOST, carry_out
from sync.reports import Action, PassReport, PlannedImage, Told, VerifyReport
from sync.standing import MEASURE_SECONDS, EngineReport, PeerRules, Standing, Tally, Times
from sync.walking import Body, stored_manifest, together, walk

__all__ = ["Engine", "Filler", "PeerRules"]

HURRIED = 1000
MOST_PLANNED = 10_000
LONGEST_WAIT = 3600.0
COUNT_SECONDS = 1.0

_ACTIONS: dict[Step, Action] = {Step.APPLY: "tag", Step.HOLD: "wait", Step.REMOVE: "remove"}

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Peer:
    name: str
    rules: PeerRules
    standing: Standing
    news: asyncio.Event = field(default_factory=asyncio.Event)
    passing: asyncio.Lock = field(default_factory=asyncio.Lock)
    tries: int = 0


class Engine:
    """Works off what waits of `peers`. trouble: why one of them is left alone now, as it does not answer.

    State: how each stands; what is to be done is in the catalog.
    """

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        cache: Filler,
        peers: Mapping[str, PeerRules],
        holding: Holding,
        trouble: Callable[[str], str | None],
        emit: Emit,
        times: Times | None = None,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._holding = holding
        self._trouble = trouble
        self._emit = emit
        self._times = times or Times()
        self._fetcher = Fetcher(catalog, store, cache)
        self._peers = {
            name: _Peer(name, rules, Standing(name, catalog, cache.arriving, emit, self._times))
            for name, rules in peers.items()
        }

    async def run(self) -> None:
        """Work for all peers until cancelled; none waits for another."""
        peers = self._peers.values()
        await together(work for peer in peers for work in (self._attend(peer), self._measure(peer)))

    def wake(self, peer: str) -> None:
        """There is news of `peer`."""
        self._peers[peer].news.set()

    def report(self, peer: str) -> EngineReport:
        """Return how `peer` stands."""
        return self._peers[peer].standing.report(self._holding.held(peer))

    async def look(self) -> None:
        """Count what waits, so that `report` tells it though nothing runs. Raises OSError, as the catalog does."""
        for peer in self._peers.values():
            await peer.standing.measure()

    async def once(self, peers: Sequence[str], force: bool = False, told: Told | None = None) -> PassReport:
        """Do all that waits of `peers` (none: of all), whatever is to be retried later too; return what was done.

        force: removals are not refused for their number. Raises OSError, as the catalog does.
        """
        tally = Tally(told, self._times)
        names = tuple(dict.fromkeys(peers)) or tuple(self._peers)
        async with tally.telling():
            done = await together(self._once(self._peers[name], tally, force=force) for name in names)
        passed = list(zip(names, done, strict=True))
        outcomes = [outcome for _, outcome in passed]
        return PassReport(
            images=sum(one.images for one in outcomes),
            bytes=sum(one.bytes for one in outcomes),
            tags=sum(one.tags for one in outcomes),
            removed=sum(one.removed for one in outcomes),
            failed=tuple(failure for one in outcomes for failure in one.failed),
            refused=tuple(refused for one in outcomes for refused in one.refused),
            unreachable=tuple((name, one.link) for name, one in passed if one.link is not None),
            held=tuple((name, one.held) for name, one in passed if one.held is not None),
        )

    async def plan(self) -> list[PlannedImage]:
        """Return what would be done now, of each peer up to MOST_PLANNED rows; nothing is fetched."""
        planned = []
        for peer in self._peers.values():
            planned += await self._plan(peer)
        return planned

    async def verify(self, peer: str) -> VerifyReport:
        """Compare with `peer` what is stored; what is chosen and not here whole is fetched by the next pass."""
        report = await checking.verify(self._catalog, self._store, peer, self._peers[peer].rules.rules, self._now())
        if report.missing:
            self.wake(peer)
        return report

    def _now(self) -> float:
        return self._times.now()

    async def _attend(self, peer: _Peer) -> None:
        while True:
            peer.news.clear()
            held = self._holding.held(peer.name)
            if held is not None:
                await self._rest(peer)
                continue
            try:
                await self._unless_held(peer, Tally(None, self._times), force=False)
                seconds = await self._seconds_to_next(peer)
                peer.tries = 0
            except Exception as error:
                # Whatever one pass meets, a full disk or a mistake of ours, the others and the next one go on.
                _log.exception("the sync with region %s failed and is tried again", peer.name)
                peer.standing.phase, peer.standing.error = "failing", f"{type(error).__name__}: the log has the reason"
                seconds = retry_after(peer.tries, self._times.chance())
                peer.tries += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await peer.news.wait()

    async def _measure(self, peer: _Peer) -> None:
        """Tell how far behind a peer is while a pass takes long, or none may begin."""
        while True:
            with suppress(OSError):
                await peer.standing.measure()
            await asyncio.sleep(MEASURE_SECONDS)

    async def _once(self, peer: _Peer, tally: Tally, *, force: bool) -> Outcome:
        held = self._holding.held(peer.name)
        if held is not None:
            return Outcome(held=held)
        now = self._now()
        while await self._catalog.write(lambda transaction: remote.hurry(transaction, peer.name, now, HURRIED)):
            pass
        return await self._unless_held(peer, tally, force=force)

    async def _unless_held(self, peer: _Peer, tally: Tally, *, force: bool) -> Outcome:
        """Make a pass; as soon as the peer is held, everything that is under way is let go."""
        working = asyncio.create_task(self._pass(peer, tally, force=force), name=f"sync with {peer.name}")
        watching = asyncio.create_task(self._until_held(peer.name), name=f"watch whether {peer.name} is held")
        try:
            await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            return Outcome(held=self._holding.held(peer.name))
        finally:
            working.cancel()
            watching.cancel()
            await asyncio.wait([working, watching])

    async def _until_held(self, name: str) -> None:
        while self._holding.held(name) is None:
            await self._holding.changed()

    async def _rest(self, peer: _Peer) -> None:
        """Wait until the peer is free; what it has and is not here is counted meanwhile, so that it is known."""
        counting = asyncio.create_task(self._count(peer), name=f"count what {peer.name} has")
        try:
            while self._holding.held(peer.name) is not None:
                await self._holding.changed()
        finally:
            counting.cancel()
            await asyncio.wait([counting])

    async def _count(self, peer: _Peer) -> None:
        while True:
            with suppress(OSError):
                await peer.standing.measure(now=True)
            await asyncio.sleep(COUNT_SECONDS)
            await peer.news.wait()
            peer.news.clear()

    async def _pass(self, peer: _Peer, tally: Tally, *, force: bool) -> Outcome:
        standing = peer.standing
        async with peer.passing:
            counts = await standing.measure(now=True)
            tally.expects(counts.images)
            tally.watches(standing)
            standing.phase = "fetching" if counts.images else "current"
            standing.begin()
            try:
                passing = Pass(
                    peer.name,
                    peer.rules,
                    self._catalog,
                    self._fetcher,
                    partial(self._trouble, peer.name),
                    standing,
                    tally,
                    self._emit,
                    self._times,
                )
                done = await passing.run()
                if done.link is None:
                    args = peer.name, peer.rules, self._catalog, standing, done, self._now()
                    await carry_out(*args, force=force)
                standing.error = done.link
            finally:
                standing.forget()
                standing.phase = "failing" if standing.error else "current"
            left = await standing.measure(now=True)
            if left.images and standing.phase == "current":
                standing.phase = "fetching"
            return done

    async def _seconds_to_next(self, peer: _Peer) -> float:
        """Return when something is due again; while the link is down not before that is tried again."""
        rows = await self._catalog.read(lambda connection: remote.read_waiting(connection, peer.name, 1))
        if not rows:
            return LONGEST_WAIT
        due = max(rows[0].next_at, peer.standing.retry_at)
        return min(LONGEST_WAIT, max(0.05, due - self._now()))

    async def _plan(self, peer: _Peer) -> list[PlannedImage]:
        now, rules = self._now(), peer.rules.rules
        judge = Judge(peer.name, rules)
        rows = await self._catalog.read(lambda connection: remote.read_waiting(connection, peer.name, MOST_PLANNED))
        decided = await self._catalog.read(lambda connection: judge.decide(connection, rows, now))
        removals = await self._catalog.read(lambda connection: remote.read_removals(connection, peer.name, MOST))
        share = peer.rules.removal_share
        refused = await self._catalog.read(lambda connection: refusal_of(connection, peer.name, removals, share))

        async def fetch(repository: Repository, digest: Digest) -> Body | None:
            return await stored_manifest(self._catalog, self._store, repository, digest)

        planned = []
        for image in make_plan([one for one in decided if one[1].step is Step.FETCH]).images:
            parts = await walk(self._catalog, image.repository, image.digest, rules.platforms, fetch)
            size = None if parts.unknown else parts.size
            reason = next((row.error for row in image.rows if row.error), "")
            planned.append(
                PlannedImage(
                    peer=peer.name,
                    action="fetch",
                    reference=str(image),
                    digest=str(image.digest),
                    size=size,
                    reason=reason,
                )
            )
        for row, decision in decided:
            if decision.step is Step.FETCH:
                continue
            reason, action = decision.reason, _ACTIONS[decision.step]
            if decision.step is Step.REMOVE:
                waits = row.since + peer.rules.removal_grace > now
                reason = refused or ("waits until its grace is over" if waits else "")
                action = "refuse" if refused else action
            digest = row.record.digest if decision.step is Step.HOLD else decision.digest
            planned.append(
                PlannedImage(
                    peer=peer.name,
                    action=action,
                    reference=reference_of(row),
                    digest=None if digest is None else str(digest),
                    reason=reason,
                )
            )
        return planned
