"""Finding by ranges what a peer has and its shadow has not, and taking it over. What to ask next is `reconcile`'s."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from proxy.oci.errors import BadContent
from proxy.oci.names import Repository
from proxy.regions.scope import Scope
from proxy.store.catalog import Catalog
from proxy.store.ranges import Sum, read_marks, sums
from proxy.store.roots import Marks
from proxy.store.shadow import Peer
from sync.packing import asked, unpack_places, unpack_sums
from sync.reconcile import Step, Walk
from sync.regional_records import MOST_MARKS, PROTOCOL, RangesQuestion, RangesTold, mesh_name, spell_scope
from sync.taking import Taker

MOST_ROUNDS = 100_000

Ask = Callable[[RangesQuestion], Awaitable[tuple[RangesTold, list[Repository]]]]


class Comparison:
    """One comparison of a peer's shadow with what `ask` answers. State: how many questions were answered."""

    def __init__(self, catalog: Catalog, scope: Scope, taker: Taker, ask: Ask) -> None:
        self._catalog = catalog
        self._scope = scope
        self._taker = taker
        self._ask = ask
        self.rounds = 0

    async def run(self, peer: Peer, mesh: bytes) -> None:
        """Compare, and note from where to read the feed. An answer is merged while the next one is fetched.

        Ends early where the peer has another key than `mesh`. Raises what `ask` does, StoreError, BadContent.
        """
        marks, walk = Marks(mesh), Walk()
        first: RangesTold | None = None
        step = walk.ask()
        fetching = await self._fetch(peer, step) if step else None
        try:
            while step is not None and fetching is not None:
                told, repositories = await fetching
                self.rounds += 1
                if self.rounds > MOST_ROUNDS:
                    raise BadContent("a region compares its records without coming to an end: bring it up to date")
                first = first or told
                if told.mesh_name != mesh_name(mesh):
                    return
                own = await self._own(peer, step)
                empty = walk.answered(step, own, [unpack_sums(one) for one in told.sums], told.done, told.upto)
                step = walk.ask()
                fetching = await self._fetch(peer, step) if step else None
                await self._taker.take(peer, marks, [(repositories[one.at], one) for one in told.records], None)
                await self._taker.drop(peer, unpack_places(told.gone), empty)
            if first is not None:
                await self._taker.note(peer, first.epoch, first.head)
        finally:
            if fetching is not None:
                fetching.cancel()
                await asyncio.gather(fetching, return_exceptions=True)

    async def _fetch(self, peer: Peer, step: Step) -> asyncio.Task[tuple[RangesTold, list[Repository]]]:
        known = await self._catalog.read(
            lambda connection: [read_marks(connection, peer.id, one, MOST_MARKS) for one in step.compare]
        )
        compare = asked(step.compare, known)
        question = RangesQuestion(PROTOCOL, spell_scope(self._scope), step.levels, list(step.deeper), compare)
        return asyncio.create_task(_awaited(self._ask(question)))

    async def _own(self, peer: Peer, step: Step) -> list[list[Sum]]:
        split = [step.intervals(prefix) for prefix in step.deeper]
        found = iter(await sums(self._catalog, peer.id, [interval for ranges in split for interval in ranges]))
        return [[next(found) for _ in ranges] for ranges in split]


async def _awaited(
    answer: Awaitable[tuple[RangesTold, list[Repository]]],
) -> tuple[RangesTold, list[Repository]]:
    return await answer
