"""A mirror in the test's own process: fake upstreams, a real store, the cache and its HTTP face."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import aiohttp
from aiohttp import web
from yarl import URL

from metrics.events import Event, FillFinished
from proxy.access.admission import Access
from proxy.app import Face
from proxy.cache.progress import Signal
from proxy.cache.readthrough import ReadThrough, open_cache
from proxy.cache.sources import REACHED_SECONDS
from proxy.cache.tags import TagPolicy
from proxy.clients import Clients
from proxy.oci.digest import Digest
from proxy.oci.names import Repository
from proxy.rules import Rules
from proxy.server import Server
from proxy.source import Source
from proxy.store.store import Store
from proxy.upstream.credentials import Credential
from proxy.upstream.registry import RegistrySource, build_sources
from proxy.upstream.settings import Limits, UpstreamSettings

HUB = "docker.io"
ALPINE = Repository(HUB, "library/alpine")
LIMITS = Limits(connect=10, first_byte=30, stall=30, answer=30, quiet=1, quiet_most=1, retries=1, backoff_first=0.05)
"""What a busy machine does not reach; a test of a limit that is reached sets its own."""

E = TypeVar("E", bound=Event)
Admission = Callable[[Mapping[str, Sequence[Source]]], AbstractAsyncContextManager[Access]]
"""Opens what decides who may pull, over the sources by upstream name."""


class Host(Protocol):
    """A registry that can be mirrored: a FakeUpstream, or a real one."""

    @property
    def url(self) -> str: ...


@dataclass
class Lab:
    """The running mirror, and what can be asked of it. `url` is its listener."""

    store: Store
    cache: ReadThrough
    url: str
    http: aiohttp.ClientSession
    events: list[Event]
    told: Signal

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        """Return when `condition`, looked at after every event, holds."""
        async with asyncio.timeout(seconds):
            while not condition():
                await self.told.wait()

    async def committed(self, count: int = 1) -> None:
        """Return when `count` fills have ended as committed."""
        await self.until(lambda: sum(event.outcome == "committed" for event in self.of(FillFinished)) >= count)

    def blob_url(self, digest: Digest, repository: Repository = ALPINE) -> str:
        return f"{self.url}/v2/{repository}/blobs/{digest}"

    def manifest_url(self, reference: str, repository: Repository = ALPINE) -> str:
        return f"{self.url}/v2/{repository}/manifests/{reference}"

    async def get(
        self, url: str, headers: Mapping[str, str] | None = None, method: str = "GET"
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and the whole body. Raises ClientPayloadError on a short one."""
        async with self.http.request(method, url, headers=headers) as answer:
            return answer.status, answer.headers, await answer.read()

    async def get_short(self, url: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes, bool]:
        """Return status, what came of the body, and whether it was whole."""
        async with self.http.get(url, headers=headers) as answer:
            got = bytearray()
            try:
                async for chunk in answer.content.iter_any():
                    got += chunk
            except aiohttp.ClientPayloadError:
                return answer.status, bytes(got), False
            return answer.status, bytes(got), True


@asynccontextmanager
async def laboratory(
    data: Path,
    upstreams: Mapping[str, Sequence[Host]],
    *,
    policy: TagPolicy | None = None,
    limits: Limits = LIMITS,
    offline: bool = False,
    patience: float = 5,
    credential: Credential | None = None,
    clients: Clients | None = None,
    catalog: bool = False,
    admission: Admission | None = None,
    rules: Rules | None = None,
) -> AsyncIterator[Lab]:
    """Run a mirror over `upstreams`: by name, the main host first, then its alternates."""
    events: list[Event] = []
    told = Signal()

    def emit(event: Event) -> None:
        events.append(event)
        told.wake()

    async with AsyncExitStack() as stack:
        sources: dict[str, list[RegistrySource]] = {}
        for name, hosts in upstreams.items():
            main, *others = [URL(host.url) for host in hosts]
            settings = UpstreamSettings(
                name=name, url=main, alternates=tuple(others), credential=credential, limits=limits
            )
            sources[name] = build_sources(settings, emit)
            for source in sources[name]:
                stack.push_async_callback(source.aclose)
        store = await Store.open(data)
        stack.push_async_callback(store.close)
        chosen = policy or TagPolicy()
        cache = await stack.enter_async_context(
            open_cache(
                store,
                sources,
                emit=emit,
                policy=lambda name: chosen,
                reachable=lambda name: any(source.health.heard_within(REACHED_SECONDS) for source in sources[name]),
                offline=offline,
                patience=patience,
            )
        )
        cache.take_up_interrupted()
        access = await stack.enter_async_context(admission(sources)) if admission is not None else None
        default = next(iter(upstreams))
        face = Face(cache, frozenset(upstreams), default, emit, clients, catalog=catalog, access=access, rules=rules)
        runner = web.ServerRunner(Server(face))
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=512).start()
        http = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
        )
        host, port = runner.addresses[0][:2]
        yield Lab(store, cache, f"http://{host}:{port}", http, events, told)
