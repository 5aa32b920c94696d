"""What makes this process a part of a fleet: its link to Redis, its neighbours, the bucket; made from a configuration.

The process that owns the data folder is the node: it says that it is there, and exchanges records. Those that only
answer clients lease, follow and ask for themselves. All of it holds until a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from entrepot import __version__
from entrepot.config import Config
from entrepot.secrets import fleet_secret
from entrepot.tls import neighbour_tls
from entrepot.upstreams import Sources
from entrepot.views import FleetView, NodeView
from metrics.events import Emit
from proxy.bucket.collector import Collector, Turn, always
from proxy.bucket.connecting import BucketUnusable
from proxy.bucket.objects import Bucket, open_bucket
from proxy.bucket.source import BucketSource
from proxy.bucket.uploads import Uploader
from proxy.cache.near import Alone, Fleet, Shelf
from proxy.cache.once import Background
from proxy.fleet.address import RedisAddress, parse
from proxy.fleet.answers import Answers
from proxy.fleet.fleet import SharedFleet
from proxy.fleet.flight import Others
from proxy.fleet.holders import Holders
from proxy.fleet.hosts import Hosts
from proxy.fleet.leases import Leases, sole
from proxy.fleet.link import Link, open_link, prefix_of
from proxy.fleet.neighbours import Neighbours, open_neighbours
from proxy.fleet.nodes import NodeInfo, Nodes
from proxy.fleet.protocol import PROTOCOL, Neighbourhood, origin
from proxy.oci.errors import Unavailable
from proxy.store.store import Store
from sync.exchange import Exchange
from sync.feed import Changes

COLLECTING = "collecting"
BEHIND_SECONDS = 60.0
"""Whoever has not had all records of another node for so long does not judge what may go."""

Role = Literal["node", "worker", "command"]
"""What a process is: the one that owns the data folder and serves; one that answers clients beside it; or a command
that owns the folder for a while: nobody can follow it, so it leads nothing."""


@dataclass
class Node:
    """This node among the others, as its own process sees it: who else is there, whose records are here."""

    nodes: Nodes
    exchange: Exchange
    background: Background


@dataclass
class Joined:
    """This process's part in a fleet. With no Redis, `link` and all that needs it is None.

    `secret` signs what nodes ask each other, `changes` answers those who ask for this catalog's records. `turn`: to
    collect garbage in the bucket.
    """

    fleet: Fleet = field(default_factory=Alone)
    url: str = ""
    secret: bytes = field(default=b"", repr=False)
    link: Link | None = None
    leases: Leases | None = None
    bucket: Bucket | None = None
    node: Node | None = None
    changes: Changes | None = None
    turn: Turn = always

    @property
    def is_node(self) -> bool:
        """Other nodes may ask this one."""
        return self.link is not None

    @property
    def bucket_problem(self) -> str | None:
        """Why the bucket is not asked now, None while it is or where there is none."""
        return None if self.bucket is None else self.bucket.failing

    def view(self) -> FleetView | None:
        """Return what people are shown of the fleet, None where there is none."""
        if self.link is None:
            return None
        node = self.node
        behind = node.exchange.behind if node is not None else {}
        others = node.nodes.others if node is not None else ()
        return FleetView(
            url=self.url,
            problem=self.link.problem,
            nodes=tuple(NodeView(one.url, one.version, one.state, behind.get(one.url)) for one in others),
            incompatible=tuple(one.url for one in node.nodes.incompatible) if node is not None else (),
        )

    def drain(self) -> None:
        """Let nobody wait for changes any more, and tell the fleet that this node ends."""
        if self.changes is not None:
            self.changes.end()
        if self.node is not None:
            self.node.background.create_task(self.node.nodes.drain(), name="tell the fleet that this node drains")


@asynccontextmanager
async def joined(config: Config, store: Store, emit: Emit, role: Role) -> AsyncIterator[Joined]:
    """Take part in the fleet and its bucket, as `config` names them, for as long as the context lasts.

    Nothing here waits for Redis or the bucket, or fails because of it. Raises OSError for a secret or certificate that
    is unreadable, and for a store that cannot be one.
    """
    async with AsyncExitStack() as stack:
        if role == "node":  # a command that was not told of the store must not have its queue forgotten
            await store.catalog.aim(None if config.store is None else _named(config.store))
        if config.redis is None and config.store is None:
            yield Joined()
            return
        bucket = None if config.store is None else await stack.enter_async_context(_opened(config.store, emit))
        shelf = None if bucket is None else BucketSource(bucket)
        if config.redis is None:
            part = Joined(SharedFleet(None, shelf))
        else:
            redis = parse(config.redis.reveal())
            part = await stack.enter_async_context(_with_others(config, redis, store, shelf, emit, role))
        if bucket is not None:
            part.bucket = bucket
            if part.leases is not None and part.node is not None:
                part.turn = turn_of(part.leases, part.node)
            if role == "node":
                await stack.enter_async_context(_keeping(config, store, bucket, part.turn, emit))
        yield part


@asynccontextmanager
async def _with_others(
    config: Config, redis: RedisAddress, store: Store, shelf: Shelf | None, emit: Emit, role: Role
) -> AsyncIterator[Joined]:
    """Work with the nodes that use the same Redis, for as long as the context lasts."""
    url, secret = origin(config.fleet_address), await asyncio.to_thread(fleet_secret, config)
    async with AsyncExitStack() as stack:
        background = await stack.enter_async_context(Background())
        link = await stack.enter_async_context(open_link(redis, emit, prefix=prefix_of(config.region)))
        tls = None if config.tls is None else await stack.enter_async_context(neighbour_tls(config.tls))
        neighbourhood = Neighbourhood.parse(config.neighbours, url)
        neighbours = await stack.enter_async_context(open_neighbours(url, secret, neighbourhood, tls, emit))
        leases, answers = Leases(link, url), Answers(link)
        nodes = Nodes(link, NodeInfo(url, PROTOCOL, __version__), tells=role == "node")
        background.create_task(answers.run(), name="tell the fleet what is missing")
        background.create_task(nodes.run(), name="tell the fleet of this node")
        changes = Changes(store.catalog)
        stack.callback(changes.end)
        holders = Holders(leases, neighbours, nodes.urls, nodes.beat)
        others = Others(neighbours, holders, answers, None if role == "command" else leases, background)
        node = None
        if role == "node":
            node = await stack.enter_async_context(_present(store, nodes, neighbours, emit))
        yield Joined(SharedFleet(others, shelf), url, secret, link, leases, node=node, changes=changes)


def _named(url: str) -> str:
    """Return what the catalog knows a store by."""
    return hashlib.sha256(url.encode()).hexdigest()


@asynccontextmanager
async def _opened(url: str, emit: Emit) -> AsyncIterator[Bucket]:
    async with AsyncExitStack() as stack:
        try:
            bucket = await stack.enter_async_context(open_bucket(url, emit))
        except BucketUnusable as error:
            raise OSError(f"the store cannot be used: {error}") from None
        yield bucket


@asynccontextmanager
async def _keeping(config: Config, store: Store, bucket: Bucket, turn: Turn, emit: Emit) -> AsyncIterator[None]:
    """Upload what is stored, and collect garbage when it is this node's turn, for as long as the context lasts."""
    collector = Collector(store.catalog, bucket, emit, config.store_grace, turn)
    async with Background() as background:
        background.create_task(Uploader(store, bucket, emit, config.store_grace).run(), name="upload to the bucket")
        background.create_task(collector.run(), name="collect garbage in the bucket")
        yield


