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
from proxy.store import remote
from proxy.store.catalog import Catalog
from proxy.store.store import Store
from sync import checking
from sync.fetching import Fetcher, Filler
from sync.holding import Holding
from sync.passing import Outcome, Pass
from sync.plan import retry_after
from sync.planning import plan_of
from sync.remembering import read_rules, spell, write_rules
from sync.removing import carry_out
from sync.reports import PassReport, PlannedImage, Told, VerifyReport
from sync.standing import MEASURE_SECONDS, EngineReport, PeerRules, Standing, Tally, Times
from sync.walking import together

__all__ = ["Engine", "Filler", "PeerRules"]

HURRIED = 1000
LONGEST_WAIT = 3600.0
COUNT_SECONDS = 1.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Peer:
    name: str
    rules: PeerRules
    standing: Standing
    news: asyncio.Event = field(default_factory=asyncio.Event)
    more: asyncio.Event = field(default_factory=asyncio.Event)
    same_rules: bool = False
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
        self._peers[peer].more.set()

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
        """Return what would be done now, of each peer for so many rows as `planning` looks at; nothing is fetched."""
        planned = []
        for peer in self._peers.values():
            planned += await plan_of(self._catalog, self._store, peer.name, peer.rules, self._now())
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
                await self._until_free(peer.name)
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
        """Tell how far behind a peer is, also while a pass takes long or none may begin."""
        while True:
            with suppress(OSError):
                await peer.standing.measure(now=True)
            await asyncio.sleep(COUNT_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(MEASURE_SECONDS):
                    await peer.more.wait()
            peer.more.clear()

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

    async def _until_free(self, name: str) -> None:
        while self._holding.held(name) is not None:
            await self._holding.changed()

    async def _pass(self, peer: _Peer, tally: Tally, *, force: bool) -> Outcome:
        standing = peer.standing
        async with peer.passing:
            await self._heed_rules(peer)
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

    async def _heed_rules(self, peer: _Peer) -> None:
        """Once a start: where another filter was in force before, let what this one chooses wait if it is not here."""
        if peer.same_rules:
            return
        spelled = spell(peer.rules.rules)
        known = await self._catalog.read(lambda connection: read_rules(connection, peer.name))
        if known not in (None, spelled):
            report = await self.verify(peer.name)
            _log.info("the filter of region %s is another: %d images are fetched", peer.name, len(report.missing))
        if known != spelled:
            await self._catalog.write(lambda transaction: write_rules(transaction, peer.name, spelled))
        peer.same_rules = True

    async def _seconds_to_next(self, peer: _Peer) -> float:
        """Return when something is due again; while the link is down not before that is tried again."""
        rows = await self._catalog.read(lambda connection: remote.read_waiting(connection, peer.name, 1))
        if not rows:
            return LONGEST_WAIT
        due = max(rows[0].next_at, peer.standing.retry_at)
        return min(LONGEST_WAIT, max(0.05, due - self._now()))
