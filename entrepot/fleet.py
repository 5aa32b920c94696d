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

from entrepot import __version__
from entrepot.config import Config
from entrepot.part import Joined, Node, Role
from entrepot.secrets import fleet_secret
from entrepot.tls import neighbour_tls
from metrics.events import Emit
from proxy.bucket.collector import Collector, Turn, always
from proxy.bucket.connecting import BucketUnusable
from proxy.bucket.objects import Bucket, open_bucket
from proxy.bucket.source import BucketSource
from proxy.bucket.uploads import Uploader
from proxy.cache.near import Shelf
from proxy.cache.once import Background
from proxy.fleet.address import RedisAddress, parse
from proxy.fleet.answers import Answers
from proxy.fleet.fleet import SharedFleet
from proxy.fleet.flight import Others
from proxy.fleet.holders import Holders
from proxy.fleet.leases import Leases, sole
from proxy.fleet.link import open_link, prefix_of
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


@asynccontextmanager
async def taking_part(config: Config, store: Store, emit: Emit, role: Role) -> AsyncIterator[Joined]:
    """As `part.joined`, where there is a Redis or a bucket."""
    async with AsyncExitStack() as stack:
        bucket: Bucket | None = None
        if config.store is not None:
            if role == "node":
                await store.catalog.aim(_named(config.store))
            bucket = await stack.enter_async_context(_opened(config.store, emit))
        shelf = None if bucket is None else BucketSource(bucket)
        if config.redis is None:
            part = Joined(SharedFleet(None, shelf))
        else:
            redis = parse(config.redis.reveal())
            part = await stack.enter_async_context(_with_others(config, redis, store, shelf, emit, role))
        if bucket is not None:
            part.bucket = bucket
            turn = always if part.leases is None or part.node is None else turn_of(part.leases, part.node)
            part.turn = turn
            if role == "node":
                await stack.enter_async_context(_keeping(config, store, bucket, turn, emit))
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
        async with sole(leases, COLLECTING) as lost:
            yield lost is not None

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
