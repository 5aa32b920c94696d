"""A Source as clients have it: served over HTTP, and read again by the client of a registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from yarl import URL

from metrics.events import ignore
from proxy.app import Face
from proxy.server import Server
from proxy.source import Source
from proxy.upstream.registry import RegistrySource
from proxy.upstream.settings import UpstreamSettings


@asynccontextmanager
async def over_http(source: Source, upstream: str) -> AsyncIterator[RegistrySource]:
    """Serve `source` as `upstream` on a port of 127.0.0.1, and give what asks there."""
    runner = web.ServerRunner(Server(Face(source, frozenset({upstream}), upstream, ignore)))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        url = URL(f"http://{host}:{port}")
        asking = RegistrySource(UpstreamSettings(name=upstream, url=url), url, ignore)
        yield asking
        await asking.aclose()
    finally:
        await runner.cleanup()
