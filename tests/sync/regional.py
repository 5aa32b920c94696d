"""Regions that follow one another without sockets: catalogs, what answers for them, and links that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from aiohttp.test_utils import make_mocked_request

from metrics.events import Event, PeerReconciled
from proxy.oci.errors import Unavailable
from proxy.oci.names import Repository, Tag
from proxy.regions.scope import Scope
from proxy.store.catalog import Catalog
from proxy.store.disk import Disk
from proxy.store.ranges import OWN, Sum, read_fingerprint
from proxy.store.remote import Waiting, read_waiting, settle
from proxy.store.shadow import introduce
from sync.following import WAIT_SECONDS, Follower
from sync.regional_feed import Ranges, RegionChanges
from sync.regional_records import RANGES
from tests.store.contents import ALPINE
from tests.sync.lab import image

ALL = Scope.of(["*"])


class Region:
    """A catalog and what answers other regions for it. asked: sizes of questions and answers, by path."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.changes = RegionChanges(catalog)
        self.ranges = Ranges(catalog)
        self.grant = ALL
        self.cut = False
        self.asked: list[tuple[str, int, int]] = []
        self.met = asyncio.Event()
        self.waited_for = asyncio.Event()

    async def fetch(self, target: str, seconds: float, body: bytes | None) -> bytes:
        if self.cut:
            raise Unavailable("the region does not answer")
        method = "GET" if body is None else "POST"
        request = make_mocked_request(method, target)
        request._read_bytes = body or b""
        self.met.set()
        if f"wait={WAIT_SECONDS:g}" in target:
            self.waited_for.set()
        answers = self.ranges if target.startswith(RANGES) else self.changes
        async with asyncio.timeout(seconds):
            response = await answers(request, self.grant)
        assert isinstance(response.body, bytes)
        if response.status != 200:
            raise Unavailable(response.body.decode())
        self.asked.append((target.partition("?")[0], len(body or b""), len(response.body)))
        return response.body

    def rounds(self) -> int:
        """How many questions about ranges were answered."""
        return sum(path == RANGES for path, _, _ in self.asked)

    async def saw(self, tag: str, name: str, repository: Repository = ALPINE, now: float = 1000.0) -> None:
        """Its upstream has a tag at an image."""
        await self.catalog.put_tag(repository, Tag(tag), image(name), now)


async def region(path: Path, name: str) -> Region:
    return Region(await Catalog.open(path / f"{name}.sqlite", Disk(), region=name))


class Link:
    """One region following another, and what it told meanwhile."""

    def __init__(self, taker: Region, giver: Region | Balanced, scope: Scope = ALL, name: str | None = None) -> None:
        self.taker = taker
        self.name = name or giver.catalog.region
        self.events: list[Event] = []
        self.news = asyncio.Event()
        self.follower = Follower(taker.catalog, self.name, scope, giver.fetch, self.events.append, self.news.set)

    @property
    def reconciled(self) -> int:
        return sum(isinstance(event, PeerReconciled) for event in self.events)

    async def once(self) -> None:
        """Read all that there is, and do what waits, as the engine does once it has the bytes."""
        await self.follower.once()
        await self.work_off()

    async def waiting(self) -> list[Waiting]:
        return await self.taker.catalog.read(lambda connection: read_waiting(connection, self.name, 10_000))

    async def work_off(self) -> None:
        for one in await self.waiting():
            if one.error is None:
                await self.taker.catalog.apply(
                    one.repository,
                    [one.record],
                    lambda transaction, one=one: settle(transaction, [one]),  # type: ignore[misc]
                )

    async def shadow(self) -> Sum:
        """What the taker holds of the giver's fingerprint."""
        peer = await self.taker.catalog.write(lambda transaction: introduce(transaction, self.name))
        return await self.taker.catalog.read(lambda connection: read_fingerprint(connection, peer.id, None))


class Balanced:
    """Several nodes of one region behind one name, asked in turn."""

    def __init__(self, nodes: Sequence[Region]) -> None:
        self._nodes = nodes
        self._turn = 0
        self.catalog = nodes[0].catalog

    async def fetch(self, target: str, seconds: float, body: bytes | None) -> bytes:
        self._turn += 1
        return await self._nodes[self._turn % len(self._nodes)].fetch(target, seconds, body)


async def fingerprint(region: Region) -> Sum:
    return await region.catalog.read(lambda connection: read_fingerprint(connection, OWN, None))


async def points(region: Region, tag: str, repository: Repository = ALPINE) -> str | None:
    record = await region.catalog.tag(repository, Tag(tag))
    return None if record is None else str(record.digest)


Make = Callable[[str], Awaitable[Region]]
"""Makes a region of that name."""
