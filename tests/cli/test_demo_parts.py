"""The parts of the demo by themselves: its slow link, and its clients."""

from __future__ import annotations

import asyncio
import gc
from itertools import repeat
from pathlib import Path

import pytest
from aiohttp import ClientPayloadError, ClientSession

from entrepot.demo.clients import CONTAINERD, DOCKER, PODMAN, Node, Program
from entrepot.demo.link import LIMIT, WINDOW, Traffic, linked
from entrepot.demo.running import _making
from tests.support.contents import blob, make_image, make_index
from tests.support.fake_upstream import FakeUpstream

AMD = make_image([blob(300_000), blob(70_000, seed=1)])
ARM = make_image([blob(5000, seed=2)], platform="linux/arm64")
INDEX = make_index({"linux/amd64": AMD, "linux/arm64": ARM})


async def test_the_link_tells_of_a_rate_limit_that_only_fetched_manifests_use_up() -> None:
    """P35: as registries put it that count pulls."""
    traffic = Traffic()
    async with FakeUpstream() as upstream, linked(traffic) as link, ClientSession() as session:
        INDEX.publish(upstream, "demo/web", "1")
        link.target = upstream.url
        left = []
        for method, path in (
            ("HEAD", "manifests/1"),
            ("GET", "manifests/1"),
            ("GET", f"manifests/{AMD.digest}"),
            ("GET", f"manifests/{AMD.digest}"),
            ("GET", "manifests/none"),
        ):
            async with session.request(method, f"{link.url}/v2/demo/web/{path}") as answer:
                assert answer.headers["RateLimit-Limit"] == f"{LIMIT};w={WINDOW}"
                left.append(LIMIT - int(answer.headers["RateLimit-Remaining"].partition(";")[0]))
    assert left == [0, 1, 2, 3, 4]
    assert (traffic.requests, traffic.fetched.total(), traffic.again) == (5, 2, 1)


async def test_a_body_that_breaks_before_the_link_breaks_behind_it() -> None:
    """P4: nobody may take what came for all of it."""
    async with FakeUpstream() as upstream, linked(Traffic()) as link, ClientSession() as session:
        digest = upstream.add_blob("demo/web", blob(900_000))
        upstream.die_at = 400_000
        link.target = upstream.url
        async with session.get(f"{link.url}/v2/demo/web/blobs/{digest}") as answer:
            with pytest.raises(ClientPayloadError):
                await answer.read()
        upstream.down = True
        async with session.get(f"{link.url}/v2/demo/web/blobs/{digest}") as answer:
            assert answer.status == 502


@pytest.mark.parametrize("program", [DOCKER, CONTAINERD, PODMAN])
async def test_a_client_fetches_what_it_lacks_of_its_platform_and_nothing_twice(program: Program) -> None:
    came: list[int] = []
    async with FakeUpstream() as registry:
        INDEX.publish(registry, "demo/web", "1")
        node = Node(program, "amd64", repeat(None), registry.url, came.append)
        first = await node.pull("demo/web:1")
        assert (first.ending, first.layers, first.had) == ("done", 2, 0)
        assert first.sent == sum(came) > 370_000
        assert registry.count(method="GET", contains="/blobs/") == 3
        assert registry.count(method="HEAD") == program.asks_first
        assert (await node.pull("demo/web:1")).ending == "unchanged"
        more = make_index({"linux/amd64": make_image([blob(300_000), blob(9000, seed=3)])})
        more.publish(registry, "demo/web", "2")
        second = await node.pull("demo/web:2")
        assert (second.ending, second.layers, second.had) == ("done", 2, 1)
        assert registry.count(method="GET", contains="/blobs/") == 5
        node.renew()
        assert (await node.pull("demo/web:2")).had == 0


async def test_a_client_tells_why_a_pull_failed_and_leaves_when_it_has_no_patience() -> None:
    async with FakeUpstream() as registry:
        INDEX.publish(registry, "demo/web", "1")
        node = Node(PODMAN, "amd64", repeat(None), registry.url, lambda size: None)
        missing = await node.pull("demo/web:2")
        assert (missing.ending, "404" in missing.problem) == ("failed", True)
        other = await Node(PODMAN, "riscv64", repeat(None), registry.url, lambda size: None).pull("demo/web:1")
        assert (other.ending, other.problem) == ("failed", "there is no image for riscv64")
        registry.corrupt = {1000: 1}
        corrupt = await node.pull("demo/web:1")
        assert (corrupt.ending, "is something else" in corrupt.problem) == ("failed", True)
        registry.corrupt = {}
        registry.stall_at = 100_000
        left = await node.pull("demo/web:1", patience=0.1)
        assert (left.ending, left.problem) == ("left", "")


async def test_images_that_are_no_longer_wanted_are_given_up_in_silence(tmp_path: Path) -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    async with _making(tmp_path):
        pass
    gc.collect()
    assert told == []
