"""Two regions under a little load of everything that a dashboard shows: what a round brings, no panel may miss.

`eu` has the upstreams, `us` follows it, and would follow a region that cannot be reached. A round is a few pulls with
everything that may happen to them: hits, misses, joined downloads, layers that clients had, stale answers, 429 and
quota, wrong bytes, broken bodies, errors.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import aiohttp

from tests.grafana.queries import RULES
from tests.support.contents import Image, blob, make_image
from tests.support.fake_upstream import FakeUpstream, Recorded, Reply
from tests.support.fleet import Node
from tests.support.prometheus import Prometheus
from tests.support.regions import NOWHERE, table

KIB = 1024
UPSTREAM = "docker.io"
TROUBLED = "quay.io"
WARMED = "library/warmed"
OLD = "team/old"
_TOKEN = "what-us-shows-to-eu-0123456789"


@dataclass
class Load:
    """The regions, what is done to them, and the Prometheus that scrapes them."""

    upstream: FakeUpstream
    troubled: FakeUpstream
    eu: Node
    us: Node
    prometheus: Prometheus
    session: aiohttp.ClientSession
    _numbers: count[int] = field(default_factory=lambda: count(1))
    _wrong: str = ""

    async def prepare(self) -> None:
        """Pull what becomes stale; from then on one of the upstreams only says 503 and 429."""
        old = make_image([blob(20 * KIB, 1)])
        old.publish(self.troubled, OLD, "1")
        await self._pull(f"{TROUBLED}/{OLD}", old, "docker/27.0")
        self.troubled.status_for = self._trouble
        self.upstream.status_for = self._spoil

    async def round(self) -> None:
        """Let everything happen once."""
        number = next(self._numbers)
        repo = f"library/load{number}"
        image = make_image([blob(1_200 * KIB, number * 10), blob(30 * KIB, number * 10 + 1)])
        image.publish(self.upstream, repo, "1")
        self._wrong = str(self.upstream.add_blob(repo, blob(5 * KIB, number * 10 + 2)))
        left = max(1, 95 - number)
        self.upstream.extra_headers = {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": f"{left};w=21600"}
        self.upstream.die_at = 600 * KIB
        async with asyncio.TaskGroup() as clients:
            for client in range(3):
                clients.create_task(self._pull(repo, image, f"containerd/2.{client}"))
        await self._pull(repo, image, "docker/27.0")
        await self._pull(repo, image, "podman/5.0", had=1)
        for path in (f"{repo}/manifests/none", f"{repo}/blobs/{self._wrong}"):
            await self._get(path)
        await self._get(f"{TROUBLED}/{OLD}/manifests/1", {"Cache-Control": "no-cache"})
        await self._get(f"{TROUBLED}/team/limited/manifests/{number}")

    async def _pull(self, repo: str, image: Image, agent: str, *, had: int = 0) -> None:
        headers = {"User-Agent": agent}
        document = json.loads(await self._get(f"{repo}/manifests/1", headers))
        for entry in (document["config"], *document["layers"][had:]):
            await self._get(f"{repo}/blobs/{entry['digest']}", headers)

    async def _get(self, path: str, headers: Mapping[str, str] | None = None) -> bytes:
        async with self.session.get(f"{self.eu.url}/v2/{path}", headers={"Accept": "*/*", **(headers or {})}) as answer:
            return await answer.read()

    def _trouble(self, asked: Recorded) -> Reply:
        return Reply(503) if OLD in asked.path else Reply(429, {"Retry-After": "1"})

    def _spoil(self, asked: Recorded) -> Reply | None:
        return Reply(200, {}, bytes(5 * KIB)) if self._wrong and self._wrong in asked.path else None


@asynccontextmanager
async def loaded(folder: Path, *, workers: int = 1) -> AsyncIterator[Load]:
    """Start the regions, `eu` with so many worker processes, and a Prometheus with our rules that has scraped them."""
    token = folder / "token"
    token.write_text(f"{_TOKEN}\n")
    token.chmod(0o600)
    async with FakeUpstream() as upstream, FakeUpstream() as troubled, aiohttp.ClientSession() as session:
        eu = Node(
            folder / "eu",
            {},
            config="\n".join(
                [
                    'region = "eu"',
                    table("upstream", {"name": UPSTREAM, "url": upstream.url, "tag_ttl": "1h"}),
                    table("upstream", {"name": TROUBLED, "url": troubled.url}),
                    table("grant", {"name": "us", "token_file": str(token), "repositories": ["*"]}),
                    table("warm", {"references": [f"{UPSTREAM}/{WARMED}:1"], "every": "1m"}),
                ]
            ),
            flags=("--workers", str(workers)) if workers > 1 else (),
        )
        us = Node(
            folder / "us",
            {},
            config="\n".join(
                [
                    'region = "us"',
                    'quota = "3MiB"',
                    table("upstream", {"name": UPSTREAM, "url": upstream.url}),
                    table("peer", {"name": "eu", "url": eu.url, "token_file": str(token)}),
                    table("peer", {"name": "gone", "url": NOWHERE, "token_file": str(token)}),
                ]
            ),
        )
        make_image([blob(10 * KIB)]).publish(upstream, WARMED, "1")
        targets = {region.folder.name: region.admin.removeprefix("http://") for region in (eu, us)}
        with Prometheus(
            folder / "prometheus", targets, rules=RULES
        ) as prometheus:  # first: it takes 5 s to find targets
            load = Load(upstream, troubled, eu, us, prometheus, session)
            try:
                await asyncio.to_thread(eu.start)
                await load.prepare()
                await load.round()
                await asyncio.to_thread(us.start)  # it compares, as there are records already
                await asyncio.to_thread(prometheus.ready)
                yield load
            finally:
                for region in (eu, us):
                    if region.running:
                        region.kill()
