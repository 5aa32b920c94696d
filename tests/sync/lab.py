"""Nodes that exchange records: catalogs behind real listeners, and links between them that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
from aiohttp import web

from metrics.events import Event, FeedFailed
from proxy.cache.progress import Signal
from proxy.oci.descriptor import Descriptor
from proxy.oci.errors import Unavailable
from proxy.oci.names import Tag
from proxy.store.catalog import Catalog
from proxy.store.disk import Disk
from proxy.store.feed import read_page
from sync.exchange import Exchange
from sync.feed import Changes
from sync.records import Question
from tests.store.contents import ALPINE, TYPES, digest

LATEST = Tag("latest")
SOON = 30.0


def image(name: str) -> Descriptor:
    return Descriptor(TYPES["image"], digest(name), len(name))


class Node:
    """A catalog behind a real listener, and what it was asked."""

    def __init__(self, catalog: Catalog, changes: Changes) -> None:
        self.catalog = catalog
        self.changes = changes
        self.url = ""
        self.asked: list[Question] = []
        self.met = asyncio.Event()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(Question.parse(request.rel_url.raw_query_string))
        self.met.set()
        return await self.changes(request)


@asynccontextmanager
async def node(path: Path) -> AsyncIterator[Node]:
    catalog = await Catalog.open(path, Disk())
    changes = Changes(catalog)
    made = Node(catalog, changes)
    runner = web.ServerRunner(web.Server(made.handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        changes.end()
        await runner.cleanup()
        await catalog.aclose()


class Lab:
    """Catalogs behind listeners; `links` run the exchange of one with others."""

    def __init__(self, folder: Path, stack: AsyncExitStack, session: aiohttp.ClientSession) -> None:
        self._folder = folder
        self._stack = stack
        self._session = session
        self.cut: set[str] = set()
        self.failed = asyncio.Event()
        self.events: list[Event] = []

    async def node(self, name: str) -> Node:
        return await self._stack.enter_async_context(node(self._folder / f"{name}.sqlite"))

    def tell(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, FeedFailed):
            self.failed.set()

    async def fetch(self, url: str, target: str, seconds: float) -> bytes:
        if url in self.cut:
            raise Unavailable(f"node {url} does not answer")
        async with asyncio.timeout(seconds), self._session.get(url + target) as response:
            assert response.status == 200, await response.text()
            return await response.read()

    def breaking(self, taker: Node, giver: Node, at: int) -> Exchange:
        """An exchange whose question number `at` is not answered."""
        asked = 0

        async def fetch(url: str, target: str, seconds: float) -> bytes:
            nonlocal asked
            asked += 1
            if asked == at:
                raise Unavailable("cut")
            return await self.fetch(url, target, seconds)

        return Exchange(taker.catalog, lambda: [giver.url], Signal(), fetch)

    def exchange(self, taker: Node, *givers: Node, changed: Signal | None = None) -> Exchange:
        urls = [giver.url for giver in givers]
        return Exchange(taker.catalog, lambda: urls, changed or Signal(), self.fetch, self.tell)


@asynccontextmanager
async def running(exchange: Exchange) -> AsyncIterator[None]:
    task = asyncio.create_task(exchange.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(catalog: Catalog, met: Callable[[], object]) -> None:
    """Wait until the catalog has taken over what makes `met` true."""
    async with asyncio.timeout(SOON):
        while not met():
            await catalog.published.wait(catalog.published.number, 0.05)


async def is_at(node: Node, name: str) -> bool:
    record = await node.catalog.tag(ALPINE, LATEST)
    return record is not None and record.digest == digest(name)


async def reaches(node: Node, name: str) -> None:
    async with asyncio.timeout(SOON):
        while not await is_at(node, name):
            await node.catalog.published.wait(node.catalog.published.number, 0.05)


async def told(node: Node) -> set[tuple[object, ...]]:
    """Return all that a node tells, but for where it stands in its feed."""
    page = await node.catalog.read(lambda connection: read_page(connection, node.catalog.epoch, 0, 1000))
    return {
        (page.repositories[record.at], msgspec.json.encode(msgspec.structs.replace(record, seq=0, at=0)))
        for record in page.records
    }