def turn_of(leases: Leases, node: Node, clock: Callable[[], float] = time.monotonic) -> Turn:
    """Return the right to collect: of one node at a time, and of none that may not know what the others want.

    `clock` gives monotonic seconds.
    """
    met_at = clock() + BEHIND_SECONDS

    @asynccontextmanager
    async def turn() -> AsyncIterator[bool]:
        if clock() < met_at:
            raise Unavailable("this node has just started, and may not know the others yet: ask again in a minute")
        behind = node.exchange.behind
        unread = [
            url
            for url, standing in node.exchange.standings.items()
            if standing.records is None or behind[url] > BEHIND_SECONDS
        ]
        unread += [one.url for one in node.nodes.incompatible]
        if unread:
            raise Unavailable(
                f"this node has not all records of {', '.join(unread)}, and what they say may be wanted: see that it "
                "reaches them, in one version, or collect at another node"
            )
        async with sole(leases, COLLECTING) as ours:
            yield ours

    return turn


@asynccontextmanager
async def _present(store: Store, nodes: Nodes, neighbours: Neighbours, emit: Emit) -> AsyncIterator[Node]:
    """Be a node for as long as the context lasts: exchange records with the others, and leave them at the end."""

    async def fetch(node: str, target: str, seconds: float) -> bytes:
        async with neighbours.request(node, "GET", target, timeout=seconds) as answer:
            return await answer.read()

    exchange = Exchange(store.catalog, nodes.urls, nodes.changed, fetch, emit)
    async with Background() as background:
        background.create_task(exchange.run(), name="exchange records with the fleet")
        try:
            yield Node(nodes, exchange, background)
        finally:
            await nodes.leave()


@asynccontextmanager
async def sharing_hosts(part: Joined, sources: Sources) -> AsyncIterator[None]:
    """Share with the fleet, for as long as the context lasts, what is found out of the hosts of `sources`."""
    if part.link is None:
        yield
        return
    hosts = {f"{name}@{source.name}": source for name, several in sources.items() for source in several}
    async with Background() as background:
        background.create_task(Hosts(part.link, lambda: hosts).run(), name="share what hosts say")
        yield
