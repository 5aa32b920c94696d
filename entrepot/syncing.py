"""Replicating from other regions: one follower per peer, one engine for all, made from a configuration.

Of the nodes of a fleet one does it at a time; what it records the others learn from it. Two that do it at once, as
Redis is away, cost traffic alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from msgspec import structs

from entrepot.config import Config, PeerConfig
from entrepot.mirror import Mirror, mirror
from metrics.events import Emit, ignore
from proxy.cache.fill import Arriving
from proxy.cache.once import Background
from proxy.oci.choosing import TagChoice
from proxy.oci.descriptor import Manifest
from proxy.oci.digest import Digest
from proxy.oci.names import Repository
from proxy.oci.platforms import Platform
from proxy.regions.peer import PeerClient
from proxy.regions.scope import Scope
from sync.engine import Engine, PeerRules
from sync.following import Follower
from sync.holding import Holding
from sync.reports import ConflictReport, PassReport, PeerReport, PlannedImage, State, Told, VerifyReport
from sync.selection import Rules

TURN_SECONDS = 5.0
MOST_CONFLICTS = 1000
SYNCING = "syncing"
REMOVED = "removed"
ELSEWHERE = "another node of this fleet syncs"

if TYPE_CHECKING:
    from proxy.fleet.leases import Leases
    from proxy.fleet.link import Link

Turn = Callable[[], AbstractAsyncContextManager[asyncio.Event | None]]
"""Gives the turn, with an event that is set when another has it; None: another has it now, or nobody can say."""


class Fills:
    """The engine's way into the cache, whichever a reload has made."""

    def __init__(self, running: Mirror) -> None:
        self._running = running

    async def ensure_manifest(self, repository: Repository, digest: Digest) -> Manifest:
        """Raises ManifestUnknown, Transient."""
        return await self._running.cache.ensure_manifest(repository, digest)

    async def ensure_blob(self, repository: Repository, digest: Digest) -> int:
        """Raises BlobUnknown, Transient."""
        return await self._running.cache.ensure_blob(repository, digest)

    def arriving(self, digest: Digest) -> Arriving | None:
        """How far the download of a digest is."""
        return self._running.cache.arriving(digest)

    def leave(self, digest: Digest) -> None:
        """End a download that nobody else wants."""
        self._running.cache.leave(digest)


