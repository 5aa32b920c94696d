"""This process's part in a fleet and its bucket, as the rest of the program sees it.

What makes it (`fleet`) is loaded where a configuration asks for it: a mirror alone has no use for a client of Redis.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from entrepot.config import Config
from entrepot.upstreams import Sources
from entrepot.views import FleetView, NodeView
from metrics.events import Emit
from proxy.cache.near import Alone, Fleet
from proxy.cache.once import Background
from proxy.store.store import Store

if TYPE_CHECKING:
    from entrepot.regions import Abroad
    from entrepot.syncasking import Syncing
    from proxy.bucket.collector import Turn
    from proxy.bucket.objects import Bucket
    from proxy.fleet.leases import Leases
    from proxy.fleet.link import Link
    from proxy.fleet.nodes import Nodes
    from sync.exchange import Exchange
    from sync.feed import Changes

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
    collect garbage in the bucket, None where there is none. `syncing` with other regions, where this process does;
    `abroad`: whom of them it asks, and who of them may ask.
    """

    fleet: Fleet = field(default_factory=Alone)
    url: str = ""
    secret: bytes = field(default=b"", repr=False)
    link: Link | None = None
    leases: Leases | None = None
    bucket: Bucket | None = None
    node: Node | None = None
    changes: Changes | None = None
    turn: Turn | None = None
    syncing: Syncing | None = None
    abroad: Abroad | None = None

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
        if self.abroad is not None:
            self.abroad.drain()
        if self.node is not None:
            self.node.background.create_task(self.node.nodes.drain(), name="tell the fleet that this node drains")


@asynccontextmanager
async def joined(config: Config, store: Store, emit: Emit, role: Role) -> AsyncIterator[Joined]:
    """Take part in the fleet and its bucket, as `config` names them, for as long as the context lasts.

    Nothing here waits for Redis or the bucket, or fails because of it. Raises OSError for a secret or certificate that
    is unreadable, and for a store that cannot be one.
    """
    if config.store is None and role == "node":  # a command that was not told of the store leaves its queue alone
        await store.catalog.aim(None)
    async with AsyncExitStack() as stack:
        part = Joined()
        if config.redis is not None or config.store is not None:
            from entrepot.fleet import taking_part

            part = await stack.enter_async_context(taking_part(config, store, emit, role))
        if config.peers or config.grants:
            from entrepot.regions import going_abroad, share_mesh

            if role == "node":
                await share_mesh(config, store)
            part.abroad = await stack.enter_async_context(going_abroad(config, store, emit))
        yield part


@asynccontextmanager
async def sharing_hosts(part: Joined, sources: Sources) -> AsyncIterator[None]:
    """Share with the fleet, for as long as the context lasts, what is found out of the hosts of `sources`."""
    link = part.link
    if link is None:
        yield
        return
    from proxy.fleet.hosts import Hosts

    hosts = {f"{name}@{source.name}": source for name, several in sources.items() for source in several}
    async with Background() as background:
        background.create_task(Hosts(link, lambda: hosts).run(), name="share what hosts say")
        yield
