"""A region of two nodes that replicates: one of them does it, another when that one is gone, both without Redis."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.fleets import MIB, image_of, pull, repository
from tests.support.fake_upstream import FakeUpstream
from tests.support.fleet import Fleet, Node, eventually, fleet_of
from tests.support.redis import RedisServer
from tests.support.regions import Region, regions

pytestmark = pytest.mark.needs("redis-server")


def standing(node: Node) -> dict[str, Any]:
    with urllib.request.urlopen(f"{node.admin}/api/sync", timeout=10) as answer:
        (peer,) = json.load(answer)["peers"]
        return dict(peer)


def syncing(nodes: list[Node]) -> list[Node]:
    return [node for node in nodes if node.running and not standing(node)["held"]]


@pytest.mark.slow
async def test_one_node_replicates_and_another_when_it_is_gone_or_redis_is(tmp_path: Path) -> None:
    def grant(world: Any) -> None:
        world["a"].grants.append("b")

    with RedisServer(tmp_path / "redis") as redis:
        async with (
            FakeUpstream() as upstream,
            regions(tmp_path, {"a": upstream.url}, {}, prepare=grant) as world,
        ):
            a: Region = world["a"]
            config = f'region = "b"\n[[peer]]\nname = "a"\nurl = "{a.url}"\ntoken_file = "{tmp_path / "token-b-a"}"\n'
            nobody = Region(tmp_path, "nobody", None).upstream_url
            async with fleet_of(Fleet(redis.url, nobody, tmp_path, count=2, config=config)) as fleet:
                nodes = list(fleet.nodes)
                await eventually("one node syncs", lambda: len(syncing(nodes)) == 1)
                (first,) = syncing(nodes)
                (second,) = (node for node in nodes if node is not first)
                assert "another node" in standing(second)["held"]
                await follows(a, upstream, second, 1)
                await asyncio.to_thread(first.kill)
                await eventually("the other one does it", lambda: syncing(nodes) == [second])
                await follows(a, upstream, second, 2)
                await asyncio.to_thread(first.start)
                redis.kill()
                await eventually("both do it", lambda: len(syncing(nodes)) == 2, 60)
                await follows(a, upstream, second, 3)
                redis.restart_empty()
                await eventually("one does it again", lambda: len(syncing(nodes)) == 1, 60)


async def follows(a: Region, upstream: FakeUpstream, node: Node, number: int) -> None:
    """Pull a new image in `a`, and wait until the node gives it, whose own upstream is none."""
    image, repo = image_of(900 + 10 * number, MIB), repository(f"turns{number}")
    image.publish(upstream, repo, "1")
    assert set(await pull(a, repo, "1")) == {200}
    async with asyncio.timeout(60):
        while set(await pull(node, repo, "1")) != {200}:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