class RegionalSync:
    """The sync with all peers of `config`; see `syncasking.Syncing`. Make it with `syncing`.

    State: the followers, the engine, and whether it is this node's turn.
    """

    def __init__(
        self, running: Mirror, clients: dict[str, PeerClient], holding: Holding, emit: Emit, turn: Turn | None
    ) -> None:
        self._catalog = running.store.catalog
        self._clients = clients
        self._holding = holding
        self._turn = turn
        self._link = running.part.link
        self._working = False
        self._peers = {peer.name: peer for peer in running.config.peers}
        rules = {name: _rules(peer) for name, peer in self._peers.items()}
        self._engine = Engine(self._catalog, running.store, Fills(running), rules, holding, self._trouble, emit)
        self._followers = {
            name: Follower(
                self._catalog,
                name,
                Scope.of(peer.repositories),
                clients[name].ask,
                emit,
                partial(self._engine.wake, name),
            )
            for name, peer in self._peers.items()
        }

    async def run(self) -> None:
        """Sync whenever it is this node's turn, until cancelled."""
        turn = self._turn
        while turn is not None:
            async with turn() as lost:
                if lost is not None:
                    await self._work_until(lost.wait())
            if self._link is not None and self._link.problem is not None:
                await self._work_until(_heals(self._link))
            await asyncio.sleep(TURN_SECONDS)
        await self._work()

    async def look(self) -> None:
        """Count what waits, so that reports tell it though nothing runs. Raises OSError, as the catalog does."""
        await self._engine.look()

    def reports(self) -> list[PeerReport]:
        """See `syncasking.Syncing`."""
        return [self._report(name) for name in self._peers]

    async def once(self, peers: Sequence[str], force: bool, told: Told | None = None) -> PassReport:
        """See `syncasking.Syncing`."""
        names = tuple(peers) or tuple(self._peers)
        asked = await asyncio.gather(*(self._followers[name].once() for name in names), return_exceptions=True)
        unreachable = []
        for name, outcome in zip(names, asked, strict=True):
            if isinstance(outcome, Exception):
                unreachable.append((name, str(outcome) or type(outcome).__name__))
            elif isinstance(outcome, BaseException):
                raise outcome
        report = await self._engine.once(names, force, told)
        return structs.replace(report, unreachable=(*report.unreachable, *unreachable))

    async def plan(self) -> list[PlannedImage]:
        """See `syncasking.Syncing`."""
        return await self._engine.plan()

    async def verify(self, peers: Sequence[str]) -> list[VerifyReport]:
        """See `syncasking.Syncing`."""
        reports = []
        for name in tuple(peers) or tuple(self._peers):
            error = None
            try:
                await self._followers[name].once()
            except Exception as failed:
                error = str(failed) or type(failed).__name__
            report = await self._engine.verify(name)
            reports.append(structs.replace(report, error=error or report.error))
        return reports

    async def conflicts(self) -> list[ConflictReport]:
        """See `syncasking.Syncing`."""
        return [
            ConflictReport(
                reference=f"{one.repository}:{one.tag}",
                winner=str(one.winner or REMOVED),
                winner_region=one.winner_origin,
                loser=str(one.digest or REMOVED),
                loser_region=one.origin,
                found_at=one.found_at,
            )
            for one in await self._catalog.conflicts(MOST_CONFLICTS)
        ]

    async def pause(self, peers: Sequence[str]) -> None:
        """See `syncasking.Syncing`."""
        for name in tuple(peers) or tuple(self._peers):
            await self._holding.pause(name)

    async def resume(self, peers: Sequence[str]) -> None:
        """See `syncasking.Syncing`."""
        for name in tuple(peers) or tuple(self._peers):
            await self._holding.resume(name)

    async def _work(self) -> None:
        self._working = True
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._engine.run(), name="fetch what regions have")
                for name, follower in self._followers.items():
                    group.create_task(follower.run(), name=f"follow region {name}")
        finally:
            self._working = False

    async def _work_until(self, over: Coroutine[object, object, object]) -> None:
        """Sync until it is no more for this node to do; what it had under way is let go."""
        tasks = [asyncio.create_task(work, name="sync in turn") for work in (self._work(), over)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in done:
            task.result()

    def _trouble(self, name: str) -> str | None:
        return self._clients[name].problem

    def _report(self, name: str) -> PeerReport:
        peer, client, standing = self._peers[name], self._clients[name], self._followers[name].standing
        done = self._engine.report(name)
        mine = self._working or self._turn is None
        held = self._holding.held(name) or (None if mine else ELSEWHERE)
        error = standing.error or client.problem or done.error
        state: State = "failing" if error else "held" if held else done.state
        if not self._working and mine and error is None and held is None:
            state = "stopped"
        elif standing.read_at is None and error is None and held is None:
            state = "starting"
        return PeerReport(
            name=name,
            url=peer.url,
            state=state,
            error=error,
            held=held,
            seconds_behind=done.seconds_behind,
            images_behind=done.images_behind,
            bytes_behind=done.bytes_behind,
            removals=done.removals,
            removals_refused=done.removals_refused,
            refused_clock=done.refused_clock,
            failures=done.failures,
            records=standing.records,
            rounds=standing.rounds,
            sync_bytes=standing.sync_bytes,
            fetched_bytes=client.transferred,
            rate=done.rate,
        )


@asynccontextmanager
async def prepared(running: Mirror, emit: Emit) -> AsyncIterator[RegionalSync]:
    """Give the sync of a mirror whose part among the regions is there; nothing runs yet. Raises CatalogError."""
    abroad, part = running.part.abroad, running.part
    assert abroad is not None
    holding = await Holding.load(running.store.catalog, {peer.name: peer.window for peer in running.config.peers})
    turn = None if part.leases is None or part.node is None else partial(_sole, part.leases)
    yield RegionalSync(running, abroad.clients, holding, emit, turn)


@asynccontextmanager
async def syncing(running: Mirror, emit: Emit) -> AsyncIterator[RegionalSync]:
    """Sync in the background for as long as the context lasts."""
    async with prepared(running, emit) as sync, Background() as background:
        running.part.syncing = sync
        background.create_task(sync.run(), name="sync with other regions")
        try:
            yield sync
        finally:
            running.part.syncing = None


@asynccontextmanager
async def syncing_alone(config: Config) -> AsyncIterator[RegionalSync]:
    """Open the mirror of `config` for a command that syncs without one that serves. Raises as `mirror`."""
    async with mirror(config, role="command") as running, prepared(running, ignore) as sync:
        await sync.look()
        yield sync


async def _heals(link: Link) -> None:
    """Return when Redis can say again whose turn it is."""
    while True:
        await asyncio.sleep(TURN_SECONDS)
        if link.problem is None:
            return


def _sole(leases: Leases) -> AbstractAsyncContextManager[asyncio.Event | None]:
    from proxy.fleet.leases import sole

    return sole(leases, SYNCING)


def _rules(peer: PeerConfig) -> PeerRules:
    chosen = Rules(
        Scope.of(peer.repositories),
        tuple(TagChoice.parse(choice) for choice in peer.tags),
        peer.newest,
        tuple(Platform.parse(platform) for platform in peer.platforms),
        peer.referrers,
    )
    return PeerRules(chosen, peer.removal_grace, peer.removal_share)
