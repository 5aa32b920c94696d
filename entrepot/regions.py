"""This process's part among the regions, made from a configuration: whom it asks, and who may ask it.

Loaded where a configuration names other regions. What replicates from them is `syncing`'s.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from entrepot.config import Config, GrantConfig, PeerConfig
from entrepot.secrets import fleet_secret
from metrics.events import Emit
from proxy.clients import Clients
from proxy.front import Answerer
from proxy.region_endpoint import RegionCache, RegionEndpoint, RegionHandler
from proxy.regions.budget import Budget
from proxy.regions.credentials import LinkFiles
from proxy.regions.grants import Grant, Grants, GrantTerms
from proxy.regions.peer import PeerClient, PeerTerms, open_peer
from proxy.regions.peers import Peers
from proxy.regions.scope import Scope
from proxy.store.store import Store
from sync.regional_feed import Ranges, RegionChanges
from sync.regional_records import CHANGES, RANGES


@dataclass
class Abroad:
    """Other regions: `clients` by name ask them, `peers` are they as the cache sees them; `grants`: who may ask."""

    clients: dict[str, PeerClient] = field(default_factory=dict)
    peers: Peers | None = None
    grants: Grants | None = None
    changes: RegionChanges | None = None
    ranges: Ranges | None = None

    def endpoint(self, region: str, cache: RegionCache, emit: Emit) -> Answerer | None:
        """Return what answers other regions from `cache`, None where nobody may ask."""
        if self.grants is None or self.changes is None or self.ranges is None:
            return None
        more: dict[str, RegionHandler] = {CHANGES: self.changes, RANGES: self.ranges}
        return RegionEndpoint(self.grants, region, cache, emit, more=more)

    def drain(self) -> None:
        """Let nobody wait for changes any more."""
        if self.changes is not None:
            self.changes.end()


@asynccontextmanager
async def going_abroad(config: Config, store: Store, emit: Emit) -> AsyncIterator[Abroad]:
    """Ask other regions and answer them, as `config` names them. Raises OSError for a file that cannot be used."""
    async with AsyncExitStack() as stack:
        abroad = Abroad()
        for peer in config.peers:
            budget = Budget.open(peer.bandwidth, config.data / "run" / f"link-{peer.name}")
            stack.callback(budget.close)
            abroad.clients[peer.name] = await stack.enter_async_context(
                open_peer(_terms(peer), config.region, budget, emit)
            )
        if abroad.clients:
            abroad.peers = Peers(tuple(abroad.clients.values()), config.region)
        if config.grants:
            granted = [_granted(grant) for grant in config.grants]
            clients = Clients(config.trusted_proxies)
            abroad.grants = await Grants.open(
                granted, lambda request: clients.of(request.remote or "", request.headers).address
            )
            abroad.changes, abroad.ranges = RegionChanges(store.catalog), Ranges(store.catalog)
            stack.callback(abroad.drain)
        yield abroad


async def share_mesh(config: Config, store: Store) -> None:
    """Give the catalogs of a fleet one key for what regions compare, so that any node can answer a region."""
    if config.redis is None:
        return
    secret = await asyncio.to_thread(fleet_secret, config)
    mesh = hmac.digest(secret, b"entrepot mesh 1", "sha256")
    if mesh != store.catalog.mesh:
        await store.catalog.rekey(mesh)


def _terms(peer: PeerConfig) -> PeerTerms:
    files = LinkFiles(peer.token_file, peer.ca_file, peer.cert, peer.key)
    return PeerTerms(peer.name, peer.url, Scope.of(peer.repositories), files)


def _granted(grant: GrantConfig) -> GrantTerms:
    return GrantTerms(Grant(grant.name, Scope.of(grant.repositories)), grant.token_file, grant.certificate)
