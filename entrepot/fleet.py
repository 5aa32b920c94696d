"""What makes this process a part of a fleet: its link to Redis, its neighbours, the bucket; made from a configuration.

The process that owns the data folder is the node: it says that it is there, and exchanges records. Those that only
answer clients (`attached`) lease, follow and ask for themselves. All of it holds until a restart.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from entrepot import __version__
from entrepot.config import Config
from entrepot.secrets import fleet_secret
from entrepot.tls import neighbour_tls
from entrepot.upstreams import Sources
from entrepot.views import FleetView, NodeView
from metrics.events import Emit
from proxy.cache.near import Alone, Fleet
from proxy.cache.once import Background
from proxy.fleet.address import parse
from proxy.fleet.answers import Answers
from proxy.fleet.fleet import SharedFleet
from proxy.fleet.holders import Holders
from proxy.fleet.hosts import Hosts
from proxy.fleet.leases import Leases
from proxy.fleet.link import Link, open_link, prefix_of
from proxy.fleet.neighbours import Neighbours, open_neighbours
from proxy.fleet.nodes import NodeInfo, Nodes
from proxy.fleet.protocol import PROTOCOL, Neighbourhood, origin
from proxy.store.store import Store
from sync.exchange import Exchange
from sync.feed import Changes

BODY_SECONDS = 20.0
MOST_PAGE = 16 << 20


@dataclass
class Node:
    """This node among the others, as its own process sees it: who else is there, whose records are here."""

    nodes: Nodes
    exchange: Exchange
    background: Background


@dataclass
class Joined:
    """This process's part in a fleet. With no Redis, `link` and all that needs it is None.

    `secret` signs what nodes ask each other, `changes` answers those who ask for this catalog's records.
    """

    fleet: Fleet = field(default_factory=Alone)
    url: str = ""
    secret: bytes = field(default=b"", repr=False)
    link: Link | None = None
    leases: Leases | None = None
    node: Node | None = None
    changes: Changes | None = None

    @property
    def is_node(self) -> bool:
        """Other nodes may ask this one."""
        return self.link is not None

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
async def joined(config: Config, store: Store, emit: Emit, *, attached: bool) -> AsyncIterator[Joined]:
    """Take part in the fleet that `config` names for as long as the context lasts.

    Nothing here waits for Redis, or fails because of it. Raises OSError for a secret or certificate that is unreadable.
    """
    async with AsyncExitStack() as stack:
        if config.redis is None:
            yield Joined()
            return
        background = await stack.enter_async_context(Background())
        secret = await asyncio.to_thread(fleet_secret, config)
        url = origin(config.fleet_address)
        link = await stack.enter_async_context(
            open_link(parse(config.redis.reveal()), emit, prefix=prefix_of(config.region))
        )
        tls: ssl.SSLContext | None = None
        if config.tls is not None:
            tls = await stack.enter_async_context(neighbour_tls(config.tls))
        neighbourhood = Neighbourhood.parse(config.neighbours, url)
        neighbours = await stack.enter_async_context(open_neighbours(url, secret, neighbourhood, tls, emit))
        leases, answers = Leases(link, url), Answers(link)
        background.create_task(answers.run(), name="tell the fleet what is missing")
        changes = Changes(store.catalog)
        stack.callback(changes.end)
        nodes = Nodes(link, NodeInfo(url, PROTOCOL, __version__, store.catalog.epoch), tells=not attached)
        background.create_task(nodes.run(), name="tell the fleet of this node")
        holders = Holders(leases, neighbours, nodes.urls)
        fleet = SharedFleet(leases, answers, neighbours, holders, None, background)
        part = Joined(fleet, url, secret, link, leases, changes=changes)
        if not attached:
            part.node = await stack.enter_async_context(_present(store, nodes, neighbours, emit))
        yield part


@asynccontextmanager
async def _present(store: Store, nodes: Nodes, neighbours: Neighbours, emit: Emit) -> AsyncIterator[Node]:
    """Be a node for as long as the context lasts: exchange records with the others, and leave them at the end."""

    async def fetch(node: str, target: str, seconds: float) -> bytes:
        async with neighbours.request(node, "GET", target, timeout=seconds) as answer:
            return await answer.read(MOST_PAGE, BODY_SECONDS)

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
