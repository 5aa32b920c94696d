"""One region of very many roots answering, or one following it, as a process of its own: `python -m`, for its memory.

serve <catalog>          says its port, then, at the end of its input, what it took
follow <catalog> <url>   reads all that region `a` has, then says what it took
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from pathlib import Path

import aiohttp
from aiohttp import web

from metrics.events import Event, PeerReconciled
from proxy.oci.errors import Unavailable
from proxy.oci.names import Tag
from proxy.regions.scope import Scope
from proxy.store.catalog import Catalog
from proxy.store.disk import Disk
from proxy.store.remote import count_waiting
from sync.following import Follower
from sync.regional_feed import Ranges, RegionChanges
from sync.regional_records import RANGES
from tests.store.contents import ALPINE
from tests.sync.lab import image

ALL = Scope.of(["*"])


def _memory() -> int:
    """Return the most bytes that this process had in memory at any time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def serve(path: Path) -> None:
    catalog = await Catalog.open(path, Disk(), region="a")
    changes, ranges = RegionChanges(catalog), Ranges(catalog)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return await (ranges if request.path == RANGES else changes)(request, ALL)

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    before = _memory()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(json.dumps({"grown": _memory() - before}), flush=True)
    await runner.cleanup()
    await catalog.aclose()


async def follow(path: Path, url: str) -> None:
    catalog = await Catalog.open(path, Disk(), region="b")
    events: list[Event] = []
    ended, writes = asyncio.Event(), 0
    slowest = 0.0
    async with aiohttp.ClientSession() as session:

        async def fetch(target: str, seconds: float, body: bytes | None) -> bytes:
            async with session.request("GET" if body is None else "POST", url + target, data=body) as response:
                if response.status != 200:
                    raise Unavailable(await response.text())
                return await response.read()

        async def pulls() -> None:
            """What the mirror does meanwhile for its own clients."""
            nonlocal slowest, writes
            loop = asyncio.get_running_loop()
            while not ended.is_set():
                began = loop.time()
                await catalog.put_tag(ALPINE, Tag("latest"), image(f"image {writes}"), 1000.0 + writes)
                slowest, writes = max(slowest, loop.time() - began), writes + 1
                await asyncio.sleep(0.05)

        follower = Follower(catalog, "a", ALL, fetch, events.append, lambda: None)
        beside = asyncio.create_task(pulls())
        before, loop = _memory(), asyncio.get_running_loop()
        began = loop.time()
        await follower.once()
        ended.set()
        await beside
    told = {
        "grown": _memory() - before,
        "seconds": loop.time() - began,
        "bytes": follower.standing.sync_bytes,
        "records": follower.standing.records,
        "rounds": sum(event.rounds for event in events if isinstance(event, PeerReconciled)),
        "waiting": (await catalog.read(lambda connection: count_waiting(connection, "a", 4e9))).images,
        "writes": writes,
        "slowest_write": slowest,
    }
    await catalog.aclose()
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[2])) if sys.argv[1] == "serve" else follow(Path(sys.argv[2]), sys.argv[3]))
