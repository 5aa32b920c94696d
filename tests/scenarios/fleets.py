"""The stage of the fleet's scenarios: an upstream in the test's loop, a Redis, and three nodes that several tests use.

Each test brings blobs of its own. What a test kills, pauses or breaks is put right after it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import aiohttp

from proxy.oci.digest import Digest
from tests.support.balanced import Got, Plan
from tests.support.contents import Image, blob, make_image
from tests.support.fake_upstream import FakeUpstream
from tests.support.fleet import Fleet, Node, ask, eventually, fleet_of
from tests.support.redis import RedisServer

MIB = 1 << 20
REPO = "library/fleet"
_seeds = count(7_000)


@dataclass(frozen=True)
class Scale:
    """A blob of `size` bytes from an upstream that gives `rate` bytes per second, wanted by `clients`."""

    size: int
    rate: int
    clients: int

    @property
    def seconds(self) -> float:
        """What a direct download takes."""
        return self.size / self.rate


EVERYDAY = Scale(6 * MIB, 12 * MIB, 24)
FULL = Scale(64 * MIB, 8 * MIB, 150)


@dataclass
class Stage:
    """What the scenarios play on."""

    upstream: FakeUpstream
    redis: RedisServer
    fleet: Fleet

    @property
    def nodes(self) -> list[Node]:
        return self.fleet.nodes

    def offer(self, size: int, rate: int | None = None) -> tuple[Digest, bytes]:
        """Put a blob that nobody has seen on offer upstream, and set the pace of all downloads."""
        data = blob(size, seed=next(_seeds))
        self.upstream.rate = rate
        return self.upstream.add_blob(REPO, data), data

    def gets(self, digest: Digest) -> int:
        """Return how often the blob was asked for upstream."""
        return self.upstream.count(method="GET", contains=digest)

    def sent(self, digest: Digest) -> int:
        """Return how many of the blob's bytes the upstream has sent."""
        return self.upstream.sent(digest)

    def herd(self, digest: Digest, scale: Scale, nodes: list[Node] | None = None, *, resume: bool = False) -> Plan:
        """Return clients begun over 1.2 times a download: the last find it stored. Every tenth reads slowly."""
        urls = tuple(node.url for node in nodes or self.nodes)
        slow = 0.7 * scale.rate
        return Plan(
            urls, path(digest), scale.clients, 1.2 * scale.seconds, slow_every=10, slow_rate=slow, resume=resume
        )

    async def without_redis(self) -> float:
        """Return how often a node that runs has gone on without an answer of Redis since it was started.

        One that the machine holds up for longer than Redis is waited for does so too, and downloads by itself: what
        holds for nodes that hear of each other holds where this number has stayed as it was.
        """
        total = 0.0
        async with aiohttp.ClientSession() as session:
            for node in self.nodes:
                async with session.get(f"{node.admin}/metrics") as answer:
                    for line in (await answer.text()).splitlines():
                        missed = line.startswith("entrepot_redis_call_duration_seconds_count") and '"ok"' not in line
                        if missed or line.startswith("entrepot_redis_calls_refused_total"):
                            total += float(line.rpartition(" ")[2])
        return total

    async def mend(self) -> None:
        """Bring everything to life again."""
        if self.redis.running:
            self.redis.resume()
        else:
            self.redis.restart_empty()
        self.upstream.rate = None
        self.upstream.go_on()
        for node in self.nodes:
            if node.running:
                node.resume()
        await self.fleet.start()
        if not self.upstream.listening:
            await self.upstream.listen_again()
            for node in self.nodes:
                await self._find_out(node)
        await eventually("every node is well", lambda: {node.readiness() for node in self.nodes} == {"ready"})

    async def _find_out(self, node: Node) -> None:
        """Have a node ask the upstream until it counts as answering: by itself it would wait half a minute."""
        async with asyncio.timeout(30):
            while True:
                digest, _ = self.offer(1000)
                if (await ask(node.url + path(digest))).status == 200:
                    return
                await asyncio.sleep(0.1)


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Stage]:
    """Set the stage, and clear it."""
    with RedisServer(folder / "redis") as redis:
        async with FakeUpstream() as upstream, fleet_of(Fleet(redis.url, upstream.url, folder)) as fleet:
            yield Stage(upstream, redis, fleet)


def path(digest: Digest) -> str:
    """Return where clients ask for a blob of REPO."""
    return f"/v2/{REPO}/blobs/{digest}"


def assert_whole(clients: list[Got], data: bytes) -> None:
    """Every client got every byte, and no error."""
    wrong = [one for one in clients if (one.status, one.length, one.crc) != (200, len(data), zlib.crc32(data))]
    assert not wrong


def image_of(seed: int, size: int = 70_000) -> Image:
    """Return an image of two layers."""
    return make_image([blob(size, seed=seed), blob(1000, seed=seed + 1)])


def repository(name: str) -> str:
    """Return a repository of docker.io."""
    return f"library/{name}"


async def pull(node: Node, repo: str, reference: str) -> list[int]:
    """Pull an image as clients do, and return the statuses of its manifest and blobs."""
    answer = await ask(f"{node.url}/v2/{repo}/manifests/{reference}", headers={"Accept": "*/*"})
    statuses = [answer.status]
    if answer.status == 200:
        document = json.loads(answer.body)
        for entry in (document["config"], *document["layers"]):
            part = await ask(f"{node.url}/v2/{repo}/blobs/{entry['digest']}")
            statuses.append(part.status)
            if part.status == 200:
                assert f"sha256:{hashlib.sha256(part.body).hexdigest()}" == entry["digest"]
    return statuses
