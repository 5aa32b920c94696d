"""Two regions in the test's own process: an endpoint over a cache made of dicts, and who asks it over a real socket."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from metrics.events import Event
from proxy.cache.blobs import NodeBlob
from proxy.cache.near import NearManifest
from proxy.front import Front
from proxy.oci.digest import Digest
from proxy.oci.errors import ManifestUnknown
from proxy.oci.names import Repository, Tag
from proxy.oci.ranges import ByteRange
from proxy.region_endpoint import RegionEndpoint, RegionHandler
from proxy.regions.budget import Budget
from proxy.regions.credentials import LinkFiles
from proxy.regions.grants import Grant, Grants, GrantTerms
from proxy.regions.peer import PeerClient, PeerTerms, open_peer
from proxy.regions.scope import Scope
from proxy.store.exchanged import TagChange
from tests.fleet.nodes import FakeCache, no_face, serving

TOKEN = "marker-token-of-eu-west-4711"
HUB = Repository("docker.io", "library/alpine")
PRIVATE = Repository("docker.io", "team/secret")
EVERYTHING = Scope.of(["*"])
LIBRARY = Scope.of(["docker.io/library/*"])
SMALL = bytes(range(256)) * 256


@dataclass
class RegionFake(FakeCache):
    """What a region has; `records` are its tags."""

    records: dict[Tag, tuple[TagChange, float]] = field(default_factory=dict)
    wanted_age: float = 0.0

    async def region_blob(
        self, repository: Repository, digest: Digest, span: ByteRange | None, *, held: bool
    ) -> NodeBlob:
        return await self.node_blob(repository, digest, span, held=held)

    async def region_manifest(self, repository: Repository, digest: Digest, *, held: bool) -> NearManifest:
        return await self.node_manifest(repository, digest, held=held)

    async def region_tag(self, repository: Repository, tag: Tag, max_age: float) -> tuple[TagChange, float]:
        self.wanted_age = max_age
        await self._asked(repository, tag, held=False)
        if tag not in self.records:
            raise ManifestUnknown(f"{tag} is not known")
        return self.records[tag]


@dataclass
class Region:
    """A region that answers at `url`. `answer` may be replaced, `requests` are those that came."""

    url: str
    cache: RegionFake
    answer: Front
    events: list[Event]
    requests: list[web.BaseRequest] = field(default_factory=list)


def token_file(folder: Path, *tokens: str, name: str = "token") -> Path:
    path = folder / name
    path.write_text("".join(f"{token}\n" for token in tokens))
    return path


async def grants_in(folder: Path, scope: Scope = LIBRARY, *, token: str = TOKEN) -> Grants:
    return await Grants.open([GrantTerms(Grant("eu-west", scope), token_file(folder, token, name="granted"))])


@asynccontextmanager
async def a_region(
    grants: Grants | None,
    *,
    name: str = "us-east",
    more: Mapping[str, RegionHandler] | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Region]:
    """Run a region; without `grants` it has none."""
    cache, events = RegionFake(), list[Event]()
    endpoint = None if grants is None else RegionEndpoint(grants, name, cache, events.append, more or {})
    region = Region("", cache, Front(no_face, None, endpoint), events)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        region.requests.append(request)
        return await region.answer(request)

    async with serving(answer, tls=tls) as (url, _):
        region.url = url
        yield region


@dataclass
class Asker:
    """Who asks, in the name of the region eu-west."""

    client: PeerClient
    events: list[Event]


@asynccontextmanager
async def an_asker(
    url: str,
    files: LinkFiles,
    *,
    name: str = "us-east",
    scope: Scope = EVERYTHING,
    budget: Budget | None = None,
    region: str = "eu-west",
) -> AsyncIterator[Asker]:
    events: list[Event] = []
    terms = PeerTerms(name, url, scope, files)
    async with open_peer(terms, region, budget or Budget(None), events.append) as client:
        yield Asker(client, events)


async def until_left_alone(client: PeerClient, *, available: bool = False) -> None:
    async with asyncio.timeout(30):
        while client.available != available:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)


def a_record(tag: str, content: bytes, version: int, origin: str = "us-east") -> TagChange:
    kind = "application/vnd.oci.image.manifest.v1+json"
    return TagChange(0, 0, tag, version, str(Digest.of(content)), kind, len(content), origin, 1.0, 1.0)
