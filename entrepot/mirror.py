"""The objects that make a mirror, built from a configuration and taken down in order. Listeners are `serve`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from entrepot import __version__
from entrepot.config import Config
from entrepot.part import Joined, Role, joined, sharing_hosts
from entrepot.upstreams import Sources, open_sources, under_quota
from entrepot.view import CrewView, HistoryShown, PullsShown
from metrics.events import Emit, ignore
from metrics.prometheus import Metrics
from proxy.cache.near import Asker
from proxy.cache.once import Background
from proxy.cache.readthrough import ANSWER_SECONDS, ReadThrough, open_cache
from proxy.cache.sources import REACHED_SECONDS
from proxy.cache.tags import TagPolicy
from proxy.store.backup import backing_up
from proxy.store.rescan import rescanning
from proxy.store.store import Store
from proxy.store.sweep import Sweeper, sweeping
from proxy.upstream.registry import RegistrySource

State = Literal["starting", "ready", "draining"]


@dataclass
class Mirror:
    """A mirror without its listeners; `state` and `listen_addresses` are set by whoever gives it some.

    `cache` and `sources` are what the configuration asks for; a reload replaces them. `crew` are the processes that
    answer clients where this one does not. `part` is this process's part in a fleet.
    """

    config: Config
    store: Store
    cache: ReadThrough
    metrics: Metrics
    sources: Sources
    part: Joined = field(default_factory=Joined)
    state: State = "starting"
    listen_addresses: Sequence[str] = ()
    crew: CrewView | None = None
    pulls: PullsShown | None = None
    history: HistoryShown | None = None
    started_monotonic: float = field(default_factory=time.monotonic)
    started_at: float = field(default_factory=time.time)

    def upstream_status(self) -> list[dict[str, Any]]:
        """Return what is known of each upstream's hosts; an `error` never holds a credential or a query string."""
        return [_upstream_status(name, sources, self.metrics) for name, sources in self.sources.items()]


class Rebuilding:
    """Turns a mirror to another configuration. State: what the present one holds open, and what still ends."""

    def __init__(self, mirror: Mirror, emit: Emit, held: AsyncExitStack, sweeper: Sweeper) -> None:
        self.mirror = mirror
        self._emit = emit
        self._held = held
        self._sweeper = sweeper
        self._ending = Background()

    async def turn_to(self, config: Config, show: Callable[[], Awaitable[None]]) -> None:
        """Give the mirror sources and a cache as `config` says, then `show` it; what the old cache does goes on.

        Raises CredentialError or OSError for what cannot be read or shown: the mirror then stays as it was.
        """
        mirror, stack = self.mirror, AsyncExitStack()
        before = mirror.config, mirror.sources, mirror.cache
        try:
            sources, cache = await stack.enter_async_context(_parts(config, mirror.store, mirror.part, self._emit))
            mirror.config, mirror.sources, mirror.cache = config, sources, cache
            await show()
        except BaseException:
            mirror.config, mirror.sources, mirror.cache = before
            await stack.aclose()
            raise
        old, self._held = self._held, stack
        self._ending.create_task(_end(before[2], old), name="end the cache of an old configuration")
        self._sweeper.turn_to(config.quota)

    async def aclose(self) -> None:
        """End everything."""
        await self._ending.aclose()
        await self._held.aclose()


async def _end(cache: ReadThrough, held: AsyncExitStack) -> None:
    try:
        await asyncio.sleep(ANSWER_SECONDS)  # for those whose request had begun
        await cache.idle()
    finally:
        await held.aclose()


@asynccontextmanager
async def mirror(
    config: Config, *, metrics: Metrics | None = None, emit: Emit = ignore, role: Role = "node", beside: bool = False
) -> AsyncIterator[Mirror]:
    """As `rebuildable`, for those who keep to one configuration."""
    async with rebuildable(config, metrics=metrics, emit=emit, role=role, beside=beside) as rebuilding:
        yield rebuilding.mirror


@asynccontextmanager
async def rebuildable(
    config: Config, *, metrics: Metrics | None = None, emit: Emit = ignore, role: Role = "node", beside: bool = False
) -> AsyncIterator[Rebuilding]:
    """Open the store, the upstreams and the cache of `config`, and give them as a Mirror.

    A "worker" is beside the process that owns the data folder, which does what must be single; so is a command that is
    told that it is `beside` a running mirror (see `entrepot.beside`).

    Raises StoreBusy when another process has the data folder, CredentialError or OSError for what cannot be read.
    """
    beside = beside or role == "worker"
    opening = Store.attach if beside else Store.open
    store = await opening(config.data, region=config.region)
    making_room = AsyncExitStack()
    try:
        sweeper = await making_room.enter_async_context(sweeping(store, config.quota, emit))
        part = await making_room.enter_async_context(joined(config, store, emit, role))
        held = AsyncExitStack()
        try:
            sources, cache = await held.enter_async_context(_parts(config, store, part, emit))
        except BaseException:
            await held.aclose()
            raise
        running = Mirror(config, store, cache, metrics or Metrics(version=__version__), sources, part)
        rebuilding = Rebuilding(running, emit, held, sweeper)
        try:
            if beside:
                yield rebuilding
            else:
                async with rescanning(store), backing_up(store.backup_path, store.back_up):
                    cache.take_up_interrupted(await _asker_of_interrupted(config, store))
                    yield rebuilding
        finally:
            await rebuilding.aclose()
    finally:
        await making_room.aclose()
        await store.close()


@asynccontextmanager
async def _parts(config: Config, store: Store, part: Joined, emit: Emit) -> AsyncIterator[tuple[Sources, ReadThrough]]:
    policies = {
        upstream.name: TagPolicy(
            upstream.tag_ttl,
            upstream.stale_while_revalidate,
            upstream.stale_if_error,
            upstream.negative_ttl,
            upstream.cooldown,
        )
        for upstream in config.upstreams
    }
    async with (
        open_sources(config, emit) as sources,
        sharing_hosts(part, sources),
        open_cache(
            store,
            sources,
            emit=emit,
            policy=lambda name: under_quota(policies[name], sources[name][0].quota),
            reachable=lambda name: any(source.health.heard_within(REACHED_SECONDS) for source in sources[name]),
            offline=config.offline,
            fleet=part.fleet,
            regions=None if part.abroad is None else part.abroad.peers,
        ) as cache,
    ):
        yield sources, cache


async def _asker_of_interrupted(config: Config, store: Store) -> Asker:
    """Return for whom interrupted fills go on: while a peer is paused, or outside its window, no region is asked."""
    if not config.peers:
        return Asker.CLIENT
    from sync.holding import Holding

    holding = await Holding.load(store.catalog, {peer.name: peer.window for peer in config.peers})
    return Asker.REGION if any(holding.held(peer.name) for peer in config.peers) else Asker.CLIENT


def _upstream_status(name: str, sources: Sequence[RegistrySource], metrics: Metrics) -> dict[str, Any]:
    hosts: list[Mapping[str, Any]] = [
        {
            "host": source.name,
            "answered": source.health.answered,
            "reachable": not source.health.failing,
            "error": source.last_error.message if source.last_error else None,
            "quota": metrics.quota(source.name),
            "breaker": source.health.state.value,
            "credential_refused": source.keyring.refused,
            "credential_error": source.keyring.problem,
            "held": {kind: round(seconds, 1) for kind, seconds in source.holds.remaining().items()},
        }
        for source in sources
    ]
    return {"name": name, "reachable": any(host["reachable"] for host in hosts), "hosts": hosts}
